// A run of Lloyd's iteration for a small problem: all of it stays in the caches of the threads that make it, as a rule
// one.
//
// The result is that of dcfast/ops/lloyd/loop.py, every step by its definition. What an iteration does not repeat:
//   * the units of the narrow pass (assign_narrow.h) are those of the rows and the starts, valid for whatever centroids
//     come of them, so that the rows are shifted, scaled and transposed once;
//   * the sums are exact, so that only rows that moved are added and subtracted;
//   * only centroids of clusters that rows entered or left are rounded anew, and only those that changed are packed.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "assign_narrow.h"
#include "d64.h"
#include "exact_sum.h"
#include "parallel.h"
#include "rows.h"
#include "split_empty.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

// Of exact sums, see core.h.
struct Grid {
  const int64_t* low;   // [d] of the words
  const double* scale;  // [d] 2^-low
  int64_t n_words;
  Units units;
};

// What all problems of a call share.
struct Sizes {
  int64_t d, k;
  Grid grid;
  Grid rows;  // without weights; no low where tolerances are absolute
  int64_t max_iter, iterations;
  int empty;
};

template <class T>
struct Problem {
  const T* x;
  int64_t row_stride, n;
  const double* weight;  // [n] or null
  double tol;            // of the squared norm of a step
  int64_t seed;
  T* centroids;     // [k][d]
  int64_t* labels;  // [n]
};

// What the threads of a team need for the problem at hand.
template <class T>
struct Work {
  int team;
  Prepared<T> p;
  float* columns;         // [blocks][groups][d][kGroupRows], as NarrowScratch has them
  float* norms;           // [blocks][kNarrowBlock]
  double* elements;       // [team][kGroup][d][kFloats]
  int64_t* next;          // [n] labels for the centroids at hand
  int64_t* counted;       // [n] the cluster whose sum holds the row; -1 for none
  double* distance;       // [n] and room for k
  int64_t* words;         // [k][n_words][d], of one cluster while the variance is taken
  int64_t* counts;        // [k]
  int64_t* shares;        // [k] counts while clusters are split
  int64_t* weight_words;  // [k][kSumWords], with weights
  uint8_t* stale;         // [k] whether the centroid may differ from the mean of its rows
  uint8_t* changed;       // [k] whether the centroid differs from the one that is packed
  int64_t* packed;        // [k] which centroid is packed at a position
  T* fresh;               // [k][d]
  double* mean;           // [d]
};

inline int64_t blocks_of(int64_t n) { return (n + kNarrowBlock - 1) / kNarrowBlock; }

template <class T>
int64_t work_layout(int64_t n, int64_t d, int64_t k, int64_t n_words, bool weighted, int team, char* base, Work<T>* w) {
  w->team = team;
  int64_t at = layout(k, d, true, false, false, base, &w->p);
  w->columns = take<float>(base, &at, blocks_of(n) * d * kNarrowBlock);
  w->norms = take<float>(base, &at, blocks_of(n) * kNarrowBlock);
  w->elements = take<double>(base, &at, team * d * kGroupRows);
  w->next = take<int64_t>(base, &at, n);
  w->counted = take<int64_t>(base, &at, n);
  w->distance = take<double>(base, &at, n > k ? n : k);
  w->words = take<int64_t>(base, &at, n_words * d);
  w->counts = take<int64_t>(base, &at, k);
  w->shares = take<int64_t>(base, &at, k);
  w->weight_words = take<int64_t>(base, &at, weighted ? k * kSumWords : 0);
  w->stale = take<uint8_t>(base, &at, k);
  w->changed = take<uint8_t>(base, &at, k);
  w->packed = take<int64_t>(base, &at, k);
  w->fresh = take<T>(base, &at, k * d);
  w->mean = take<double>(base, &at, d);
  return at;
}

// Words per column of all clusters, or of the one of all rows.
inline int64_t words_of(int64_t k, int64_t n_words, int64_t row_words) {
  return k * n_words > row_words ? k * n_words : row_words;
}

template <class T>
NarrowScratch block_at(const Work<T>& w, int64_t block, int64_t d, int64_t thread) {
  return NarrowScratch{w.columns + block * d * kNarrowBlock, w.norms + block * kNarrowBlock,
                       w.elements + thread * d * kGroupRows};
}

// take(the first row, how many, thread) for every block of rows.
template <class T, class Take>
void for_blocks(const Problem<T>& q, const Work<T>& w, const Take& take) {
  on_threads(w.team, [&](int64_t thread, int64_t threads) {
    const Part blocks(blocks_of(q.n), thread, threads);
    for (int64_t block = blocks.first; block < blocks.last; ++block) {
      const int64_t start = block * kNarrowBlock;
      take(start, q.n - start < kNarrowBlock ? q.n - start : kNarrowBlock, thread);
    }
  });
}

// The largest element of the rows and the starts, less the shift.
template <class T>
double largest_of_all(const Problem<T>& q, const Sizes& z, const Work<T>& w) {
  double* found = w.elements;
  on_threads(w.team, [&](int64_t thread, int64_t threads) {
    const Part rows(q.n, thread, threads);
    found[thread] = largest_of(q.x + rows.first * q.row_stride, q.row_stride, rows.last - rows.first, z.d, w.p.shift);
  });
  double largest = largest_of(q.centroids, z.d, z.k, z.d, w.p.shift);
  for (int thread = 0; thread < w.team; ++thread) largest = fmax(largest, found[thread]);
  return largest;
}

// Units for all iterations: means of rows lie between the rows, and splitting moves them by 1/1024. The shift may be
// anything; near the rows it costs the least precision, and the mean of a few dozen is as near as that of all.
template <class T>
void begin(const Problem<T>& q, const Sizes& z, const Work<T>& w) {
  constexpr int64_t kSample = 64;
  const int64_t sample = q.n < kSample ? q.n : kSample;
  for (int64_t i = 0; i < z.d; ++i) w.mean[i] = 0.0;
  for (int64_t at = 0; at < sample; ++at) {
    const T* row = q.x + at * q.n / sample * q.row_stride;
    for (int64_t i = 0; i < z.d; ++i) w.mean[i] += double(row[i]);
  }
  for (int64_t i = 0; i < z.d; ++i) {
    const double mean = w.mean[i] / double(sample);
    w.p.shift[i] = fabs(mean) <= 1e300 ? T(mean) : T(0);
  }
  const double largest = largest_of_all(q, z, w);
  const bool has_units = largest <= 1e300;
  set_scale(has_units ? largest : 1.0, z.d, w.p);
  for_blocks(q, w, [&](int64_t start, int64_t count, int64_t thread) {
    const NarrowScratch s = block_at(w, start / kNarrowBlock, z.d, thread);
    transpose(q.x + start * q.row_stride, q.row_stride, count, z.d, w.p, s);
    for (int64_t row = 0; row < kNarrowBlock && !has_units; ++row) s.norms[row] = INFINITY;  // D64 decides
  });
  for (int64_t row = 0; row < q.n; ++row) w.counted[row] = -1;
  memset(w.words, 0, size_t(8 * z.k * z.grid.n_words * z.d));
  memset(w.counts, 0, size_t(8 * z.k));
  if (q.weight != nullptr) memset(w.weight_words, 0, size_t(8 * z.k * kSumWords));
  memset(w.stale, 1, size_t(z.k));
  memset(w.changed, 1, size_t(z.k));
  memset(w.packed, 0xFF, size_t(8 * z.k));
}

template <class T>
void label_rows(const Problem<T>& q, const Sizes& z, const Work<T>& w, int64_t* labels) {
  for (int64_t j = 0; j < z.k; ++j) {
    if (w.changed[j]) w.p.hash[j] = hash_row(q.centroids + j * z.d, z.d);
  }
  const int64_t live = *w.p.all.live = find_distinct(q.centroids, z.k, z.d, w.p, w.p.all.index);
  for (int64_t at = 0; at < live; ++at) {
    const int64_t j = w.p.all.index[at];
    if (w.packed[at] == j && !w.changed[j]) continue;
    pack_narrow(q.centroids, z.d, w.p, at);
    w.packed[at] = j;
  }
  for (int64_t at = live; at < whole_tiles(live); ++at) pack_narrow(q.centroids, z.d, w.p, at);
  // What is packed beyond would be out of date when more centroids are distinct again.
  for (int64_t at = live; at < z.k; ++at) w.packed[at] = -1;
  memset(w.changed, 0, size_t(z.k));
  set_largest(w.p.all, *w.p.all.live);
  if (live == 0) {
    memset(labels, 0xFF, size_t(8 * q.n));  // -1
    return;
  }
  for_blocks(q, w, [&](int64_t start, int64_t count, int64_t thread) {
    int64_t rechecked = 0;
    assign_columns(q.x + start * q.row_stride, q.row_stride, count, z.d, q.centroids, w.p,
                   block_at(w, start / kNarrowBlock, z.d, thread), false, Ahead{nullptr, nullptr}, labels + start,
                   &rechecked);
  });
}

// Columns of a row whose cluster changes, in the sums.
template <class T>
void move_columns_of(const Problem<T>& q, const Sizes& z, const Work<T>& w, int64_t row, int64_t cluster,
                     const Part& columns) {
  const double weight = q.weight != nullptr ? q.weight[row] : 1.0;
  if (weight == 0.0) return;
  move_row(q.x + row * q.row_stride, z.d, columns.first, columns.last, weight, z.grid.scale, z.grid.units, w.words,
           cluster, w.counted[row]);
}

// The same in what is counted.
template <class T>
void count_in(const Problem<T>& q, const Work<T>& w, int64_t row, int64_t cluster) {
  const int64_t before = w.counted[row];
  w.counted[row] = cluster;
  const double weight = q.weight != nullptr ? q.weight[row] : 1.0;
  if (weight == 0.0) return;
  for (int64_t sign = -1; sign <= 1; sign += 2) {
    const int64_t changed = sign < 0 ? before : cluster;
    if (changed < 0) continue;
    w.counts[changed] += sign;
    if (q.weight != nullptr) add_exactly(double(sign) * weight, w.weight_words + changed * kSumWords);
    w.stale[changed] = 1;
  }
}

// Sums and counts of the clusters as `next` has them.
template <class T>
void count_all(const Problem<T>& q, const Sizes& z, const Work<T>& w) {
  // A thread has columns of its own, so that no two write to one sum: where they fill two vectors.
  const int64_t parts = z.d / (2 * kDoubles) < w.team ? 1 : w.team;
  on_threads(int(parts), [&](int64_t thread, int64_t threads) {
    const Part columns(z.d, thread, threads);
    for (int64_t row = 0; row < q.n; ++row) {
      if (w.next[row] != w.counted[row]) move_columns_of(q, z, w, row, w.next[row], columns);
    }
  });
  for (int64_t row = 0; row < q.n; ++row) {
    if (w.next[row] != w.counted[row]) count_in(q, w, row, w.next[row]);
  }
}

// D64 of every row and the centroid of its label, times its weight, in `distance`.
template <class T>
void own_distances(const Problem<T>& q, int64_t d, const T* centroids, int64_t k, const int64_t* labels,
                   const double* weight, const Work<T>& w) {
  on_threads(w.team, [&](int64_t thread, int64_t threads) {
    const Part groups((q.n + kChains - 1) / kChains, thread, threads);
    for (int64_t group = groups.first; group < groups.last; ++group) {
      distances_of(q.x, q.row_stride, q.n, d, centroids, k, labels, weight, group * kChains, w.distance);
    }
  });
}

// Give each cluster without rows the row farthest from its centroid: by D64 descending, then by index.
template <class T>
void relocate(const Problem<T>& q, const Sizes& z, const Work<T>& w) {
  own_distances(q, z.d, q.centroids, z.k, w.next, nullptr, w);
  // Marked now: a cluster whose rows all move away is not filled again.
  for (int64_t j = 0; j < z.k; ++j) w.shares[j] = w.counts[j];
  for (int64_t j = 0, taken = 0; j < z.k && taken < q.n; ++j) {
    if (w.shares[j] != 0) continue;
    int64_t far = 0;
    for (int64_t row = 1; row < q.n; ++row) far = w.distance[row] > w.distance[far] ? row : far;
    if (taken++ == 0 && w.distance[far] == 0.0) return;
    move_columns_of(q, z, w, far, j, Part(z.d, 0, 1));
    count_in(q, w, far, j);
    w.distance[far] = -1.0;
  }
}

// The exact sum of n doubles, rounded once.
inline double sum_of(const double* values, int64_t n) {
  int64_t words[kSumWords] = {};
  for (int64_t i = 0; i < n; ++i) add_exactly(values[i], words);
  return rounded_sum(words);
}

// The mean of the columns' variances, without weights: the rows in one cluster, those that are not finite in none.
// Before `begin`, whose memory this takes.
template <class T>
double mean_variance(const Problem<T>& q, const Sizes& z, const Work<T>& w) {
  memset(w.words, 0, size_t(8 * z.rows.n_words * z.d));
  int64_t count = 0;
  for (int64_t row = 0; row < q.n; ++row) {
    const T* here = q.x + row * q.row_stride;
    int32_t not_finite = 0;
    for (int64_t i = 0; i < z.d; ++i) not_finite |= !(fabs(here[i]) < T(INFINITY));
    w.next[row] = not_finite ? -1 : 0;
    if (not_finite) continue;
    move_row(here, z.d, 0, z.d, 1.0, z.rows.scale, z.rows.units, w.words, 0, -1);
    ++count;
  }
  if (count == 0) return 0.0;
  carry_row(w.words, z.rows.n_words, z.d);
  mean_row(w.words, z.rows.n_words, z.d, z.rows.low, double(count), w.fresh);
  own_distances(q, z.d, w.fresh, 1, w.next, nullptr, w);
  return sum_of(w.distance, q.n) / double(q.n * z.d);
}

// The means of the clusters, in `fresh`.
template <class T>
void find_means(const Problem<T>& q, const Sizes& z, const Work<T>& w) {
  memcpy(w.fresh, q.centroids, size_t(z.k * z.d) * sizeof(T));
  for (int64_t j = 0; j < z.k; ++j) {
    if (!w.stale[j]) continue;
    int64_t* sum = w.words + j * z.grid.n_words * z.d;
    carry_row(sum, z.grid.n_words, z.d);
    const double total = q.weight != nullptr ? rounded_sum(w.weight_words + j * kSumWords) : double(w.counts[j]);
    if (total > 0.0) mean_row(sum, z.grid.n_words, z.d, z.grid.low, total, w.fresh + j * z.d);
    w.stale[j] = 0;
  }
}

// From the centroids to `fresh`: the squared norm of the step.
template <class T>
double take_step(const Problem<T>& q, const Sizes& z, const Work<T>& w) {
  for (int64_t j = 0; j < z.k; ++j) {
    const T *now = w.fresh + j * z.d, *before = q.centroids + j * z.d;
    w.changed[j] = !equal_rows(now, before, z.d);
    w.distance[j] = w.changed[j] ? d64(now, before, z.d) : 0.0;
  }
  memcpy(q.centroids, w.fresh, size_t(z.k * z.d) * sizeof(T));
  return sum_of(w.distance, z.k);
}

// As in scikit-learn a cluster that is left without weight goes to the mean of the heaviest.
template <class T>
void join_heaviest(const Problem<T>& q, const Sizes& z, const Work<T>& w) {
  double* total = w.distance;
  int64_t heaviest = 0;
  for (int64_t j = 0; j < z.k; ++j) {
    total[j] = q.weight != nullptr ? rounded_sum(w.weight_words + j * kSumWords) : double(w.counts[j]);
    heaviest = total[j] > total[heaviest] ? j : heaviest;
  }
  for (int64_t j = 0; j < z.k; ++j) {
    if (total[j] != 0.0) continue;
    memcpy(w.fresh + j * z.d, w.fresh + heaviest * z.d, size_t(z.d) * sizeof(T));
    w.stale[j] = 1;
  }
}

template <class T>
int64_t iterate(const Problem<T>& q, const Sizes& z, const Work<T>& w, int64_t iteration) {
  label_rows(q, z, w, w.next);
  const bool moved = memcmp(w.next, q.labels, size_t(8 * q.n)) != 0;
  memcpy(q.labels, w.next, size_t(8 * q.n));
  count_all(q, z, w);
  bool vacant = false;
  for (int64_t j = 0; j < z.k; ++j) vacant = vacant || w.counts[j] == 0;
  if (vacant && z.empty == DCFAST_EMPTY_FARTHEST) relocate(q, z, w);
  find_means(q, z, w);
  if (vacant && z.empty == DCFAST_EMPTY_FARTHEST) join_heaviest(q, z, w);
  if (vacant && z.empty == DCFAST_EMPTY_SPLIT) {
    memcpy(w.shares, w.counts, size_t(8 * z.k));
    split_all(w.fresh, w.shares, z.k, z.d, q.seed, iteration);
    for (int64_t j = 0; j < z.k; ++j) w.stale[j] = w.shares[j] != w.counts[j];
  }
  const bool same = equal_rows(w.fresh, q.centroids, z.k * z.d);
  const double step = take_step(q, z, w);
  if (!moved && same) return DCFAST_LLOYD_LABELS;
  return step <= q.tol ? DCFAST_LLOYD_TOL : DCFAST_LLOYD_RUNNING;
}

// Goes on by at most z.iterations; whether the run has ended. Then `distance` holds that of every row from its
// centroid, times its weight.
template <class T>
bool run(Problem<T> q, const Sizes& z, const Work<T>& w, int64_t* n_iter, int64_t* status) {
  if (z.rows.low != nullptr && q.tol > 0.0) q.tol *= mean_variance(q, z, w);
  begin(q, z, w);
  const int64_t stop = z.max_iter - *n_iter < z.iterations ? z.max_iter : *n_iter + z.iterations;
  while (*n_iter < stop && *status == DCFAST_LLOYD_RUNNING) *status = iterate(q, z, w, (*n_iter)++);
  if (*status == DCFAST_LLOYD_RUNNING && *n_iter == z.max_iter) *status = DCFAST_LLOYD_MAX_ITER;
  if (*status == DCFAST_LLOYD_RUNNING) return false;
  if (*status != DCFAST_LLOYD_LABELS) label_rows(q, z, w, q.labels);
  own_distances(q, z.d, q.centroids, z.k, q.labels, q.weight, w);
  return true;
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
