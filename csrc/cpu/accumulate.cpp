// Exact sums per cluster in fixed point, and the means that they round to. See fixed.h for the representation.
//
// Threads share the columns first, so that each adds to words of its own and reads its part of every row; where
// there are too few columns (a part is at least 16: a cache line of float32) they share the rows, each with a
// copy of the words that is small because the columns are few.
#include <math.h>
#include <stdint.h>

#include "dcfast/core.h"
#include "fixed.h"
#include "float_env.h"
#include "simd.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr int64_t kMinColumns = 16;

// Adding 1.5 * 2^52 rounds |v| < 2^51 to an integer and leaves it in the low bits of the sum.
constexpr double kMagic = 6755399441055744.0;

inline Longs as_integers(Doubles shifted) { return (Longs)shifted - (Longs)broadcast(kMagic); }

template <class T>
void add_rows(const T* x, int64_t row_stride, int64_t n, int64_t d, int64_t first, int64_t last, const int64_t* labels,
              int64_t k, const double* weight, const double* scale, int64_t n_words, int64_t* words) {
  typedef T Row __attribute__((vector_size(kDoubles * sizeof(T)), aligned(sizeof(T)), may_alias));
  const double top = ldexp(1.0, int(kDigit * (n_words - 1)));
  for (int64_t row = 0; row < n; ++row) {
    int64_t label = labels[row];
    if (label < 0 || label >= k || (weight != nullptr && weight[row] == 0.0)) continue;
    const T* here = x + row * row_stride;
    int64_t* sum = words + label * n_words * d;
    double w = weight != nullptr ? weight[row] : 1.0;
    int64_t i = first;
    for (; i + kDoubles <= last; i += kDoubles) {
      Doubles v = __builtin_convertvector(*reinterpret_cast<const Row*>(here + i), Doubles);
      if (weight != nullptr) v = v * w;  // RN64(w x); the scaling by a power of two is exact
      v = v * load(scale + i);
      double unit = top;
      for (int64_t word = n_words - 1; word > 0; --word) {
        Doubles shifted = v * (1.0 / unit) + kMagic;
        *reinterpret_cast<Longs*>(sum + word * d + i) += as_integers(shifted);
        v = v - (shifted - kMagic) * unit;  // exact: what is left needs no more bits than v had
        unit *= 1.0 / double(int64_t(1) << kDigit);
      }
      *reinterpret_cast<Longs*>(sum + i) += as_integers(v + kMagic);
    }
    for (; i < last; ++i) {
      double v = (double(here[i]) * w) * scale[i], unit = top;
      for (int64_t word = n_words - 1; word > 0; --word) {
        double digit = (v * (1.0 / unit) + kMagic) - kMagic;
        sum[word * d + i] += int64_t(digit);
        v = v - digit * unit;
        unit *= 1.0 / double(int64_t(1) << kDigit);
      }
      sum[i] += int64_t(v);
    }
  }
}

template <class T>
void accumulate_all(const T* x, int64_t row_stride, int64_t n, int64_t d, const int64_t* labels, int64_t k,
                    const double* weight, const double* scale, int64_t n_words, int64_t* words, int64_t* counts,
                    int64_t copies, int n_threads) {
  const int64_t parts = n_threads / copies < 1 ? 1 : n_threads / copies;
  int64_t width = (d + parts - 1) / parts;
  width = (width + kMinColumns - 1) / kMinColumns * kMinColumns;
  const int64_t size = k * n_words * d;
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static, 1)
    for (int64_t task = 0; task < parts * copies; ++task) {
      int64_t copy = task / parts, first = task % parts * width, last = first + width < d ? first + width : d;
      int64_t start = n * copy / copies, stop = n * (copy + 1) / copies;
      const double* own_weight = weight != nullptr ? weight + start : nullptr;
      if (first < last) {
        add_rows(x + start * row_stride, row_stride, stop - start, d, first, last, labels + start, k, own_weight, scale,
                 n_words, words + copy * size);
      }
      if (task % parts == 0) {
        for (int64_t row = start; row < stop; ++row) {
          bool counted = labels[row] >= 0 && labels[row] < k && (weight == nullptr || weight[row] != 0.0);
          if (counted) ++counts[copy * k + labels[row]];
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t cluster = 0; cluster < k; ++cluster) {
      for (int64_t copy = 1; copy < copies; ++copy) {
        int64_t* from = words + copy * size + cluster * n_words * d;
        for (int64_t i = 0; i < n_words * d; ++i) {
          words[cluster * n_words * d + i] += from[i];
          from[i] = 0;
        }
        counts[cluster] += counts[copy * k + cluster];
        counts[copy * k + cluster] = 0;
      }
      for (int64_t i = 0; i < d; ++i) carry(words + cluster * n_words * d + i, n_words, d, kDigit);
    }
  }
}

constexpr int64_t kMaxWords = 26;  // 2^(40 * 25) is still a double, and spans all data within 2^+-480

template <class T>
void means_all(const int64_t* words, int64_t k, int64_t n_words, int64_t d, const int64_t* low, const double* total,
               const T* previous, T* out) {
  IeeeMode ieee;
  for (int64_t cluster = 0; cluster < k; ++cluster) {
    for (int64_t i = 0; i < d; ++i) {
      int64_t at = cluster * d + i, digits[kMaxWords];
      if (!(total[cluster] > 0.0)) {
        out[at] = previous[at];
        continue;
      }
      for (int64_t w = 0; w < n_words; ++w) digits[w] = words[(cluster * n_words + w) * d + i];
      carry(digits, n_words, 1, kDigit);
      out[at] = T(round_words(digits, n_words, 1, kDigit, low[i]) / total[cluster]);
    }
  }
}

}  // namespace

int accumulate(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d, const int64_t* labels, int64_t k,
               const double* weight, const double* scale, int64_t n_words, int64_t* words, int64_t* counts,
               int64_t copies, int n_threads) {
  if (n > (int64_t(1) << 22) || n_words < 1 || n_words > kMaxWords) return DCFAST_OUT_OF_RANGE;
  if (dtype == DCFAST_FLOAT32) {
    accumulate_all(static_cast<const float*>(x), row_stride, n, d, labels, k, weight, scale, n_words, words, counts,
                   copies, n_threads);
  } else if (dtype == DCFAST_FLOAT64) {
    accumulate_all(static_cast<const double*>(x), row_stride, n, d, labels, k, weight, scale, n_words, words, counts,
                   copies, n_threads);
  } else {
    return DCFAST_INVALID_DTYPE;
  }
  return DCFAST_OK;
}

int means(int dtype, const int64_t* words, int64_t k, int64_t n_words, int64_t d, const int64_t* low,
          const double* total, const void* previous, void* out) {
  if (n_words < 1 || n_words > kMaxWords) return DCFAST_OUT_OF_RANGE;
  if (dtype == DCFAST_FLOAT32) {
    means_all(words, k, n_words, d, low, total, static_cast<const float*>(previous), static_cast<float*>(out));
  } else if (dtype == DCFAST_FLOAT64) {
    means_all(words, k, n_words, d, low, total, static_cast<const double*>(previous), static_cast<double*>(out));
  } else {
    return DCFAST_INVALID_DTYPE;
  }
  return DCFAST_OK;
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
