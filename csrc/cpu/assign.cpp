// Labels of the nearest centroids: a pass whose error is bounded per score, and a recheck in double of the rows that
// the bound cannot decide. See dcfast/ops/assign/__init__.py for the definition of a label, assign_prepare.h for the
// bound, assign_narrow.h and assign_wide.h for the two passes.
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>

#include "assign_narrow.h"
#include "assign_prepare.h"
#include "assign_wide.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

// m: any common vector is valid; the mean of the centroids makes the norms, and with them the bounds, small.
template <class T>
void find_shift(const T* c, int64_t live, int64_t d, const Prepared<T>& p, int n_threads) {
  constexpr int64_t kColumns = 64;
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t first = 0; first < d; first += kColumns) {
      const int64_t count = d - first < kColumns ? d - first : kColumns;
      double mean[kColumns] = {};
      for (int64_t j = 0; j < live; ++j) {
        const T* row = c + p.all.index[j] * d + first;
        for (int64_t i = 0; i < count; ++i) mean[i] += double(row[i]) / double(live);
      }
      for (int64_t i = 0; i < count; ++i) p.shift[first + i] = fabs(mean[i]) <= 1e300 ? T(mean[i]) : T(0);
    }
  }
}

template <class T>
void find_scale(const T* c, int64_t live, int64_t d, const Prepared<T>& p, int n_threads) {
  double largest = 0.0;
#pragma omp parallel num_threads(n_threads) reduction(max : largest)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t j = 0; j < live; ++j) largest = fmax(largest, largest_of(c + p.all.index[j] * d, d, 1, d, p.shift));
  }
  set_scale(largest, d, p);
}

// The changed centroids, unless they are so many that sorting the rows out costs more than it saves.
template <class T>
void find_changed(const T* c, const T* previous, int64_t k, int64_t d, const Prepared<T>& p, int n_threads) {
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t j = 0; j < k; ++j) p.differs[j] = !equal_rows(c + j * d, previous + j * d, d);
  }
  const int64_t live = *p.all.live;
  int64_t count = 0;
  for (int64_t at = 0; at < live; ++at) {
    if (p.differs[p.all.index[at]]) p.position[count++] = at;
  }
  if (count > live - live / 8) {
    *p.changed.live = -1;
    return;
  }
  *p.changed.live = count;
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t at = 0; at < panels_of(count) * kPanel; ++at) {
      if (at < count) {
        copy_position(p.all, p.position[at], p.changed, at, d);
      } else {
        pack_padding(p.changed, at, d);
      }
    }
  }
}

template <class T>
void prepare(const T* c, int64_t k, int64_t d, const T* previous, char* workspace, int n_threads) {
  IeeeMode ieee;
  Prepared<T> p;
  layout(k, d, d <= kNarrow, previous != nullptr, workspace, &p);
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t j = 0; j < k; ++j) p.hash[j] = hash_row(c + j * d, d);
  }
  const int64_t live = *p.all.live = find_distinct(c, k, d, p);
  find_shift(c, live, d, p, n_threads);
  find_scale(c, live, d, p, n_threads);
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode own;
#pragma omp for schedule(static)
    for (int64_t at = 0; at < (d <= kNarrow ? whole_tiles(live) : panels_of(k) * kPanel); ++at) {
      if (d <= kNarrow) {
        pack_narrow(c, d, p, at);
      } else if (at < live) {
        pack_wide(c + p.all.index[at] * d, d, p, at);
      } else {
        pack_padding(p.all, at, d);
      }
    }
  }
  set_largest(p.all);
  if (previous != nullptr && d > kNarrow) find_changed(c, previous, k, d, p, n_threads);
}

template <class T>
void assign_all(const T* x, int64_t row_stride, int64_t n, int64_t d, const T* centroids, int64_t k, const T* previous,
                char* workspace, char* scratch, const int64_t* before, int64_t* labels, int64_t* counts,
                int n_threads) {
  Prepared<T> p;
  layout(k, d, d <= kNarrow, previous != nullptr, workspace, &p);
  if (*p.all.live == 0) {
    for (int64_t row = 0; row < n; ++row) labels[row] = -1;
    return;
  }
  const int64_t rows = d <= kNarrow ? kNarrowBlock : block_rows(d), blocks = (n + rows - 1) / rows;
  int64_t rechecked = 0, rescanned = 0;
#pragma omp parallel num_threads(n_threads) reduction(+ : rechecked, rescanned)
  {
    IeeeMode ieee;
    Scratch wide = {};
    NarrowScratch narrow = {};
    const int thread = omp_get_thread_num();
    if (d <= kNarrow) {
      narrow_scratch(d, scratch + thread * narrow_scratch(d, nullptr, &narrow), &narrow);
    } else {
      wide_scratch(d, scratch + thread * wide_scratch(d, nullptr, &wide), &wide);
    }
    int64_t own[2] = {};
#pragma omp for schedule(dynamic)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t start = block * rows, count = n - start < rows ? n - start : rows;
      if (d <= kNarrow) {
        transpose(x + start * row_stride, row_stride, count, d, p, narrow);
        assign_columns(x + start * row_stride, row_stride, count, d, centroids, p, narrow, labels + start, own);
      } else {
        // The next block of this thread, if the threads keep in step; rows with gaps between them are left alone.
        const int64_t later = (block + n_threads) * rows;
        const T* next = row_stride == d && later < n ? x + later * d : x;
        const Ahead ahead = {
            reinterpret_cast<const char*>(next),
            reinterpret_cast<const char*>(next + (next == x ? 0 : (n - later < rows ? n - later : rows) * d))};
        assign_block_wide(x + start * row_stride, row_stride, count, d, centroids, previous, p, wide,
                          before == nullptr ? nullptr : before + start, labels + start, own, ahead);
      }
    }
    rechecked += own[0];
    rescanned += own[1];
  }
  counts[0] += rechecked;
  counts[1] += rescanned;
}

}  // namespace

int assign_workspace(int dtype, int64_t k, int64_t d, bool with_previous, int64_t* bytes) {
  Prepared<float> p32;
  Prepared<double> p64;
  if (dtype == DCFAST_FLOAT32) {
    *bytes = layout(k, d, d <= kNarrow, with_previous, nullptr, &p32);
  } else if (dtype == DCFAST_FLOAT64) {
    *bytes = layout(k, d, d <= kNarrow, with_previous, nullptr, &p64);
  } else {
    return DCFAST_INVALID_DTYPE;
  }
  // Beyond a million columns rounding takes more than a hundredth of a length, more than the bounds allow for.
  return k <= INT32_MAX - kPanel && d <= (int64_t(1) << 20) ? DCFAST_OK : DCFAST_OUT_OF_RANGE;
}

int assign_prepare(int dtype, const void* centroids, int64_t k, int64_t d, const void* previous, void* workspace,
                   int n_threads) {
  char* base = static_cast<char*>(workspace);
  if (dtype == DCFAST_FLOAT32) {
    prepare(static_cast<const float*>(centroids), k, d, static_cast<const float*>(previous), base, n_threads);
  } else if (dtype == DCFAST_FLOAT64) {
    prepare(static_cast<const double*>(centroids), k, d, static_cast<const double*>(previous), base, n_threads);
  } else {
    return DCFAST_INVALID_DTYPE;
  }
  return DCFAST_OK;
}

int assign_scratch(int dtype, int64_t d, int64_t* bytes) {
  if (dtype != DCFAST_FLOAT32 && dtype != DCFAST_FLOAT64) return DCFAST_INVALID_DTYPE;
  Scratch wide = {};
  NarrowScratch narrow = {};
  *bytes = d <= kNarrow ? narrow_scratch(d, nullptr, &narrow) : wide_scratch(d, nullptr, &wide);
  return DCFAST_OK;
}

int assign(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d, const void* centroids, int64_t k,
           const void* previous, const void* workspace, void* scratch, const int64_t* before, int64_t* labels,
           int64_t* counts, int n_threads) {
  char* base = static_cast<char*>(const_cast<void*>(workspace));
  char* own = static_cast<char*>(scratch);
  if (dtype == DCFAST_FLOAT32) {
    assign_all(static_cast<const float*>(x), row_stride, n, d, static_cast<const float*>(centroids), k,
               static_cast<const float*>(previous), base, own, before, labels, counts, n_threads);
  } else if (dtype == DCFAST_FLOAT64) {
    assign_all(static_cast<const double*>(x), row_stride, n, d, static_cast<const double*>(centroids), k,
               static_cast<const double*>(previous), base, own, before, labels, counts, n_threads);
  } else {
    return DCFAST_INVALID_DTYPE;
  }
  return DCFAST_OK;
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
