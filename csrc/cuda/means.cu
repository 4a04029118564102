// RN_T(RN64(S) / RN64(W)) of exact sums, an element per thread.
#include "fixed.cuh"
#include "rows.cuh"

namespace dcfast {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// RN64 of a sum of n words, `stride` apart, in units of 2^unit.
__device__ __forceinline__ double rounded(const int64_t* words, int64_t n, int64_t stride, int64_t unit) {
  if (n <= 2 && unit > -1000 && unit < 900) {
    // The sum fits an int64, whose conversion rounds to nearest even; 2^unit is a normal number, and so is the product.
    const int64_t top = n == 2 ? words[stride] + (words[0] >> kDigit) : 0;
    if (n == 1 || (top < (1 << 22) && top >= -(1 << 22))) {
      const int64_t low = n == 2 ? words[0] & ((int64_t(1) << kDigit) - 1) : words[0];
      return __ll2double_rn(top * (int64_t(1) << kDigit) + low) * power_of_two(unit);
    }
  }
  return round_words<kDigit>(words, n, stride, unit);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    means_kernel(const int64_t* words, int64_t elements, int64_t n_words, int64_t d, const int64_t* low,
                 const double* total, const T* previous, T* out) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x; at < elements; at += step) {
    const int64_t cluster = at / d, column = at % d;
    if (total[cluster] > 0.0) {
      out[at] = T(rounded(words + cluster * n_words * d + column, n_words, d, low[column]) / total[cluster]);
    } else {
      out[at] = previous[at];
    }
  }
}

template <class T>
int means_all(const int64_t* words, int64_t clusters, int64_t n_words, int64_t d, const int64_t* low,
              const double* total, const void* previous, void* out, cudaStream_t stream) {
  launch(means_kernel<T>, blocks_for(ceil_div(clusters * d, kThreads)), kThreads, 0, stream, words, clusters * d,
         n_words, d, low, total, static_cast<const T*>(previous), static_cast<T*>(out));
  return launch_status();
}

}  // namespace

int means(int dtype, const int64_t* words, int64_t clusters, int64_t n_words, int64_t d, const int64_t* low,
          const double* total, const void* previous, void* out, void* stream) {
  switch (dtype) {
    case DCFAST_FLOAT32:
      return means_all<float>(words, clusters, n_words, d, low, total, previous, out,
                              static_cast<cudaStream_t>(stream));
    case DCFAST_FLOAT64:
      return means_all<double>(words, clusters, n_words, d, low, total, previous, out,
                               static_cast<cudaStream_t>(stream));
    default:
      return DCFAST_INVALID_DTYPE;
  }
}

}  // namespace cuda
}  // namespace dcfast
