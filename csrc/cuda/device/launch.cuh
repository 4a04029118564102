// Starting kernels: the one place that is not plain C++.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace dcfast {
namespace cuda {

// The block's dynamic shared memory, 1024-byte aligned: what the swizzled layout of the tensor cores repeats after.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char bytes[];
  return bytes;
}

// Starts kernel(arguments...); what went wrong is left to cudaGetLastError.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 blocks, dim3 threads, size_t shared_bytes, cudaStream_t stream, A... arguments) {
  // Above what every GPU gives without being asked.
  if (shared_bytes > 48 * 1024) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  kernel<<<blocks, threads, shared_bytes, stream>>>(P(arguments)...);
}

}  // namespace cuda
}  // namespace dcfast
