// What the kernels share: the status of a launch, and elements read and written wide.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include <launch.cuh>

#include "dcfast/core.h"

namespace dcfast {
namespace cuda {

// The status of the launches since the last call; waits for nothing, so a fault inside a kernel shows up
// later.
inline int launch_status() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? DCFAST_OK : DCFAST_CUDA_ERROR + static_cast<int>(error);
}

// run(an element of the dtype); the element only says its type.
template <class F>
int with_dtype(int dtype, F run) {
  switch (dtype) {
    case DCFAST_FLOAT32:
      return run(float());
    case DCFAST_FLOAT64:
      return run(double());
    case DCFAST_FLOAT16:
      return run(__half());
    case DCFAST_BFLOAT16:
      return run(__nv_bfloat16());
    default:
      return DCFAST_INVALID_DTYPE;
  }
}

// The type that sums of T are taken in, and the elements of one 16-byte load.
template <class T>
struct Element {
  using Wide = float;
  static constexpr int kPerLoad = 16 / sizeof(T);
};
template <>
struct Element<double> {
  using Wide = double;
  static constexpr int kPerLoad = 2;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T narrow(typename Element<T>::Wide x) {
  return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// A term of D64.
__device__ __forceinline__ double add_square(double sum, double x, double c) {
  const double t = __dsub_rn(x, c);
  return __dadd_rn(sum, __dmul_rn(t, t));
}

}  // namespace cuda
}  // namespace dcfast
