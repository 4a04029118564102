// D64 of every row to its own centroid, and the exact sum of any doubles.
//
// The sum of arbitrary doubles needs every exponent from 2^-1074 to 2^1023: a row of 32-bit digits, each in an int64
// so that 2^30 additions need no carry. A mantissa of 53 bits shifted by up to 31 touches three digits.
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#include "d64.h"
#include "dcfast/core.h"
#include "fixed.h"
#include "float_env.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr int kSumDigit = 32;
constexpr int64_t kDigits = 68;    // 2^-1074 ... 2^1023 and 62 bits for the carries of 2^62 additions
constexpr int64_t kSpecials = 77;  // words[77], [78], [79] count +inf, -inf and NaN
constexpr int64_t kSumWords = 80;  // words of one accumulator: a multiple of a cache line
constexpr int64_t kMaxAdd = 1 << 30;

// D64 for `count` rows at once: independent chains hide the latency of the additions.
constexpr int kChains = 4;

template <class T>
void distances_all(const T* x, int64_t row_stride, int64_t n, int64_t d, const T* centroids, int64_t k,
                   const int64_t* labels, const double* weight, double* out, int n_threads) {
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t group = 0; group < (n + kChains - 1) / kChains; ++group) {
      const T *rows[kChains], *own[kChains];
      double acc[kChains] = {};
      for (int r = 0; r < kChains; ++r) {
        // The last group repeats its last row, and a row without a centroid is compared with itself: both give 0.
        int64_t row = group * kChains + r < n ? group * kChains + r : n - 1;
        rows[r] = x + row * row_stride;
        own[r] = labels[row] >= 0 && labels[row] < k ? centroids + labels[row] * d : nullptr;
        if (own[r] == nullptr) own[r] = rows[r];
      }
      for (int64_t i = 0; i < d; ++i) {
        for (int r = 0; r < kChains; ++r) {
          double t = double(rows[r][i]) - double(own[r][i]);
          acc[r] = acc[r] + t * t;
        }
      }
      for (int r = 0; r < kChains && group * kChains + r < n; ++r) {
        int64_t row = group * kChains + r;
        double value = own[r] == rows[r] ? 0.0 : acc[r];
        out[row] = weight != nullptr ? weight[row] * value : value;
      }
    }
  }
}

void add(double value, int64_t* words) {
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

}  // namespace

int point_distances(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d, const void* centroids,
                    int64_t k, const int64_t* labels, const double* weight, double* out, int n_threads) {
  if (dtype == DCFAST_FLOAT32) {
    distances_all(static_cast<const float*>(x), row_stride, n, d, static_cast<const float*>(centroids), k, labels,
                  weight, out, n_threads);
  } else if (dtype == DCFAST_FLOAT64) {
    distances_all(static_cast<const double*>(x), row_stride, n, d, static_cast<const double*>(centroids), k, labels,
                  weight, out, n_threads);
  } else {
    return DCFAST_INVALID_DTYPE;
  }
  return DCFAST_OK;
}

int exact_sum_add(const double* values, int64_t n, int64_t* words, int n_threads) {
  if (n > kMaxAdd) return DCFAST_OUT_OF_RANGE;
#pragma omp parallel num_threads(n_threads)
  {
    int64_t* own = words + omp_get_thread_num() * kSumWords;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) add(values[i], own);
    carry(own, kDigits, 1, kSumDigit);
  }
  return DCFAST_OK;
}

int exact_sum_round(int64_t* words, int n_threads, double* out) {
  for (int thread = 1; thread < n_threads; ++thread) {
    for (int64_t w = 0; w < kSumWords; ++w) words[w] += words[thread * kSumWords + w];
  }
  carry(words, kDigits, 1, kSumDigit);
  const int64_t* special = words + kSpecials;
  if (special[2] > 0 || (special[0] > 0 && special[1] > 0)) {
    *out = NAN;
  } else if (special[0] > 0 || special[1] > 0) {
    *out = special[0] > 0 ? INFINITY : -INFINITY;
  } else {
    *out = round_words(words, kDigits, 1, kSumDigit, -1074);
  }
  return DCFAST_OK;
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
