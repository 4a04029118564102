// Exact sums per cluster in fixed point, and the means that they round to. See fixed.h for the representation, rows.h
// for what is done to a row.
//
// Threads share the columns first, so that each adds to words of its own and reads its part of every row; where
// there are too few columns (a part is at least 16: a cache line of float32) they share the rows, each with a
// copy of the words that is small because the columns are few.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "dtype.h"
#include "float_env.h"
#include "rows.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr int64_t kMinColumns = 16;

constexpr int64_t kBatch = 1024;   // rows among which those to be moved are looked for at once
constexpr int64_t kAhead = 12;     // rows: far enough ahead for a line of memory to arrive
constexpr int64_t kFetched = 256;  // bytes of a row; what follows the processor foresees

// With previous, rows leave the cluster that they were in; those that stay are not touched. counts may be null.
template <class T>
void move_rows(const T* x, int64_t row_stride, int64_t n, int64_t d, int64_t first, int64_t last, const int64_t* labels,
               const int64_t* previous, int64_t k, const double* weight, const double* scale, const Units& units,
               int64_t* words, int64_t* counts) {
  const int64_t bytes = (last - first) * int64_t(sizeof(T)), fetched = bytes < kFetched ? bytes : kFetched;
  for (int64_t start = 0; start < n; start += kBatch) {
    const int64_t stop = n - start < kBatch ? n : start + kBatch;
    int64_t rows[kBatch], count = 0;
    for (int64_t row = start; row < stop; ++row) {  // no branch: which rows move cannot be foreseen
      rows[count] = row;
      count += previous == nullptr || labels[row] != previous[row];
    }
    for (int64_t at = 0; at < count; ++at) {
      const int64_t row = rows[at];
      if (count < stop - start && at + kAhead < count) {
        const char* later = reinterpret_cast<const char*>(x + rows[at + kAhead] * row_stride + first);
        for (int64_t byte = 0; byte < fetched; byte += 64) __builtin_prefetch(later + byte);
      }
      const double w = weight != nullptr ? weight[row] : 1.0;
      if (w == 0.0) continue;
      int64_t to = labels[row], from = previous != nullptr ? previous[row] : -1;
      if (to >= k) to = -1;
      if (from >= k) from = -1;
      move_row(x + row * row_stride, d, first, last, w, scale, units, words, to, from);
      if (counts == nullptr) continue;
      if (to >= 0) ++counts[to];
      if (from >= 0) --counts[from];
    }
  }
}

// `partial` and `partial_counts` hold the words and counts of all copies but the first, zeros at the start and at the
// end.
template <class T>
void accumulate_all(const T* x, int64_t row_stride, int64_t n, int64_t d, const int64_t* labels,
                    const int64_t* previous, int64_t k, const double* weight, const double* scale, int64_t n_words,
                    int64_t* words, int64_t* counts, int64_t* partial, int64_t* partial_counts, int64_t copies,
                    int n_threads) {
  const int64_t parts = n_threads / copies < 1 ? 1 : n_threads / copies;
  int64_t width = (d + parts - 1) / parts;
  width = (width + kMinColumns - 1) / kMinColumns * kMinColumns;
  const int64_t size = k * n_words * d;
  const Units units = units_of(n_words);
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static, 1)
    for (int64_t task = 0; task < parts * copies; ++task) {
      int64_t copy = task / parts, first = task % parts * width, last = first + width < d ? first + width : d;
      int64_t start = n * copy / copies, stop = n * (copy + 1) / copies;
      const double* own_weight = weight != nullptr ? weight + start : nullptr;
      const int64_t* own_previous = previous != nullptr ? previous + start : nullptr;
      if (first < last) {
        int64_t* own_counts = copy == 0 ? counts : partial_counts + (copy - 1) * k;
        move_rows(x + start * row_stride, row_stride, stop - start, d, first, last, labels + start, own_previous, k,
                  own_weight, scale, units, copy == 0 ? words : partial + (copy - 1) * size,
                  first == 0 ? own_counts : nullptr);
      }
    }
#pragma omp for schedule(static)
    for (int64_t cluster = 0; cluster < k; ++cluster) {
      int64_t* sum = words + cluster * n_words * d;
      for (int64_t copy = 0; copy < copies - 1; ++copy) {
        int64_t* from = partial + copy * size + cluster * n_words * d;
        for (int64_t i = 0; i < n_words * d; ++i) {
          sum[i] += from[i];
          from[i] = 0;
        }
        counts[cluster] += partial_counts[copy * k + cluster];
        partial_counts[copy * k + cluster] = 0;
      }
      carry_row(sum, n_words, d);
    }
  }
}

template <class T>
void means_all(const int64_t* words, int64_t k, int64_t n_words, int64_t d, const int64_t* low, const double* total,
               const T* previous, T* out, int n_threads) {
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t cluster = 0; cluster < k; ++cluster) {
      if (total[cluster] > 0.0) {
        mean_row(words + cluster * n_words * d, n_words, d, low, total[cluster], out + cluster * d);
      } else {
        memcpy(out + cluster * d, previous + cluster * d, size_t(d) * sizeof(T));
      }
    }
  }
}

// Row-wise, so that columns are lanes.
template <class T>
void widen_range(const T* x, int64_t row_stride, int64_t n, int64_t columns, T* least, T* most) {
  for (int64_t row = 0; row < n; ++row) {
    const T* here = x + row * row_stride;
    for (int64_t i = 0; i < columns; ++i) {
      const T magnitude = here[i] < T(0) ? -here[i] : here[i];
      const T finite = magnitude < T(INFINITY) ? magnitude : T(0);  // a NaN is not
      const T some = finite > T(0) ? finite : T(INFINITY);
      most[i] = finite > most[i] ? finite : most[i];
      least[i] = some < least[i] ? some : least[i];
    }
  }
}

// The smallest non-zero and the largest finite magnitude of every column of w x.
template <class T>
void column_range_all(const T* x, int64_t row_stride, int64_t n, int64_t d, const double* weight, double* smallest,
                      double* largest, int64_t copies, int n_threads) {
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static, 1)
    for (int64_t copy = 0; copy < copies; ++copy) {
      constexpr int64_t kColumns = 256;
      const int64_t start = n * copy / copies, stop = n * (copy + 1) / copies;
      for (int64_t first = 0; first < d; first += kColumns) {
        const int64_t count = d - first < kColumns ? d - first : kColumns;
        double* low = smallest + copy * d + first;
        double* high = largest + copy * d + first;
        if (weight == nullptr) {
          // Short rows side by side fill the lanes: columns i, i + d, ... are the same column.
          const int64_t folds = row_stride == d && d < kMinColumns ? kColumns / d : 1;
          const int64_t wide_rows = (stop - start) / folds, rest = start + wide_rows * folds;
          T least[kColumns], most[kColumns];
          for (int64_t i = 0; i < folds * count; ++i) least[i] = T(low[i % count]), most[i] = T(high[i % count]);
          widen_range(x + start * row_stride + first, folds * row_stride, wide_rows, folds * count, least, most);
          widen_range(x + rest * row_stride + first, row_stride, stop - rest, count, least, most);
          for (int64_t i = 0; i < folds * count; ++i) {
            low[i % count] = fmin(low[i % count], double(least[i]));
            high[i % count] = fmax(high[i % count], double(most[i]));
          }
        } else {
          for (int64_t row = start; row < stop; ++row) {
            const T* here = x + row * row_stride + first;
            for (int64_t i = 0; i < count; ++i) {
              const double magnitude = fabs(double(here[i]) * weight[row]);
              const double finite = magnitude < INFINITY ? magnitude : 0.0;
              const double some = finite > 0.0 ? finite : INFINITY;
              high[i] = finite > high[i] ? finite : high[i];
              low[i] = some < low[i] ? some : low[i];
            }
          }
        }
      }
    }
  }
}

// `grid_of` of dcfast/ops/accumulate/grid.py, with its constants.
void find_grid(const double* smallest, const double* largest, int64_t copies, int64_t d, int64_t n_rows, int bits,
               int64_t* low, double* scale, int64_t* found) {
  constexpr int64_t kElementBits = 51, kSumBits = 62;
  int64_t lowest = INT32_MAX, highest = INT32_MIN, span = 0;
  for (int64_t i = 0; i < d; ++i) {
    double least = INFINITY, most = 0.0;
    for (int64_t copy = 0; copy < copies; ++copy) {
      least = fmin(least, smallest[copy * d + i]);
      most = fmax(most, largest[copy * d + i]);
    }
    int exponent, top;
    frexp(least < INFINITY ? least : 1.0, &exponent);
    frexp(most, &top);
    low[i] = exponent - bits;
    const int64_t high = top > low[i] ? top : low[i];
    scale[i] = ldexp(1.0, int(-low[i]));
    lowest = low[i] < lowest ? low[i] : lowest;
    highest = high > highest ? high : highest;
    span = high - low[i] > span ? high - low[i] : span;
  }
  int64_t count = 1;
  while ((int64_t(1) << count) < n_rows) ++count;
  const int64_t need = span - kElementBits > span + count - kSumBits ? span - kElementBits : span + count - kSumBits;
  found[0] = 1 + (need > 0 ? (need + kDigit - 1) / kDigit : 0);
  found[1] = lowest + bits;
  found[2] = highest;
}

}  // namespace

int accumulate(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d, const int64_t* labels,
               const int64_t* previous, int64_t k, const double* weight, const double* scale, int64_t n_words,
               int64_t* words, int64_t* counts, int64_t* partial, int64_t* partial_counts, int64_t copies,
               int n_threads) {
  if (n > (int64_t(1) << 22) || n_words < 1 || n_words > kMaxWords) return DCFAST_OUT_OF_RANGE;
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    accumulate_all(static_cast<const T*>(x), row_stride, n, d, labels, previous, k, weight, scale, n_words, words,
                   counts, partial, partial_counts, copies, n_threads);
  });
}

int means(int dtype, const int64_t* words, int64_t k, int64_t n_words, int64_t d, const int64_t* low,
          const double* total, const void* previous, void* out, int n_threads) {
  if (n_words < 1 || n_words > kMaxWords) return DCFAST_OUT_OF_RANGE;
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    means_all(words, k, n_words, d, low, total, static_cast<const T*>(previous), static_cast<T*>(out), n_threads);
  });
}

int column_range(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d, const double* weight,
                 double* smallest, double* largest, int64_t copies, int n_threads) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    column_range_all(static_cast<const T*>(x), row_stride, n, d, weight, smallest, largest, copies, n_threads);
  });
}

int sum_grid(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d, const double* weight, int64_t copies,
             double* ranges, int64_t* low, double* scale, int64_t* found, int n_threads) {
  IeeeMode ieee;
  double *smallest = ranges, *largest = ranges + copies * d;
  for (int64_t i = 0; i < copies * d; ++i) smallest[i] = INFINITY, largest[i] = 0.0;
  const int status = column_range(dtype, x, row_stride, n, d, weight, smallest, largest, copies, n_threads);
  if (status != DCFAST_OK) return status;
  const int bits = dtype == DCFAST_FLOAT64 || weight != nullptr ? 53 : 24;
  find_grid(smallest, largest, copies, d, n, bits, low, scale, found);
  return DCFAST_OK;
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
