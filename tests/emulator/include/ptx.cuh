// Stands in for csrc/cuda/device/ptx.cuh: each instruction as the PTX manual describes it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

namespace dcfast {
namespace cuda {

inline void emulator_require(bool condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "emulated GPU: %s\n", what);
  abort();
}

inline uint32_t shared_address(const void* at) {
  const auto offset = static_cast<const unsigned char*>(at) - emulator::dynamic_shared();
  emulator_require(offset >= 0 && offset < 227 * 1024, "an address outside of dynamic shared memory");
  return uint32_t(offset);
}
inline float emulator_half(const unsigned char* at) {
  __half value;
  memcpy(&value, at, sizeof value);
  return __half2float(value);
}

inline void st_global_v4(void* at, uint4 bits) {
  emulator_require((reinterpret_cast<uintptr_t>(at) & 15) == 0, "st.global.v4: an address is not aligned");
  memcpy(at, &bits, sizeof bits);
}
// As far off as the manual allows, 2^-22 of the result, to either side.
inline float ex2_approx_ftz(float x) {
  const float off = x == 0.0f ? 0.0f : __float_as_uint(x) & 1 ? 0x1p-22f : -0x1p-22f;
  const float power = exp2f(x) * (1.0f + off);
  return power < 0x1p-126f ? 0.0f : power;
}
// start + a b as a tensor core takes it at worst: the addends, exact products among them, are cut to 24 bits at the
// largest of them, summed exactly, and the sum is cut to 24 bits.
inline float emulator_dot(float start, const float (&a)[16], const float (&b)[16]) {
  double addends[17] = {start}, largest = fabs(addends[0]), plain = start;
  for (unsigned k = 0; k < 16; ++k) {
    addends[k + 1] = double(a[k]) * double(b[k]);
    largest = std::max(largest, fabs(addends[k + 1]));
    plain += addends[k + 1];
  }
  if (largest == 0 || !isfinite(plain)) return float(plain);
  const uint64_t exponent = emulator_bits<uint64_t>(largest) >> 52;
  const double unit = emulator_bits<double>((exponent - 23) << 52);
  const double inverse = emulator_bits<double>((2046 - (exponent - 23)) << 52);
  int64_t sum = 0;  // in units
  for (double addend : addends) sum += int64_t(addend * inverse);
  const float rounded = float(sum);
  return float((fabs(double(rounded)) > fabs(double(sum)) ? nextafterf(rounded, 0.0f) : rounded) * unit);
}

// ---- sm_80 -----------------------------------------------------------------------------------------------------

inline void cp_async_16(void* to_shared, const void* from_global) {
  emulator_require((shared_address(to_shared) & 15) == 0 && (reinterpret_cast<uintptr_t>(from_global) & 15) == 0,
                   "cp.async: an address is not aligned");
  memset(to_shared, 0xFF, 16);
  emulator::issue(emulator::Groups::kCopies, [=] { memcpy(to_shared, from_global, 16); });
}
inline void cp_async_commit() { emulator::commit(emulator::Groups::kCopies); }
template <int kPending>
void cp_async_wait() {
  emulator::wait_for_groups(emulator::Groups::kCopies, kPending);
}

inline void ldmatrix_x4(uint32_t (&to)[4], const void* row) {
  emulator_require((shared_address(row) & 15) == 0, "ldmatrix: an address is not aligned");
  const unsigned char* rows = emulator::warp_exchange(0xFFFFFFFFu, &row, sizeof row);
  for (unsigned i = 0; i < 4; ++i) {
    const auto* from = emulator_lane<const unsigned char*>(rows, 8 * i + emulator::lane() / 4);
    memcpy(&to[i], from + 4 * (emulator::lane() % 4), 4);
  }
}

template <class ToFloat>
void emulated_mma(float* sum, const uint32_t (&a)[4], const uint32_t (&b)[2], ToFloat to_float) {
  const unsigned row = emulator::lane() / 4, column = 2 * (emulator::lane() % 4);
  float rows[2][16], columns[2][16];
  // Elements 2 q and the next of the first or the second 8 are with lane q of the four.
  const uint32_t words[4] = {a[0], a[1], a[2], a[3]};
  const unsigned char* all = emulator::warp_exchange(0xFFFFFFFFu, words, sizeof words);
  for (unsigned k = 0; k < 16; ++k)
    for (unsigned h = 0; h < 2; ++h)
      rows[h][k] = to_float(all + 16 * (4 * row + k % 8 / 2) + 4 * (h + 2 * (k / 8)) + 2 * (k % 2));
  all = emulator::warp_exchange(0xFFFFFFFFu, b, sizeof b);
  for (unsigned k = 0; k < 16; ++k)
    for (unsigned h = 0; h < 2; ++h)
      columns[h][k] = to_float(all + 16 * (4 * (column + h) + k % 8 / 2) + 4 * (k / 8) + 2 * (k % 2));
  for (unsigned i = 0; i < 4; ++i) sum[i] = emulator_dot(sum[i], rows[i / 2], columns[i % 2]);
}
inline void mma_m16n8k16(float* sum, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated_mma(sum, a, b, emulator_half);
}
inline void mma_m16n8k16_bf16(float* sum, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated_mma(sum, a, b, [](const unsigned char* at) {
    __nv_bfloat16 value;
    memcpy(&value, at, sizeof value);
    return __bfloat162float(value);
  });
}

// ---- sm_90a ----------------------------------------------------------------------------------------------------

struct EmulatedBarrier {
  uint64_t arrivals : 12, pending : 12, parity : 1;
  int64_t bytes : 39;

  void settle() {
    if (pending != 0 || bytes != 0) return;
    parity ^= 1;
    pending = arrivals;
  }
};
static_assert(sizeof(EmulatedBarrier) == sizeof(uint64_t));
inline EmulatedBarrier* emulated(uint64_t* barrier) {
  (void)shared_address(barrier);
  return reinterpret_cast<EmulatedBarrier*>(barrier);
}

inline void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  EmulatedBarrier* b = emulated(barrier);
  b->arrivals = b->pending = arrivals;
  b->parity = 0;
  b->bytes = 0;
}
inline void fence_mbarrier_init() {}
inline void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  EmulatedBarrier* b = emulated(barrier);
  emulator_require(b->pending > 0, "mbarrier: one arrival too many");
  b->bytes += bytes;
  --b->pending;
  b->settle();
}
inline void mbarrier_arrive(uint64_t* barrier) { mbarrier_arrive_expect_tx(barrier, 0); }
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  emulator::wait_until([=] { return emulated(barrier)->parity != parity; });
}

inline void cp_async_bulk(void* to_shared, const void* from_global, uint32_t bytes, uint64_t* barrier) {
  emulator_require(
      bytes % 16 == 0 && (shared_address(to_shared) & 15) == 0 && (reinterpret_cast<uintptr_t>(from_global) & 15) == 0,
      "cp.async.bulk: a size or an address is not aligned");
  memset(to_shared, 0xFF, bytes);
  emulator::later([=] {
    memcpy(to_shared, from_global, bytes);
    EmulatedBarrier* b = emulated(barrier);
    b->bytes -= bytes;
    b->settle();
  });
}

inline void bar_sync(int id, int threads) { emulator::named_barrier(id, threads, true); }
inline void bar_arrive(int id, int threads) { emulator::named_barrier(id, threads, false); }
template <int kRegisters>
void setmaxnreg_inc() {}
template <int kRegisters>
void setmaxnreg_dec() {}

inline void wgmma_fence() {}
inline void wgmma_commit() { emulator::commit(emulator::Groups::kProducts); }
template <int kPending>
void wgmma_wait() {
  emulator::wait_for_groups(emulator::Groups::kProducts, kPending);
}

inline void wgmma_take(float (&)[64]) {}

inline uint64_t wgmma_descriptor(const void* at) {
  return uint64_t((shared_address(at) & 0x3FFFF) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 |
         uint64_t(1) << 62;
}

// Element (row, k) of a matrix in the 128-byte swizzle: bits 4 to 6 of its address are exclusive-ored with bits 7 to 9.
inline float emulated_element(uint64_t descriptor, unsigned row, unsigned k) {
  emulator_require(descriptor >> 62 == 1, "wgmma: only the 128-byte swizzle is known here");
  const uint32_t group_stride = uint32_t(descriptor >> 32 & 0x3FFF) << 4;
  const uint32_t linear = (uint32_t(descriptor & 0x3FFF) << 4) + row / 8 * group_stride + row % 8 * 128 + 2 * k;
  return emulator_half(emulator::dynamic_shared() + (linear ^ (linear >> 7 & 7) << 4));
}

inline void wgmma_m64n128k16(float (&sum)[64], uint64_t a, uint64_t b, bool accumulate) {
  float* sums = sum;
  const unsigned thread = threadIdx.x % 128;
  emulator::issue(emulator::Groups::kProducts, [=] {
    const unsigned row = thread / 32 * 16 + thread % 32 / 4, column = 2 * (thread % 4);
    float rows[2][16];
    for (unsigned h = 0; h < 2; ++h)
      for (unsigned k = 0; k < 16; ++k) rows[h][k] = emulated_element(a, row + 8 * h, k);
    for (unsigned g = 0; g < 16; ++g)
      for (unsigned e = 0; e < 2; ++e) {
        float c[16];
        for (unsigned k = 0; k < 16; ++k) c[k] = emulated_element(b, 8 * g + column + e, k);
        for (unsigned h = 0; h < 2; ++h) {
          float& total = sums[4 * g + 2 * h + e];
          total = emulator_dot(accumulate ? total : 0.0f, rows[h], c);
        }
      }
  });
}

}  // namespace cuda
}  // namespace dcfast
