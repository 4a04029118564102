// Workers save the floating-point mode, clear flush-to-zero and denormals-are-zero, and restore it: a host
// that called torch.set_flush_denormal(True) on one thread must not get other labels there than on the next.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#elif defined(__aarch64__)
#include <stdint.h>
#endif

namespace dcfast {
namespace DCFAST_ISA {

#if defined(__x86_64__)
class IeeeMode {
 public:
  __attribute__((always_inline)) IeeeMode() : saved_(_mm_getcsr()) {
    _mm_setcsr(saved_ & ~0xE040u);
  }  // round to nearest, no FTZ, no DAZ
  __attribute__((always_inline)) ~IeeeMode() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
};
#elif defined(__aarch64__)
class IeeeMode {
 public:
  __attribute__((always_inline)) IeeeMode() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    uint64_t ieee = saved_ & ~((uint64_t(1) << 24) | (uint64_t(3) << 22));
    __asm__ volatile("msr fpcr, %0" : : "r"(ieee));
  }
  __attribute__((always_inline)) ~IeeeMode() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
};
#endif

}  // namespace DCFAST_ISA
}  // namespace dcfast
