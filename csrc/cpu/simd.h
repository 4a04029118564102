// Vectors of the instruction set that this file is compiled for, by the compiler's vector extension: the
// arithmetic operators work on them lane by lane, each operation rounded on its own (-ffp-contract=off).
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace dcfast {
namespace DCFAST_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int kFloats = kVectorBytes / 4;   // lanes of a Floats
constexpr int kDoubles = kVectorBytes / 8;  // lanes of a Doubles

typedef float Floats __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
typedef int64_t Longs __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));

static inline Floats load(const float* p) { return *reinterpret_cast<const Floats*>(p); }
static inline Doubles load(const double* p) { return *reinterpret_cast<const Doubles*>(p); }
static inline void store(float* p, Floats v) { *reinterpret_cast<Floats*>(p) = v; }
static inline void store(double* p, Doubles v) { *reinterpret_cast<Doubles*>(p) = v; }

// (Floats{} + x would be an addition: it turns -0 into 0.)
static inline Floats broadcast(float x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (Floats)_mm256_set1_ps(x);
#else
  return Floats{x, x, x, x};
#endif
}
static inline Doubles broadcast(double x) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_set1_pd(x);
#elif defined(__AVX2__)
  return (Doubles)_mm256_set1_pd(x);
#else
  return Doubles{x, x};
#endif
}

// c - a * b, fused where the instruction set can. Only for passes whose rounding is bounded, never for D64.
static inline Floats fnmadd(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Floats)vfmsq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return c - a * b;
#endif
}

// a * b + c, fused where the instruction set can. Only where rounding is not part of the contract.
static inline Floats fmadd(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

static inline Doubles fmadd(Doubles a, Doubles b, Doubles c) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (Doubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (Doubles)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// A NaN in a gives b. (GCC 12 warns about its own 512-bit intrinsics, and needs no help there.)
static inline Floats minimum(Floats a, Floats b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__) && !defined(__AVX512F__)
  return (Floats)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}
static inline Floats maximum(Floats a, Floats b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__) && !defined(__AVX512F__)
  return (Floats)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

// Whether a <= t in any lane.
static inline bool any_at_most(Floats a, Floats t) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)t, _CMP_LE_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)t, _CMP_LE_OQ)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps(_mm_cmple_ps((__m128)a, (__m128)t)) != 0;
#elif defined(__aarch64__)
  return vmaxvq_u32(vcleq_f32((float32x4_t)a, (float32x4_t)t)) != 0;
#endif
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
