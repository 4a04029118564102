// D64, the squared distance of the definition: in order, in double, each operation rounded on its own.
#pragma once

#include <stdint.h>

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
