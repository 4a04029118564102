// Exact sums of any doubles: digits of 32 bits for every exponent, as in csrc/cpu/exact_sum.h. A warp adds up what its
// values put into the same digits, which are few.
#pragma once

#include "rows.cuh"

namespace dcfast {
namespace cuda {

constexpr int kSumDigit = 32;
constexpr int kDigits = 68;    // 2^-1074 ... 2^1023 and 62 bits for the carries of 2^62 additions
constexpr int kSpecials = 77;  // words 77, 78, 79 count +inf, -inf and NaN
constexpr int kSumWords = 80;

// Adds the values of a warp, one per lane: put(word, amount) by one lane for each sum of what goes into one word.
template <class Put>
__device__ __forceinline__ void add_exactly(double value, Put put) {
  const int lane = threadIdx.x % kWarp;
  const uint64_t bits = uint64_t(__double_as_longlong(value));
  int biased = int(bits >> 52) & 0x7FF;
  uint64_t mantissa = bits & ((uint64_t(1) << 52) - 1);
  const bool negative = bits >> 63 != 0, special = biased == 0x7FF;
  if (__any_sync(kAllLanes, special)) {
    const int kind = !special ? 3 : mantissa != 0 ? 2 : negative ? 1 : 0;
#pragma unroll
    for (int which = 0; which < 3; ++which) {
      const int count = __popc(__ballot_sync(kAllLanes, kind == which));
      if (lane == which) put(kSpecials + which, int64_t(count));
    }
    if (special) mantissa = 0;
  }
  // A subnormal has the exponent of the smallest normal number: units of 2^-1074 either way.
  if (biased > 0 && !special) mantissa |= uint64_t(1) << 52;
  biased = biased > 0 ? biased - 1 : 0;
  const int digit = biased / kSumDigit, shift = biased % kSumDigit;
  const uint64_t high = mantissa >> 1 >> (63 - shift);  // in two steps: a shift by 64 has no value
  const int64_t sign = negative ? -1 : 1;
  int64_t pieces[3] = {sign * int64_t(uint32_t(mantissa << shift)), sign * int64_t(mantissa << shift >> 32),
                       sign * int64_t(high)};
  unsigned left = __ballot_sync(kAllLanes, mantissa != 0);
  while (left != 0) {
    const int here = __shfl_sync(kAllLanes, digit, __ffs(int(left)) - 1);
    const bool own = mantissa != 0 && digit == here;
    left &= ~__ballot_sync(kAllLanes, own);
#pragma unroll
    for (int piece = 0; piece < 3; ++piece) {
      int64_t sum = own ? pieces[piece] : 0;
#pragma unroll
      for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
      if (lane == piece) put(here + piece, sum);
    }
    __syncwarp();  // the next digits may be these
  }
}

}  // namespace cuda
}  // namespace dcfast
