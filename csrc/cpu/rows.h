// A row added to the exact sum of a cluster or taken from it, and a sum rounded to a mean. See fixed.h for the
// representation.
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

constexpr int64_t kMaxWords = 26;  // 2^(40 * 25) is still a double, and spans all data within 2^+-480

// The units of the words, in those of the lowest.
struct Units {
  int64_t n_words;
  double unit[kMaxWords], inverse[kMaxWords];
};

inline Units units_of(int64_t n_words) {
  Units u;
  u.n_words = n_words;
  for (int64_t word = 0; word < n_words; ++word) {
    u.unit[word] = ldexp(1.0, int(kDigit * word));
    u.inverse[word] = 1.0 / u.unit[word];
  }
  return u;
}

// Add w * (kLanes columns of the row here) to the words of the cluster that the row joins, and take them from those of
// the cluster that it leaves: the digits of -v are those of v, negated. kWords is n_words, or 0 for any number.
template <int kLanes, int kWords, bool kJoins, bool kLeaves, class T>
inline __attribute__((always_inline)) void move_lanes(const T* here, int64_t d, double w, const double* scale,
                                                      const Units& u, int64_t* joined, int64_t* left) {
  typedef T Row __attribute__((vector_size(kLanes * sizeof(T)), aligned(sizeof(T)), may_alias));
  typedef double Reals __attribute__((vector_size(kLanes * 8), aligned(8), may_alias));
  typedef int64_t Digits __attribute__((vector_size(kLanes * 8), aligned(8), may_alias));
  const Reals magic = Reals{} + kMagic;
  // RN64(w x), and without rounding where w is 1; the scaling by a power of two is exact.
  Reals v = __builtin_convertvector(*reinterpret_cast<const Row*>(here), Reals) * w;
  v *= *reinterpret_cast<const Reals*>(scale);
  for (int64_t word = (kWords > 0 ? kWords : u.n_words) - 1; word >= 0; --word) {
    const Reals shifted = v * u.inverse[word] + magic;
    const Digits digits = (Digits)shifted - (Digits)magic;
    if (kJoins) *reinterpret_cast<Digits*>(joined + word * d) += digits;
    if (kLeaves) *reinterpret_cast<Digits*>(left + word * d) -= digits;
    if (word > 0) v = v - (shifted - magic) * u.unit[word];  // exact: what is left needs no more bits than v had
  }
}

template <int kWords, bool kJoins, bool kLeaves, class T>
void move_columns(const T* here, int64_t d, int64_t first, int64_t last, double w, const double* scale, const Units& u,
                  int64_t* joined, int64_t* left) {
  int64_t i = first;
  for (; i + kDoubles <= last; i += kDoubles) {
    move_lanes<kDoubles, kWords, kJoins, kLeaves>(here + i, d, w, scale + i, u, joined + i, left + i);
  }
  for (; i + 2 <= last; i += 2) {
    move_lanes<2, kWords, kJoins, kLeaves>(here + i, d, w, scale + i, u, joined + i, left + i);
  }
  if (i < last) move_lanes<1, kWords, kJoins, kLeaves>(here + i, d, w, scale + i, u, joined + i, left + i);
}

// Columns [first, last) of a row from one cluster to another, either of which may be none: -1.
template <class T>
inline void move_row(const T* here, int64_t d, int64_t first, int64_t last, double w, const double* scale,
                     const Units& u, int64_t* words, int64_t to, int64_t from) {
  int64_t *joined = words + (to < 0 ? 0 : to) * u.n_words * d, *left = words + (from < 0 ? 0 : from) * u.n_words * d;
  if (u.n_words == 2) {  // float32 without weights, as a rule
    if (to >= 0 && from >= 0) {
      move_columns<2, true, true>(here, d, first, last, w, scale, u, joined, left);
    } else if (to >= 0) {
      move_columns<2, true, false>(here, d, first, last, w, scale, u, joined, left);
    } else if (from >= 0) {
      move_columns<2, false, true>(here, d, first, last, w, scale, u, joined, left);
    }
  } else {
    if (to >= 0) move_columns<0, true, false>(here, d, first, last, w, scale, u, joined, left);
    if (from >= 0) move_columns<0, false, true>(here, d, first, last, w, scale, u, joined, left);
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
