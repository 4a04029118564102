// A step of mini-batch k-means: the other ops one after the other, without the calls between them, which take longer
// than the work on a batch of a thousand rows.
#include <stdint.h>
#include <string.h>

#include "dtype.h"
#include "exact_sum.h"
#include "float_env.h"
#include "rows.h"
#include "workspace.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr int64_t kMinColumns = 16;  // of a thread that shares the columns of accumulate, as there

struct Buffers {
  int64_t* labels;        // [n]
  double* distances;      // [n]
  int64_t* sums;          // [threads][kSumWords]
  int64_t* words;         // [k][n_words][d], and of the copies
  int64_t* counts;        // [k], and of the copies
  int64_t* weight_words;  // [kSumWords] of each cluster
  double* added;          // [k][d] the sums, rounded
  double* ones;           // [k]
  char* prepared;         // of assign
  char* scratch;
};

inline int64_t copies_of(int64_t d, int n_threads) { return d / kMinColumns >= n_threads ? 1 : n_threads; }

// Without a base, what the buffers need; *status says whether assign takes such sizes.
int64_t layout(int dtype, int64_t n, int64_t d, int64_t k, int64_t n_words, int n_threads, char* base, Buffers* b,
               int* status) {
  int64_t prepared = 0, scratch = 0, at = 0;
  const int64_t copies = copies_of(d, n_threads);
  *status = assign_workspace(dtype, k, d, false, false, &prepared);
  if (*status == DCFAST_OK) *status = assign_scratch(dtype, k, d, &scratch);
  b->labels = take<int64_t>(base, &at, n);
  b->distances = take<double>(base, &at, n);
  b->sums = take<int64_t>(base, &at, n_threads * kSumWords);
  b->words = take<int64_t>(base, &at, copies * k * n_words * d);
  b->counts = take<int64_t>(base, &at, copies * k);
  b->weight_words = take<int64_t>(base, &at, k * kSumWords);
  b->added = take<double>(base, &at, k * d);
  b->ones = take<double>(base, &at, k);
  b->prepared = take<char>(base, &at, prepared);
  b->scratch = take<char>(base, &at, n_threads * scratch);
  return at;
}

// Every cluster's weight in the batch, in `totals`.
void weigh(const Buffers& b, int64_t n, int64_t k, const double* weight, double* totals) {
  memset(b.weight_words, 0, size_t(8 * k * kSumWords));
  for (int64_t row = 0; row < n; ++row) {
    if (b.labels[row] >= 0) add_exactly(weight[row], b.weight_words + b.labels[row] * kSumWords);
  }
  for (int64_t j = 0; j < k; ++j) totals[j] = rounded_sum(b.weight_words + j * kSumWords);
}

// RN_T(RN64(RN64(c W) + S) / W_new) for the clusters that the batch adds to.
template <class T>
void average(const Buffers& b, int64_t k, int64_t d, const double* totals, T* centroids, double* seen) {
  for (int64_t j = 0; j < k; ++j) {
    if (b.counts[j] == 0) continue;
    const double before = seen[j], after = before + totals[j];
    for (int64_t i = j * d; i < (j + 1) * d; ++i) {
      const double held = double(centroids[i]) * before;
      centroids[i] = T((held + b.added[i]) / after);
    }
    seen[j] = after;
  }
}

}  // namespace

int minibatch_step_workspace(int dtype, int64_t n, int64_t d, int64_t k, int64_t n_words, int n_threads,
                             int64_t* bytes) {
  if (n > (int64_t(1) << 22) || n_words < 1 || n_words > kMaxWords) return DCFAST_OUT_OF_RANGE;
  Buffers b;
  int status;
  *bytes = layout(dtype, n, d, k, n_words, n_threads, nullptr, &b, &status);
  return status;
}

int minibatch_step(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d, const double* weight,
                   const int64_t* low, const double* scale, int64_t n_words, void* workspace, void* centroids,
                   double* seen, int64_t k, double* inertia, int n_threads) {
  IeeeMode ieee;
  Buffers b;
  int status;
  layout(dtype, n, d, k, n_words, n_threads, static_cast<char*>(workspace), &b, &status);
  if (status != DCFAST_OK) return status;
  const int64_t copies = copies_of(d, n_threads), size = k * n_words * d;
  int64_t rechecked_and_moved[2] = {};
  assign_prepare(dtype, centroids, k, d, nullptr, false, b.prepared, n_threads);
  assign(dtype, x, row_stride, n, d, centroids, k, nullptr, b.prepared, b.scratch, nullptr, nullptr, b.labels,
         rechecked_and_moved, n_threads);
  point_distances(dtype, x, row_stride, n, d, centroids, k, b.labels, weight, b.distances, n_threads);
  memset(b.sums, 0, size_t(8 * n_threads * kSumWords));
  exact_sum_add(b.distances, n, b.sums, n_threads);
  exact_sum_round(b.sums, n_threads, inertia);
  memset(b.words, 0, size_t(8 * copies * size));
  memset(b.counts, 0, size_t(8 * copies * k));
  accumulate(dtype, x, row_stride, n, d, b.labels, nullptr, k, weight, scale, n_words, b.words, b.counts,
             b.words + size, b.counts + k, copies, n_threads);
  // Means of weight 1 are the sums; of clusters without rows they are 0.
  for (int64_t j = 0; j < k; ++j) b.ones[j] = 1.0;
  means(DCFAST_FLOAT64, b.words, k, n_words, d, low, b.ones, b.added, b.added, n_threads);
  double* totals = b.ones;
  if (weight != nullptr) {
    weigh(b, n, k, weight, totals);
  } else {
    for (int64_t j = 0; j < k; ++j) totals[j] = double(b.counts[j]);
  }
  return with_dtype(dtype,
                    [&](auto element) { average(b, k, d, totals, static_cast<decltype(element)*>(centroids), seen); });
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
