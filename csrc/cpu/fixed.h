// Exact sums as integers. A number is the sum of word[w] * 2^(unit + kDigit * w): every word but the top one is a
// digit of kDigit bits once carried, the top one is signed and takes what is left. Integer addition needs no
// order, so threads, chunks and machines agree to the bit.
#pragma once

#include <math.h>
#include <stdint.h>

namespace dcfast {
namespace DCFAST_ISA {

// 40 bits leave 2^22 additions of a digit below 2^39 without a carry, and two words hold any column whose
// elements span up to 91 bits: all float32 data that is not wildly scaled.
constexpr int kDigit = 40;

// Carry n words that lie `stride` apart: afterwards all but the top one are in [0, 2^bits).
static inline void carry(int64_t* words, int64_t n, int64_t stride, int bits) {
  for (int64_t w = 0; w + 1 < n; ++w) {
    int64_t up = words[w * stride] >> bits;          // arithmetic: floor
    words[w * stride] -= up * (int64_t(1) << bits);  // a negative number must not be shifted to the left
    words[(w + 1) * stride] += up;
  }
}

// RN64 of carried words in units of 2^unit, `bits` per digit. Overwrites the words.
static inline double round_words(int64_t* words, int64_t n, int64_t stride, int bits, int64_t unit) {
  bool negative = words[(n - 1) * stride] < 0;
  if (negative) {
    for (int64_t w = 0; w < n; ++w) words[w * stride] = -words[w * stride];
    carry(words, n, stride, bits);
  }
  int64_t top = n - 1;
  while (top > 0 && words[top * stride] == 0) --top;
  // At least 54 leading bits as one integer, and whether anything lies below them.
  unsigned __int128 leading = (unsigned __int128)(uint64_t)words[top * stride];
  int64_t exponent = unit + bits * top;
  bool below = false;
  for (int taken = 0; taken < 2 && top > 0 && (leading >> (126 - bits)) == 0; ++taken) {
    --top;
    leading = (leading << bits) | (uint64_t)words[top * stride];
    exponent -= bits;
  }
  for (int64_t w = 0; w < top; ++w) below = below || words[w * stride] != 0;
  if (leading == 0) return 0.0;
  // Round to 53 bits here, or to the fewer that fit where the result is subnormal: ldexp then has nothing to round.
  uint64_t high = uint64_t(leading >> 64);
  int length = high != 0 ? 128 - __builtin_clzll(high) : 64 - __builtin_clzll(uint64_t(leading));
  int keep = 53;
  if (exponent + length - 53 < -1074) keep = int(exponent + length + 1074);
  if (keep < 0) return negative ? -0.0 : 0.0;
  int drop = length - keep;
  uint64_t mantissa;
  if (drop <= 0) {
    mantissa = (uint64_t)leading;
    drop = 0;
  } else {
    mantissa = (uint64_t)(leading >> drop);
    unsigned __int128 rest = leading & (((unsigned __int128)1 << drop) - 1), half = (unsigned __int128)1 << (drop - 1);
    if (rest > half || (rest == half && (below || (mantissa & 1)))) ++mantissa;
  }
  double value = ldexp(double(mantissa), int(exponent + drop));
  return negative ? -value : value;
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
