// Exact sums as integers, on the device; csrc/cpu/fixed.h describes the representation.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace dcfast {
namespace cuda {

constexpr int kDigit = 40;

// 2^n in double, for n in [-1022, 1023].
__device__ __forceinline__ double power_of_two(int64_t n) { return __longlong_as_double((n + 1023) << 52); }

// RN64 of the sum over w of word[w] 2^(unit + kBits w); the words, `stride` apart, need not be carried.
//
// Two passes over the words, both carrying from the lowest, so that none is kept: the first finds the sign, the second
// runs over the words of |S| and keeps the three digits from the highest that is not zero, and whether anything lies
// below them. Nothing lies below 2^-1074, so that a subnormal sum is exact.
template <int kBits>
__device__ __forceinline__ double round_words(const int64_t* words, int64_t n, int64_t stride, int64_t unit) {
  constexpr int64_t kMask = (int64_t(1) << kBits) - 1;
  int64_t carry = 0, value = 0;
#pragma unroll 4
  for (int64_t w = 0; w < n; ++w) {
    value = words[w * stride] + carry;
    carry = value >> kBits;
  }
  const bool negative = value < 0;
  int64_t last = 0, last_but_one = 0, passed = 0;
  int64_t d0 = 0, d1 = 0, d2 = 0, below = 0, top = 0;
  carry = 0;
#pragma unroll 4
  for (int64_t w = 0; w < n; ++w) {
    const int64_t word = words[w * stride];
    value = (negative ? -word : word) + carry;
    carry = value >> kBits;
    const int64_t digit = w + 1 < n ? value & kMask : value;
    if (digit != 0) {
      d0 = digit;
      d1 = last;
      d2 = last_but_one;
      below = passed;
      top = w;
    }
    passed |= last_but_one;
    last_but_one = last;
    last = digit;
  }
  if (d0 == 0) return 0.0;
  // The leading 62 bits as one integer whose lowest bit also says whether anything lies below: its conversion rounds to
  // nearest even, once.
  const int unused = __clzll(d0) - 2, shift = unused > 0 ? unused : 0;
  const int near = shift < kBits ? shift : kBits, far = shift - near;
  int64_t leading = (d0 << shift) | (d1 >> (kBits - near)) << far;
  int64_t rest = (d1 & ((int64_t(1) << (kBits - near)) - 1)) | below;
  if (far > 0) {
    leading |= d2 >> (kBits - far);
    rest |= d2 & ((int64_t(1) << (kBits - far)) - 1);
  } else {
    rest |= d2;
  }
  leading |= rest != 0;
  const double rounded = __ll2double_rn(negative ? -leading : leading);
  // In two steps, since 2^exponent may not be a double.
  const int64_t exponent = unit + top * kBits - shift, half = exponent >> 1;
  return rounded * power_of_two(half) * power_of_two(exponent - half);
}

}  // namespace cuda
}  // namespace dcfast
