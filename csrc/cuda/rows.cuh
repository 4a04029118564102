// Rows in the lanes of a warp: a power of two of lanes shares a row, each with the columns of one load.
#pragma once

#include <type_traits>

#include "common.cuh"

namespace dcfast {
namespace cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// What one lane reads of a row: 16 bytes, but no more than four elements, since what is kept per column is of 8 bytes.
template <class T>
struct alignas(sizeof(T) == 2 ? 8 : 16) Pack {
  static constexpr int kCount = sizeof(T) == 8 ? 2 : 4;
  using Bits = std::conditional_t<sizeof(T) == 2, uint2, uint4>;
  T elements[kCount];
};

// The columns of a lane: adjacent ones, read by one load (kWide), or `lanes` apart, which serves any alignment.
template <class T, bool kWide>
struct Columns {
  int64_t first, d;
  int lanes;

  __device__ __forceinline__ Columns(int64_t tile, int lane, int lanes, int64_t d)
      : first(tile * lanes * Pack<T>::kCount + int64_t(lane) * (kWide ? Pack<T>::kCount : 1)), d(d), lanes(lanes) {}

  __device__ __forceinline__ int64_t at(int element) const { return first + int64_t(element) * (kWide ? 1 : lanes); }

  // Of columns that the row has not, those of some that it has. There is no branch, or the compiler would wait for each
  // load at its end.
  __device__ __forceinline__ Pack<T> load(const T* row) const {
    union {
      typename Pack<T>::Bits bits;
      Pack<T> pack;
    } loaded;
    if (kWide) {
      loaded.bits = __ldg(reinterpret_cast<const typename Pack<T>::Bits*>(row + (first < d ? first : 0)));
    } else {
#pragma unroll
      for (int e = 0; e < Pack<T>::kCount; ++e) loaded.pack.elements[e] = row[at(e) < d ? at(e) : 0];
    }
    return loaded.pack;
  }
};

// Loads of a lane that are in flight together. To read at 4.3 TB/s a multiprocessor of an H200 waits for 33 bytes per
// ns, each some 0.7 us, more under load: 23 KiB; 16 warps with 8 loads each wait for 64 KiB, or 32 of 2-byte elements.
constexpr int kLoadsInFlight = 8;

// Whether rows of d elements, `stride` elements apart, can be read in packs.
template <class T>
bool packs_fit(const void* x, int64_t stride, int64_t d) {
  return reinterpret_cast<uintptr_t>(x) % sizeof(Pack<T>) == 0 && stride % Pack<T>::kCount == 0 &&
         d % Pack<T>::kCount == 0;
}

// Lanes that share a row: no more than hold its columns.
template <class T>
int lanes_of_a_row(int64_t d) {
  int lanes = 1;
  while (lanes < kWarp && int64_t(lanes) * Pack<T>::kCount < d) lanes *= 2;
  return lanes;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks that take `work` units in turn.
inline unsigned blocks_for(int64_t work, int64_t most = int64_t(1) << 30) {
  return unsigned(work < 1 ? 1 : work < most ? work : most);
}

inline int64_t multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

}  // namespace cuda
}  // namespace dcfast
