// Stands in for CUDA's header of this name.
#pragma once

#include <stdint.h>
#include <string.h>

struct __half {
  _Float16 value;
};
struct alignas(4) __half2 {
  __half x, y;
};
inline float __half2float(__half x) { return float(x.value); }
inline __half __float2half_rn(float x) { return {_Float16(x)}; }
inline __half __float2half(float x) { return {_Float16(x)}; }
inline __half __double2half(double x) { return {_Float16(x)}; }
inline unsigned short __half_as_ushort(__half x) {
  unsigned short bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline __half __ushort_as_half(unsigned short bits) {
  __half x;
  memcpy(&x, &bits, sizeof bits);
  return x;
}
