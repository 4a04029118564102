// D64, the squared distance of the definition: in order, in double, each operation rounded on its own.
#pragma once

#include <stdint.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dcfast {
namespace DCFAST_ISA {

template <class T>
static inline double d64(const T* x, const T* c, int64_t d) {
  double acc = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    double t = double(x[i]) - double(c[i]);
    acc = acc + t * t;
  }
  return acc;
}

// D64 of kChains pairs: independent chains hide the latency of the additions.
#if defined(__AVX2__)
constexpr int kChains = 8;

static inline __m256d four_of(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
static inline __m256d four_of(const double* p) { return _mm256_loadu_pd(p); }

// The terms of four pairs and elements are made four elements at a time, then turned: a lane becomes a pair.
template <class T>
static inline void d64_chains(const T* const x[kChains], const T* const c[kChains], int64_t d, double out[kChains]) {
  constexpr int kFours = kChains / 4;
  __m256d acc[kFours] = {};
  int64_t i = 0;
  for (; i + 4 <= d; i += 4) {
#pragma GCC unroll 2
    for (int four = 0; four < kFours; ++four) {
      __m256d terms[4];
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const __m256d t = four_of(x[4 * four + r] + i) - four_of(c[4 * four + r] + i);
        terms[r] = t * t;
      }
      const __m256d even[2] = {_mm256_unpacklo_pd(terms[0], terms[1]), _mm256_unpacklo_pd(terms[2], terms[3])};
      const __m256d odd[2] = {_mm256_unpackhi_pd(terms[0], terms[1]), _mm256_unpackhi_pd(terms[2], terms[3])};
      acc[four] = acc[four] + _mm256_permute2f128_pd(even[0], even[1], 0x20);
      acc[four] = acc[four] + _mm256_permute2f128_pd(odd[0], odd[1], 0x20);
      acc[four] = acc[four] + _mm256_permute2f128_pd(even[0], even[1], 0x31);
      acc[four] = acc[four] + _mm256_permute2f128_pd(odd[0], odd[1], 0x31);
    }
  }
  for (int four = 0; four < kFours; ++four) _mm256_storeu_pd(out + 4 * four, acc[four]);
  for (; i < d; ++i) {
    for (int r = 0; r < kChains; ++r) {
      const double t = double(x[r][i]) - double(c[r][i]);
      out[r] = out[r] + t * t;
    }
  }
}
#else
constexpr int kChains = 4;

template <class T>
static inline void d64_chains(const T* const x[kChains], const T* const c[kChains], int64_t d, double out[kChains]) {
  double acc[kChains] = {};
  for (int64_t i = 0; i < d; ++i) {
    for (int r = 0; r < kChains; ++r) {
      double t = double(x[r][i]) - double(c[r][i]);
      acc[r] = acc[r] + t * t;
    }
  }
  for (int r = 0; r < kChains; ++r) out[r] = acc[r];
}
#endif

// out[i] = RN64(weight[i] * D64(x_i, centroid of its label)) of kChains rows from `first` on, 0 for a label outside
// [0, k). weight may be null.
template <class T>
static inline void distances_of(const T* x, int64_t row_stride, int64_t n, int64_t d, const T* centroids, int64_t k,
                                const int64_t* labels, const double* weight, int64_t first, double* out) {
  const T *rows[kChains], *own[kChains];
  double acc[kChains];
  for (int r = 0; r < kChains; ++r) {
    // The last group repeats its last row, and a row without a centroid is compared with itself: both give 0.
    int64_t row = first + r < n ? first + r : n - 1;
    rows[r] = x + row * row_stride;
    own[r] = labels[row] >= 0 && labels[row] < k ? centroids + labels[row] * d : nullptr;
    if (own[r] == nullptr) own[r] = rows[r];
  }
  d64_chains(rows, own, d, acc);
  for (int r = 0; r < kChains && first + r < n; ++r) {
    double value = own[r] == rows[r] ? 0.0 : acc[r];
    out[first + r] = weight != nullptr ? weight[first + r] * value : value;
  }
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
