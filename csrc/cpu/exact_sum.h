// The exact sum of any doubles. It needs every exponent from 2^-1074 to 2^1023: a row of 32-bit digits, each in an
// int64 so that 2^30 additions need no carry. A mantissa of 53 bits shifted by up to 31 touches three digits.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "fixed.h"

namespace dcfast {
namespace DCFAST_ISA {

constexpr int kSumDigit = 32;
constexpr int64_t kDigits = 68;    // 2^-1074 ... 2^1023 and 62 bits for the carries of 2^62 additions
constexpr int64_t kSpecials = 77;  // words[77], [78], [79] count +inf, -inf and NaN
constexpr int64_t kSumWords = 80;  // words of one accumulator: a multiple of a cache line
constexpr int64_t kMaxAdd = 1 << 30;

static inline void add_exactly(double value, int64_t* words) {
  uint64_t bits;
  memcpy(&bits, &value, 8);
  int64_t biased = int64_t(bits >> 52) & 0x7FF;
  uint64_t mantissa = bits & ((uint64_t(1) << 52) - 1);
  bool negative = (bits >> 63) != 0;
  if (biased == 0x7FF) {
    ++words[kSpecials + (mantissa != 0 ? 2 : negative ? 1 : 0)];
    return;
  }
  if (biased > 0) {
    mantissa |= uint64_t(1) << 52;
    --biased;  // a subnormal has the exponent of the smallest normal number: units of 2^-1074 either way
  }
  int64_t at = biased / kSumDigit;
  unsigned __int128 shifted = (unsigned __int128)mantissa << (biased % kSumDigit);
  int64_t sign = negative ? -1 : 1;
  for (int digit = 0; digit < 3; ++digit) {
    words[at + digit] += sign * int64_t(uint32_t(shifted >> (kSumDigit * digit)));
  }
}

// The sum rounded once. Carries the words.
static inline double rounded_sum(int64_t* words) {
  carry(words, kDigits, 1, kSumDigit);
  const int64_t* special = words + kSpecials;
  if (special[2] > 0 || (special[0] > 0 && special[1] > 0)) return NAN;
  if (special[0] > 0 || special[1] > 0) return special[0] > 0 ? INFINITY : -INFINITY;
  int64_t digits[kDigits];
  memcpy(digits, words, sizeof digits);
  return round_words(digits, kDigits, 1, kSumDigit, -1074);
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
