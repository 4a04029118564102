// Stands in for CUDA's header of this name: what csrc/cuda uses of CUDA C++, on the emulated GPU.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict
// Blocks run one after another, so that one copy serves.
#define __shared__ static
#define threadIdx (emulator::place().thread)
#define blockIdx (emulator::place().block)
#define blockDim (emulator::place().threads)
#define gridDim (emulator::place().blocks)

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchTimeout = 702 };
using cudaStream_t = void*;

cudaError_t cudaGetLastError();
void emulator_set_error(int error);
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchTimeout ? "every thread of a block waits" : "error of the emulated GPU";
}

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
// The major version is what the test asks for.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const char* capability = getenv("DCFAST_EMULATOR_CAPABILITY");
  const int major = capability == nullptr ? 9 : atoi(capability);
  *value = attribute == cudaDevAttrMultiProcessorCount      ? 2
           : attribute == cudaDevAttrComputeCapabilityMajor ? major
           : major == 8                                     ? 163 * 1024
                                                            : 227 * 1024;
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  memset(at, value, bytes);
  return cudaSuccess;
}

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) longlong2 {
  long long x, y;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using std::max;
using std::min;

template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldcs(const T* at) {
  return *at;
}
template <class T>
void __stcs(T* at, T value) {
  *at = value;
}

template <class To, class From>
To emulator_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline int __float_as_int(float x) { return emulator_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulator_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator_bits<double>(x); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __ll2double_rn(long long a) { return double(a); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return expf(a); }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline float __double2float_rn(double a) { return float(a); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) result |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
  return result;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
  const int nothing = 0;
  emulator::warp_exchange(mask, &nothing, sizeof nothing);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline int __syncthreads_or(int predicate) {
  static int any;
  emulator::block_barrier();
  any = 0;
  emulator::block_barrier();
  any |= predicate;
  emulator::block_barrier();
  return any != 0;
}

template <class T>
T emulator_lane(const unsigned char* values, unsigned lane) {
  T value;
  memcpy(&value, values + 16 * lane, sizeof value);
  return value;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const unsigned at = emulator::lane(), base = at / unsigned(width) * unsigned(width);
  return emulator_lane<T>(emulator::warp_exchange(mask, &value, sizeof value), base + unsigned(from) % unsigned(width));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int = 32) {
  const unsigned at = emulator::lane();
  return emulator_lane<T>(emulator::warp_exchange(mask, &value, sizeof value), at ^ unsigned(bits));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned offset, int width = 32) {
  const unsigned at = emulator::lane(), from = at % unsigned(width) + offset < unsigned(width) ? at + offset : at;
  return emulator_lane<T>(emulator::warp_exchange(mask, &value, sizeof value), from);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned offset, int width = 32) {
  const unsigned at = emulator::lane(), from = at % unsigned(width) >= offset ? at - offset : at;
  return emulator_lane<T>(emulator::warp_exchange(mask, &value, sizeof value), from);
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  const unsigned char* values = emulator::warp_exchange(mask, &value, sizeof value);
  unsigned most = 0;
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) most = std::max(most, emulator_lane<unsigned>(values, i));
  return most;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const unsigned char* values = emulator::warp_exchange(mask, &predicate, sizeof predicate);
  unsigned ballot = 0;
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1 && emulator_lane<int>(values, i) != 0) ballot |= 1u << i;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
inline unsigned __activemask() { return 0xFFFFFFFFu; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  const unsigned char* values = emulator::warp_exchange(mask, &value, sizeof value);
  unsigned same = 0;
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1 && emulator_lane<T>(values, i) == value) same |= 1u << i;
  return same;
}

template <class T>
struct emulator_same {
  using Type = T;
};
// Others may run before an atomic operation, as between any two on a GPU.
template <class T, class F>
T emulator_atomic(T* at, F change) {
  if (emulator::coin()) emulator::yield();
  const T old = *at;
  *at = change(old);
  return old;
}
template <class T>
T atomicAdd(T* at, typename emulator_same<T>::Type value) {
  return emulator_atomic(at, [=](T old) { return T(old + value); });
}
template <class T>
T atomicMax(T* at, typename emulator_same<T>::Type value) {
  return emulator_atomic(at, [=](T old) { return std::max(old, value); });
}
template <class T>
T atomicMin(T* at, typename emulator_same<T>::Type value) {
  return emulator_atomic(at, [=](T old) { return std::min(old, value); });
}
template <class T>
T atomicOr(T* at, typename emulator_same<T>::Type value) {
  return emulator_atomic(at, [=](T old) { return T(old | value); });
}
template <class T>
T atomicExch(T* at, typename emulator_same<T>::Type value) {
  return emulator_atomic(at, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* at, typename emulator_same<T>::Type compare, typename emulator_same<T>::Type value) {
  return emulator_atomic(at, [=](T old) { return old == compare ? value : old; });
}
