// What numpy.random.RandomState(seed) draws, for many seeds at once: its `choice` without replacement, then its uniform
// numbers. MT19937 (Matsumoto & Nishimura 1998), seeded by one 32-bit integer.
#include <omp.h>
#include <stdint.h>
#include <string.h>

#include "dcfast/core.h"
#include "float_env.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

class Twister {
 public:
  explicit Twister(uint32_t seed) : at_(kLength) {
    state_[0] = seed;
    for (uint32_t i = 1; i < kLength; ++i) {
      state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i;
    }
  }

  // In [0, 1), a multiple of 2^-53.
  double uniform() {
    const uint32_t high = next() >> 5, low = next() >> 6;
    return (high * 67108864.0 + low) / 9007199254740992.0;
  }

 private:
  static constexpr uint32_t kLength = 624, kShift = 397;

  uint32_t next() {
    if (at_ == kLength) twist();
    uint32_t y = state_[at_++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9D2C5680u;
    y ^= (y << 15) & 0xEFC60000u;
    return y ^ (y >> 18);
  }

  void twist() {
    for (uint32_t i = 0; i < kLength; ++i) {
      const uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % kLength] & 0x7FFFFFFFu);
      state_[i] = state_[(i + kShift) % kLength] ^ (y >> 1) ^ ((y & 1) != 0 ? 0x9908B0DFu : 0u);
    }
    at_ = 0;
  }

  uint32_t state_[kLength], at_;
};

// `count` of n rows without replacement, a row with the probability share[row] (null: all the same). left and
// cumulative (n each) are scratch.
void choose(Twister* twister, int64_t n, const double* share, int64_t count, double* left, double* cumulative,
            int64_t* chosen) {
  if (count == 0) return;
  for (int64_t row = 0; row < n; ++row) left[row] = share != nullptr ? share[row] : 1.0 / double(n);
  for (int64_t found = 0; found < count;) {
    double sum = 0.0;
    for (int64_t row = 0; row < n; ++row) cumulative[row] = sum += left[row];
    const int64_t draws = count - found;
    for (int64_t draw = 0; draw < draws; ++draw) {
      const double u = twister->uniform();
      int64_t low = 0, high = n;  // the first row whose share of the sum exceeds u
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (cumulative[middle] / sum <= u) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      if (left[low] == 0.0) continue;  // drawn before in this round
      left[low] = 0.0;
      chosen[found++] = low;
    }
  }
}

}  // namespace

int draw_rows(const int64_t* seeds, const int64_t* offsets, int64_t problems, const double* shares, int64_t count,
              int64_t n_uniform, int64_t runs, double* workspace, int64_t most_rows, int64_t* rows, double* uniform,
              int n_threads) {
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
    double* left = workspace + omp_get_thread_num() * 2 * most_rows;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < problems; ++b) {
      Twister twister(static_cast<uint32_t>(seeds[b]));
      const double* share = shares != nullptr ? shares + offsets[b] : nullptr;
      for (int64_t run = b * runs; run < (b + 1) * runs; ++run) {
        choose(&twister, offsets[b + 1] - offsets[b], share, count, left, left + most_rows, rows + run * count);
        for (int64_t i = 0; i < n_uniform; ++i) uniform[run * n_uniform + i] = twister.uniform();
      }
    }
  }
  return DCFAST_OK;
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
