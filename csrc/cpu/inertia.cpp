// D64 of every row to its own centroid, and the exact sum of any doubles.
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#include "d64.h"
#include "dtype.h"
#include "exact_sum.h"
#include "float_env.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

template <class T>
void distances_all(const T* x, int64_t row_stride, int64_t n, int64_t d, const T* centroids, int64_t k,
                   const int64_t* labels, const double* weight, double* out, int n_threads) {
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t first = 0; first < n; first += kChains) {
      distances_of(x, row_stride, n, d, centroids, k, labels, weight, first, out);
    }
  }
}

}  // namespace

int point_distances(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d, const void* centroids,
                    int64_t k, const int64_t* labels, const double* weight, double* out, int n_threads) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    distances_all(static_cast<const T*>(x), row_stride, n, d, static_cast<const T*>(centroids), k, labels, weight, out,
                  n_threads);
  });
}

int exact_sum_add(const double* values, int64_t n, int64_t* words, int n_threads) {
  if (n > kMaxAdd) return DCFAST_OUT_OF_RANGE;
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
    int64_t* own = words + omp_get_thread_num() * kSumWords;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) add_exactly(values[i], own);
    carry(own, kDigits, 1, kSumDigit);
  }
  return DCFAST_OK;
}

int exact_sum_round(int64_t* words, int n_threads, double* out) {
  for (int thread = 1; thread < n_threads; ++thread) {
    for (int64_t w = 0; w < kSumWords; ++w) words[w] += words[thread * kSumWords + w];
  }
  *out = rounded_sum(words);
  return DCFAST_OK;
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
