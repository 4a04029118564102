// What the arithmetic of sobel_conv2d.cuh does not serve, float64 and kernels too large for shared memory: plain loops
// over taps, in float64.
#pragma once

#include "sobel_conv2d.cuh"

namespace dcfast {
namespace cuda {
namespace {

constexpr int kPlainThreads = 128;
constexpr int kPlainFilters = 8;  // of a thread, so that a Sobel value serves several

struct Plain {
  Sizes s;
  int dtype, image_dtype, sum_dtype;  // of weight, grad and output; of the image; of scale, bias and partial
  const void* image;
  const double* fold;
  const void* weight;
  const void* grad;
  const void* scale;
  const void* bias;
  bool relu;
  int64_t range;  // pixels of a row of partial
  void* out;      // output, or partial (ranges, filters, 2 taps + 1)
};

__device__ __forceinline__ double element(const void* at, int dtype, int64_t i) {
  switch (dtype) {
    case DCFAST_FLOAT32:
      return static_cast<const float*>(at)[i];
    case DCFAST_FLOAT64:
      return static_cast<const double*>(at)[i];
    case DCFAST_FLOAT16:
      return widen(static_cast<const __half*>(at)[i]);
    case DCFAST_BFLOAT16:
      return widen(static_cast<const __nv_bfloat16*>(at)[i]);
    default:
      return static_cast<const uint8_t*>(at)[i];
  }
}
__device__ __forceinline__ void put(void* at, int dtype, int64_t i, double v) {
  switch (dtype) {
    case DCFAST_FLOAT32:
      static_cast<float*>(at)[i] = float(v);
      break;
    case DCFAST_FLOAT64:
      static_cast<double*>(at)[i] = v;
      break;
    case DCFAST_FLOAT16:
      static_cast<__half*>(at)[i] = narrow<__half>(float(v));
      break;
    default:
      static_cast<__nv_bfloat16*>(at)[i] = narrow<__nv_bfloat16>(float(v));
  }
}

// Sobel-x and Sobel-y of image n at (y, x), zero outside.
__device__ __forceinline__ double2 sobel_at(const Plain& a, int64_t n, int64_t y, int64_t x) {
  const Sizes& s = a.s;
  double2 sobel = {0.0, 0.0};
  if (y < 0 || y >= s.height || x < 0 || x >= s.width) return sobel;
  for (int k = 0; k < 9; ++k) {
    const int dy = k / 3 - 1, dx = k % 3 - 1;
    if (y + dy < 0 || y + dy >= s.height || x + dx < 0 || x + dx >= s.width) continue;
    const int64_t at = n * s.image_stride[0] + (y + dy) * s.image_stride[2] + (x + dx) * s.image_stride[3];
    double grey = a.fold[3];
    for (int c = 0; c < 3; ++c) grey += a.fold[c] * element(a.image, a.image_dtype, at + c * s.image_stride[1]);
    sobel.x -= dx * (2 - dy * dy) * grey;
    sobel.y -= dy * (2 - dx * dx) * grey;
  }
  return sobel;
}

template <class Kernel>
void launch_plain(Kernel kernel, const Plain& a, int64_t threads, cudaStream_t stream) {
  const int64_t blocks = min(ceil_div(threads, kPlainThreads), kMaxBlocks);
  launch(kernel, unsigned(blocks), kPlainThreads, 0, stream, a);
}

}  // namespace
}  // namespace cuda
}  // namespace dcfast
