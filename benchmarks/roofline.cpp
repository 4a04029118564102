// The machine's limits, measured: fused multiply-adds in registers, and a triad over arrays larger than any cache.
#include <cstdint>

typedef float Floats __attribute__((vector_size(32)));

// 12 independent chains: more than latency (4) times units (2), fewer than the 16 registers of AVX2.
static __attribute__((noinline)) float chains(int64_t steps) {
  const Floats f = Floats{} + 1e-9f;
  Floats a = f, b = f * 2, c = f * 3, d = f * 4, e = f * 5, g = f * 6, h = f * 7, i = f * 8, j = f * 9, k = f * 10,
         l = f * 11, m = f * 12;
  for (int64_t step = 0; step < steps; ++step) {
    a = a * f + f, b = b * f + f, c = c * f + f, d = d * f + f, e = e * f + f, g = g * f + f;
    h = h * f + f, i = i * f + f, j = j * f + f, k = k * f + f, l = l * f + f, m = m * f + f;
  }
  return (a + b + c + d + e + g + h + i + j + k + l + m)[0];
}

extern "C" {

// Runs the chains on each of n_threads threads; returns the floating-point operations done.
double fma_chains(int64_t steps, int n_threads) {
  double operations = 0.0;
#pragma omp parallel num_threads(n_threads) reduction(+ : operations)
  operations += 2.0 * 8 * 12 * double(steps) + (chains(steps) > 1e30f ? 1.0 : 0.0);
  return operations;
}

// a = b + 3 c over n floats; returns the bytes that must move (a is read too before it is written).
double triad(float* a, const float* b, const float* c, int64_t n, int n_threads) {
#pragma omp parallel for num_threads(n_threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) a[i] = b[i] + 3.0f * c[i];
  return 16.0 * double(n);
}
}
