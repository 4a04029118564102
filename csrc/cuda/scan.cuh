// Prefix sums over the threads of a block.
#pragma once

#include "rows.cuh"

namespace dcfast {
namespace cuda {

constexpr int kScanThreads = 1024;
static_assert(kScanThreads == kWarp * kWarp, "a lane for the part of each warp");

// The sum over the threads before this one; all of them in *total. parts (kWarp) is read until the next barrier.
__device__ __forceinline__ int64_t sum_before(int64_t own, int64_t* parts, int64_t* total) {
  const int lane = threadIdx.x % kWarp;
  int64_t up_to = own;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int64_t more = __shfl_up_sync(kAllLanes, up_to, offset);
    if (lane >= offset) up_to += more;
  }
  if (lane == kWarp - 1) parts[threadIdx.x / kWarp] = up_to;
  __syncthreads();
  int64_t part = parts[lane];
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int64_t more = __shfl_up_sync(kAllLanes, part, offset);
    if (lane >= offset) part += more;
  }
  *total = __shfl_sync(kAllLanes, part, kWarp - 1);
  const int64_t warps_before = __shfl_sync(kAllLanes, part, (threadIdx.x / kWarp + kWarp - 1) % kWarp);
  return up_to - own + (threadIdx.x < kWarp ? 0 : warps_before);
}

}  // namespace cuda
}  // namespace dcfast
