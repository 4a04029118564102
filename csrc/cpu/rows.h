// A row added to the exact sum of a cluster, and a sum rounded to a mean. See fixed.h for the representation.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "fixed.h"
#include "simd.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

// Adding 1.5 * 2^52 rounds |v| < 2^51 to an integer and leaves it in the low bits of the sum.
constexpr double kMagic = 6755399441055744.0;

inline Longs as_integers(Doubles shifted) { return (Longs)shifted - (Longs)broadcast(kMagic); }

// The unit of the top word, in those of the lowest.
inline double top_unit(int64_t n_words) { return ldexp(1.0, int(kDigit * (n_words - 1))); }

// Add w * (columns [first, last) of the row here) to the words of one cluster.
template <class T>
inline __attribute__((always_inline)) void add_row(const T* here, int64_t d, int64_t first, int64_t last, double w,
                                                   const double* scale, double top, int64_t n_words, int64_t* sum) {
  typedef T Row __attribute__((vector_size(kDoubles * sizeof(T)), aligned(sizeof(T)), may_alias));
  int64_t i = first;
  for (; i + kDoubles <= last; i += kDoubles) {
    // RN64(w x), and without rounding where w is 1 or -1; the scaling by a power of two is exact.
    Doubles v = __builtin_convertvector(*reinterpret_cast<const Row*>(here + i), Doubles) * w * load(scale + i);
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

// Carry the words of one cluster: word by word over the columns, which the compiler turns into vectors.
inline void carry_row(int64_t* sum, int64_t n_words, int64_t d) {
  for (int64_t w = 0; w + 1 < n_words; ++w) {
    for (int64_t i = 0; i < d; ++i) {
      const int64_t up = sum[w * d + i] >> kDigit;  // arithmetic: floor
      sum[w * d + i] -= up * (int64_t(1) << kDigit);
      sum[(w + 1) * d + i] += up;
    }
  }
}

constexpr int64_t kMaxWords = 26;  // 2^(40 * 25) is still a double, and spans all data within 2^+-480

// RN_T(RN64(S) / total) of one cluster.
template <class T>
void mean_row(const int64_t* words, int64_t n_words, int64_t d, const int64_t* low, double total, T* out) {
  for (int64_t i = 0; i < d; ++i) {
    int64_t digits[kMaxWords];
    for (int64_t w = 0; w < n_words; ++w) digits[w] = words[w * d + i];
    carry(digits, n_words, 1, kDigit);
    const int64_t top = n_words == 2 ? digits[1] : 0;
    if (n_words == 2 && top < (1 << 22) && top >= -(1 << 22) && low[i] > -1000 && low[i] < 900) {
      // The sum fits an int64, whose conversion rounds to nearest even; 2^low is a normal number, and so is the
      // product.
      const int64_t sum = top * (int64_t(1) << kDigit) + digits[0];
      const int64_t bits = (low[i] + 1023) << 52;
      double unit;
      memcpy(&unit, &bits, 8);
      out[i] = T(double(sum) * unit / total);
      continue;
    }
    out[i] = T(round_words(digits, n_words, 1, kDigit, low[i]) / total);
  }
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
