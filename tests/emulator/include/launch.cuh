// Stands in for csrc/cuda/device/launch.cuh.
#pragma once

#include <cuda_runtime.h>

namespace dcfast {
namespace cuda {

inline unsigned char* dynamic_shared() { return emulator::dynamic_shared(); }

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 blocks, dim3 threads, size_t shared_bytes, cudaStream_t, A... arguments) {
  const int error = emulator::run(blocks, threads, shared_bytes, [=] { kernel(P(arguments)...); });
  if (error != cudaSuccess) emulator_set_error(error);
}

}  // namespace cuda
}  // namespace dcfast
