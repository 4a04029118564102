// Whole runs of Lloyd's iteration for many small problems (lloyd_run.h): threads take one after the other, and share
// one that is alone.
#include "dtype.h"
#include "lloyd_run.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

template <class T>
void run_all(const T* x, int64_t row_stride, const int64_t* offsets, int64_t problems, const Sizes& z,
             const double* weight, const double* tol, const int64_t* seed, char* workspace, int64_t bytes, T* centroids,
             int64_t* labels, double* inertia, int64_t* n_iter, int64_t* status, int n_threads, int team) {
  Turns turns(0, problems);
  on_threads(n_threads, [&](int64_t thread, int64_t) {
    char* own = workspace + thread * bytes;
    for (int64_t b; turns.take(&b);) {
      if (status[b] != DCFAST_LLOYD_RUNNING) continue;
      const int64_t first = offsets[b], n = offsets[b + 1] - first;
      const Problem<T> q = {
          x + first * row_stride,    row_stride,    n, weight != nullptr ? weight + first : nullptr, tol[b], seed[b],
          centroids + b * z.k * z.d, labels + first};
      Work<T> w = {};
      work_layout(n, z.d, z.k, words_of(z.k, z.grid.n_words, z.rows.n_words), weight != nullptr, team, own, &w);
      if (run(q, z, w, n_iter + b, status + b)) inertia[b] = sum_of(w.distance, n);
    }
  });
}

}  // namespace

int lloyd_workspace(int dtype, int64_t n, int64_t d, int64_t k, int64_t n_words, int64_t row_words, bool weighted,
                    int team, int64_t* bytes) {
  // As for assign and accumulate.
  const bool fits = k <= INT32_MAX - kPanel && d <= (int64_t(1) << 20) && n <= (int64_t(1) << 22);
  if (!fits || n_words < 1 || n_words > kMaxWords || row_words < 0 || row_words > kMaxWords) return DCFAST_OUT_OF_RANGE;
  return with_dtype(dtype, [&](auto element) {
    Work<decltype(element)> w = {};
    *bytes = work_layout(n, d, k, words_of(k, n_words, row_words), weighted, team, nullptr, &w);
  });
}

int lloyd(int dtype, const void* x, int64_t row_stride, const int64_t* offsets, int64_t problems, int64_t d, int64_t k,
          const double* weight, const int64_t* low, const double* scale, int64_t n_words, const int64_t* row_low,
          const double* row_scale, int64_t row_words, int64_t max_iter, int64_t iterations, const double* tol,
          int empty, const int64_t* seed, void* workspace, int64_t bytes, void* centroids, int64_t* labels,
          double* inertia, int64_t* n_iter, int64_t* status, int n_threads, int team) {
  const Grid grid = {low, scale, n_words, units_of(n_words)},
             rows = {row_low, row_scale, row_words, units_of(row_words)};
  const Sizes z = {d, k, grid, rows, max_iter, iterations, empty};
  char* base = static_cast<char*>(workspace);
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    run_all(static_cast<const T*>(x), row_stride, offsets, problems, z, weight, tol, seed, base, bytes,
            static_cast<T*>(centroids), labels, inertia, n_iter, status, n_threads, team);
  });
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
