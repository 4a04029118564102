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

// The lanes in which a <= t, lane 0 in the lowest bit.
static inline uint32_t mask_at_most(Floats a, Floats t) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)t, _CMP_LE_OQ);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)t, _CMP_LE_OQ)));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_ps(_mm_cmple_ps((__m128)a, (__m128)t)));
#else
  uint32_t mask = 0;
  for (int lane = 0; lane < kFloats; ++lane) mask |= uint32_t(a[lane] <= t[lane]) << lane;
  return mask;
#endif
}

typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));

// Four vectors of four: rows become columns.
static inline void transpose_quads(Quad v[4]) {
#if defined(__SSE2__)
  __m128 a = (__m128)v[0], b = (__m128)v[1], c = (__m128)v[2], d = (__m128)v[3];
  _MM_TRANSPOSE4_PS(a, b, c, d);
  v[0] = (Quad)a, v[1] = (Quad)b, v[2] = (Quad)c, v[3] = (Quad)d;
#else
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < i; ++j) {
      const float other = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = other;
    }
  }
#endif
}

// Quads side by side, the first in the lowest lanes.
static inline Floats of_quads(const Quad q[kFloats / 4]) {
#if defined(__AVX512F__)
  __m512 v = _mm512_castps128_ps512((__m128)q[0]);
  v = _mm512_insertf32x4(v, (__m128)q[1], 1);
  v = _mm512_insertf32x4(v, (__m128)q[2], 2);
  return (Floats)_mm512_insertf32x4(v, (__m128)q[3], 3);
#elif defined(__AVX2__)
  return (Floats)_mm256_insertf128_ps(_mm256_castps128_ps256((__m128)q[0]), (__m128)q[1], 1);
#else
  return (Floats)q[0];
#endif
}

// Four vectors: the quads of each lane's four become columns. Where quad q of vector r holds four columns of row 4 q +
// r, vector c holds column c of all rows afterwards.
static inline void transpose_in_quads(Floats v[4]) {
#if defined(__AVX512F__)
  // The forms with a mask: GCC 12 takes the others for reads of undefined values, which is a warning.
  constexpr __mmask16 kAll = 0xFFFF;
  const __m512 rows[4] = {(__m512)v[0], (__m512)v[1], (__m512)v[2], (__m512)v[3]};
  const __m512 a = _mm512_maskz_unpacklo_ps(kAll, rows[0], rows[1]),
               b = _mm512_maskz_unpackhi_ps(kAll, rows[0], rows[1]);
  const __m512 c = _mm512_maskz_unpacklo_ps(kAll, rows[2], rows[3]),
               d = _mm512_maskz_unpackhi_ps(kAll, rows[2], rows[3]);
  v[0] = (Floats)_mm512_maskz_shuffle_ps(kAll, a, c, 0x44), v[1] = (Floats)_mm512_maskz_shuffle_ps(kAll, a, c, 0xEE);
  v[2] = (Floats)_mm512_maskz_shuffle_ps(kAll, b, d, 0x44), v[3] = (Floats)_mm512_maskz_shuffle_ps(kAll, b, d, 0xEE);
#elif defined(__AVX2__)
  const __m256 a = _mm256_unpacklo_ps((__m256)v[0], (__m256)v[1]), b = _mm256_unpackhi_ps((__m256)v[0], (__m256)v[1]);
  const __m256 c = _mm256_unpacklo_ps((__m256)v[2], (__m256)v[3]), d = _mm256_unpackhi_ps((__m256)v[2], (__m256)v[3]);
  v[0] = (Floats)_mm256_shuffle_ps(a, c, 0x44), v[1] = (Floats)_mm256_shuffle_ps(a, c, 0xEE);
  v[2] = (Floats)_mm256_shuffle_ps(b, d, 0x44), v[3] = (Floats)_mm256_shuffle_ps(b, d, 0xEE);
#else
  Quad quads[4] = {(Quad)v[0], (Quad)v[1], (Quad)v[2], (Quad)v[3]};
  transpose_quads(quads);
  for (int i = 0; i < 4; ++i) v[i] = (Floats)quads[i];
#endif
}

// Reductions over the lanes, by halves; to four of them first. (Without the intrinsics the halves go through memory.)
template <class Merge>
static inline Quad quad_of(Floats v, Merge merge) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return merge((Quad)_mm256_castps256_ps128((__m256)v), (Quad)_mm256_extractf128_ps((__m256)v, 1));
#else
  Quad quads[kFloats / 4];
  memcpy(quads, &v, sizeof v);
  for (int n = kFloats / 8; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) quads[i] = merge(quads[i], quads[i + n]);
  }
  return quads[0];
#endif
}

static inline float least(Floats v) {
  Quad q = quad_of(v, [](Quad a, Quad b) { return a < b ? a : b; });
#if defined(__SSE2__)
  __m128 pair = _mm_min_ps((__m128)q, _mm_movehl_ps((__m128)q, (__m128)q));
  return _mm_cvtss_f32(_mm_min_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
#else
  float left = q[0] < q[1] ? q[0] : q[1], right = q[2] < q[3] ? q[2] : q[3];
  return left < right ? left : right;
#endif
}

static inline float sum(Floats v) {
  Quad q = quad_of(v, [](Quad a, Quad b) { return a + b; });
  return (q[0] + q[1]) + (q[2] + q[3]);
}

static inline double sum(Doubles v) {
  double total = 0.0;
  for (int lane = 0; lane < kDoubles; ++lane) total += v[lane];
  return total;
}

// Two vectors of double as one of float32.
static inline Floats narrowed(Doubles low, Doubles high) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
  Half halves[2] = {__builtin_convertvector(low, Half), __builtin_convertvector(high, Half)};
  Floats out;
  memcpy(&out, halves, sizeof out);
  return out;
}

// ---- int16 products summed in int32 ------------------------------------------------------------------------------

static inline Ints load(const int32_t* p) { return *reinterpret_cast<const Ints*>(p); }

// Adding 1.5 * 2^23 rounds |v| < 2^22 to an integer and leaves it in the low bits of the sum.
constexpr float kRounder = 12582912.0f;
static inline Ints as_integers(Floats v_plus_rounder) {
  // Unsigned, or the difference of what is no such number would be undefined.
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  return (Ints)((Words)v_plus_rounder - (Words)broadcast(kRounder));
}

// kFloats integers that fit int16, and twice as many.
static inline void store_int16(int16_t* p, Ints v) {
  typedef int16_t Shorts __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  *reinterpret_cast<Shorts*>(p) = __builtin_convertvector(v, Shorts);
}
static inline void store_int16(int16_t* p, Ints v, Ints w) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i packed = _mm256_packs_epi32((__m256i)v, (__m256i)w);  // halves of v and w in turn
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xD8));
#else
  store_int16(p, v);
  store_int16(p + kFloats, w);
#endif
}

// One pair of int16 in every lane.
static inline Ints broadcast_pair(const int16_t* p) {
  int32_t pair;
  memcpy(&pair, p, 4);
#if defined(__AVX512F__)
  return (Ints)_mm512_set1_epi32(pair);
#elif defined(__AVX2__)
  return (Ints)_mm256_set1_epi32(pair);
#else
  return Ints{pair, pair, pair, pair};
#endif
}

// acc + the sum of the two products of a pair, lane by lane.
static inline Ints add_products(Ints acc, Ints a, Ints b) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return acc + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return acc + (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
  int32x4_t low = vmull_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
  int32x4_t high = vmull_high_s16((int16x8_t)a, (int16x8_t)b);
  return acc + (Ints)vpaddq_s32(low, high);
#endif
}

#if defined(__AVX512VNNI__)
// ---- products of bytes summed in int32 -----------------------------------------------------------------------------

// 4 x kFloats integers from -128 to 127, with 128 added.
static inline void store_offset_bytes(uint8_t* p, const Ints v[4]) {
  // Of a conversion GCC 12 makes an insertion for every byte.
  for (int i = 0; i < 4; ++i) {
    _mm512_mask_cvtepi32_storeu_epi8(p + i * kFloats, 0xffff, (__m512i)(v[i] + 128));
  }
}

// acc + the sum of the products of four neighbours, unsigned by signed, in every int32.
static inline Ints add_byte_products(Ints acc, Ints unsigned_bytes, Ints signed_bytes) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
}

// acc + the sums of one word.
static inline Ints add_word(Ints acc, Ints sums) { return acc + sums; }

static inline bool any(Ints v) { return _mm512_test_epi32_mask((__m512i)v, (__m512i)v) != 0; }
#elif defined(__AVX2__)
// ---- products of bytes summed in int16 -----------------------------------------------------------------------------

// 4 x kFloats integers from -128 to 127, with 128 added.
static inline void store_offset_bytes(uint8_t* p, const Ints v[4]) {
  const __m256i low = _mm256_packs_epi32((__m256i)v[0], (__m256i)v[1]),
                high = _mm256_packs_epi32((__m256i)v[2], (__m256i)v[3]);
  // Each half of the register holds four of every vector in turn.
  const __m256i packed =
      _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_xor_si256(packed, _mm256_set1_epi8(-128)));
}

// acc + the sum of the products of two neighbours, unsigned by signed, in every int16.
static inline Ints add_byte_products(Ints acc, Ints unsigned_bytes, Ints signed_bytes) {
  return (Ints)_mm256_add_epi16((__m256i)acc, _mm256_maddubs_epi16((__m256i)unsigned_bytes, (__m256i)signed_bytes));
}

// acc + the sums of one word: both int16.
static inline Ints add_word(Ints acc, Ints sums) {
  return acc + (Ints)_mm256_madd_epi16((__m256i)sums, _mm256_set1_epi16(1));
}

static inline bool any(Ints v) { return _mm256_testz_si256((__m256i)v, (__m256i)v) == 0; }
#endif

}  // namespace DCFAST_ISA
}  // namespace dcfast
