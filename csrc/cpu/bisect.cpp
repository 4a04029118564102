// 2-means of some of the rows (lloyd_run.h), which are gathered first: later passes read them as often as there are
// iterations, from caches if they fit.
#include "dtype.h"
#include "lloyd_run.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr int64_t kHalves = 2;

template <class T>
struct Gathered {
  T* x;            // [m][d]
  double* weight;  // [m], with weights
  Work<T> work;
};

template <class T>
int64_t gathered_layout(int64_t m, int64_t d, int64_t n_words, bool weighted, int team, char* base, Gathered<T>* g) {
  int64_t at = work_layout(m, d, kHalves, kHalves * n_words, weighted, team, base, &g->work);
  g->x = take<T>(base, &at, m * d);
  g->weight = take<double>(base, &at, weighted ? m : 0);
  return at;
}

template <class T>
void gather(const T* x, int64_t row_stride, const int64_t* rows, int64_t m, int64_t d, const double* weight,
            const Gathered<T>& g) {
  on_threads(g.work.team, [&](int64_t thread, int64_t threads) {
    const Part part(m, thread, threads);
    for (int64_t at = part.first; at < part.last; ++at) {
      memcpy(g.x + at * d, x + rows[at] * row_stride, size_t(d) * sizeof(T));
      if (weight != nullptr) g.weight[at] = weight[rows[at]];
    }
  });
}

// The rows in order of their cluster, those that belong to none last.
inline void put_in_order(const int64_t* rows, const int64_t* labels, int64_t m, int64_t* order, int64_t* sizes) {
  int64_t at = 0;
  for (int64_t half = 0; half <= kHalves; ++half) {
    const int64_t before = at, label = half < kHalves ? half : -1;
    for (int64_t row = 0; row < m; ++row) {
      if (labels[row] == label) order[at++] = rows[row];
    }
    if (half < kHalves) sizes[half] = at - before;
  }
}

// Of all rows and of each cluster's, from their distances.
inline void sum_halves(const double* distance, const int64_t* labels, int64_t m, double* inertia, double* inertias) {
  int64_t words[kHalves][kSumWords] = {}, all[kSumWords];
  for (int64_t row = 0; row < m; ++row) {
    if (labels[row] >= 0) add_exactly(distance[row], words[labels[row]]);
  }
  for (int64_t word = 0; word < kSumWords; ++word) all[word] = words[0][word] + words[1][word];
  *inertia = rounded_sum(all);
  for (int64_t half = 0; half < kHalves; ++half) inertias[half] = rounded_sum(words[half]);
}

}  // namespace

int bisect_workspace(int dtype, int64_t m, int64_t d, int64_t n_words, bool weighted, int n_threads, int64_t* bytes) {
  // As for lloyd.
  const bool fits = d <= (int64_t(1) << 20) && m <= (int64_t(1) << 22);
  if (!fits || n_words < 1 || n_words > kMaxWords) return DCFAST_OUT_OF_RANGE;
  return with_dtype(dtype, [&](auto element) {
    Gathered<decltype(element)> g = {};
    *bytes = gathered_layout(m, d, n_words, weighted, n_threads, nullptr, &g);
  });
}

int bisect(int dtype, const void* x, int64_t row_stride, const int64_t* rows, int64_t m, int64_t d,
           const double* weight, const int64_t* low, const double* scale, int64_t n_words, int64_t max_iter,
           int64_t iterations, double tol, void* workspace, void* centroids, int64_t* labels, int64_t* n_iter,
           int64_t* status, int64_t* order, int64_t* sizes, double* inertia, double* inertias, int n_threads) {
  const Grid grid = {low, scale, n_words, units_of(n_words)};
  const Sizes z = {d, kHalves, grid, Grid{}, max_iter, iterations, DCFAST_EMPTY_FARTHEST};
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    IeeeMode ieee;
    Gathered<T> g = {};
    gathered_layout(m, d, n_words, weight != nullptr, n_threads, static_cast<char*>(workspace), &g);
    gather(static_cast<const T*>(x), row_stride, rows, m, d, weight, g);
    const Problem<T> q = {g.x,   d, m, weight != nullptr ? g.weight : nullptr, tol, 0, static_cast<T*>(centroids),
                          labels};
    if (!run(q, z, g.work, n_iter, status)) return;
    sum_halves(g.work.distance, labels, m, inertia, inertias);
    put_in_order(rows, labels, m, order, sizes);
  });
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
