// The pass of assign for few columns: rows in the lanes, float32.
//
// A lane is a row, so that nothing has to be reduced over lanes and the whole work per score is d multiply-adds and the
// update of the two lowest. With u = 2^-24, n = d + 3 roundings in sequence and g = n u / (1 - n u):
//   * the sum itself:        g (H_j + |x~| b_j + |x'||c'_j|)   (u per step, fused or not: one more without FMA)
//   * the rounded operands:  |x~.c~ - x'.c'| <= (3 u + 3 u^2) |x~||c~|   (x' = fl(x - m) s, c' = fl(c~))
//   * underflow:             every product or operand lost below 2^-126 costs at most that: tau
// so that a_j = 2 g H_j + tau and b_j = (g + 5 u) |c~_j| (1 + 2 g) + tau are enough.
//
// A block of rows is transposed into L1 once; the centroids (64 bytes each at d = 16) stream from L1 or L2. A tile of
// kGroup vectors of rows and kShare centroids makes kGroup kShare sums at once: that many chains hide the latency of a
// multiply-add (4 clocks, two begun in each, so 8 chains), and each operand that is loaded serves several.
#pragma once

#include "assign_prepare.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

// Vectors of rows that share a load of a centroid's element, and centroids that share a load of theirs.
#if defined(__AVX512F__)
constexpr int kGroup = 4, kShare = 2;
#else
constexpr int kGroup = 2, kShare = 4;
#endif
constexpr int64_t kGroupRows = kGroup * kFloats;
constexpr int64_t kNarrowBlock = 256;  // rows: a multiple of every kGroupRows

inline int64_t whole_tiles(int64_t live) { return (live + kShare - 1) / kShare * kShare; }

// Position `at` of the centroids c; past the live ones, what is never the nearest.
template <class T>
void pack_narrow(const T* c, int64_t d, const Prepared<T>& prepared, int64_t at) {
  const Packed<T>& p = prepared.all;
  float* packed = static_cast<float*>(p.operands) + at / kShare * kShare * d + at % kShare;
  if (at >= *p.live) {
    for (int64_t i = 0; i < d; ++i) packed[i * kShare] = 0.0f;
    p.h[at] = p.half[at] = INFINITY;
    p.b[at] = 0.0f;
    return;
  }
  const T* row = c + p.index[at] * d;
  double square = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    double v = (double(row[i]) - double(prepared.shift[i])) * *prepared.scale;
    square += v * v;
    packed[i * kShare] = float(v);
  }
  p.half[at] = float(0.5 * square);
  square *= 1.0 + double(d + 8) * 0x1p-52;
  const double n = double(d + 4), g = n * kU / (1.0 - n * kU), tau = double(d + 2) * 0x1p-120;
  const double half = 0.5 * square, norm = sqrt(square) * (1.0 + 0x1p-50);
  const double a = 2.0 * g * half + tau, b = (g + 5.0 * kU) * norm * (1.0 + 2.0 * g) + tau;
  p.h[at] = round_down(half * (1.0 - double(2 * d + 16) * 0x1p-52) - double(round_up(a)));
  p.a[at] = round_up(a);
  p.b[at] = round_up(b);
  p.norm[at] = round_up(norm);
}

struct NarrowScratch {
  float* columns;    // [groups][d][kGroupRows] x'
  float* norms;      // [kNarrowBlock] |x~| rounded up; infinite where float32 cannot hold the row
  double* elements;  // [kGroup][d][kFloats] the rows of a group as they are, for the recheck
};

inline int64_t narrow_scratch(int64_t d, char* base, NarrowScratch* s) {
  int64_t at = 0;
  s->columns = take<float>(base, &at, d * kNarrowBlock);
  s->norms = take<float>(base, &at, kNarrowBlock);
  s->elements = take<double>(base, &at, d * kGroupRows);
  return at;
}

// Up to four columns of one row; zeros after them.
inline Quad columns_of(const float* x, int64_t count) {
  if (count >= 4) return *reinterpret_cast<const Quad*>(x);
#if defined(__AVX2__)
  return (Quad)_mm_maskload_ps(x, _mm_cmplt_epi32(_mm_setr_epi32(0, 1, 2, 3), _mm_set1_epi32(int(count))));
#else
  return Quad{x[0], count > 1 ? x[1] : 0.0f, count > 2 ? x[2] : 0.0f, 0.0f};
#endif
}

// Up to four columns of kFloats / 4 rows, each four rows after the one before.
inline Floats narrow_quads(const float* const rows[kFloats], const float* m, float scale, int64_t count, int64_t i) {
  Quad x[kFloats / 4], shift[kFloats / 4];
#pragma GCC unroll 4
  for (int q = 0; q < kFloats / 4; ++q) {
    x[q] = columns_of(rows[4 * q] + i, count);
    shift[q] = columns_of(m + i, count);
  }
  return (of_quads(x) - of_quads(shift)) * scale;
}
inline Floats narrow_quads(const double* const rows[kFloats], const double* m, double scale, int64_t count, int64_t i) {
  typedef double Four __attribute__((vector_size(32), aligned(8), may_alias));
  Quad x[kFloats / 4];
#pragma GCC unroll 4
  for (int q = 0; q < kFloats / 4; ++q) {
    const double* here = rows[4 * q] + i;
    Four v = {}, shift = {};
    if (count >= 4) {
      v = *reinterpret_cast<const Four*>(here);
      shift = *reinterpret_cast<const Four*>(m + i);
    } else {
#if defined(__AVX2__)
      const __m256i some = _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
      v = (Four)_mm256_maskload_pd(here, some);
      shift = (Four)_mm256_maskload_pd(m + i, some);
#else
      for (int c = 0; c < count; ++c) v[c] = here[c], shift[c] = m[i + c];
#endif
    }
    x[q] = __builtin_convertvector((v - shift) * scale, Quad);
  }
  return of_quads(x);
}

// The columns and squares of one vector of rows, of which n are there; the last is repeated.
template <class T>
inline Floats transpose_rows(const T* x, int64_t row_stride, int64_t n, int64_t d, const T* m, T scale, float* to) {
  const T* rows[kFloats];
  for (int64_t r = 0; r < kFloats; ++r) rows[r] = x + (r < n ? r : n - 1) * row_stride;
  // As many chains as hide the latency of a multiply-add.
  Floats squares[4] = {};
  const auto step = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    Floats v[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) v[r] = narrow_quads(rows + r, m, scale, count, i);
    transpose_in_quads(v);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      squares[c] = fmadd(v[c], v[c], squares[c]);
      if (c < count) store(to + (i + c) * kGroupRows, v[c]);
    }
  };
  int64_t i = 0;
  for (; i + 4 <= d; i += 4) step(i, 4);
  if (i < d) step(i, d - i);
  return (squares[0] + squares[1]) + (squares[2] + squares[3]);
}

// The same of a whole vector of rows of fewer than four columns of double, which fill less than half of a load.
template <class T>
inline Floats transpose_few(const T* x, int64_t row_stride, int64_t d, const T* m, T scale, float* to) {
  Floats squares = {};
  for (int64_t i = 0; i < d; ++i) {
    const T shift = m[i];
    float* column = to + i * kGroupRows;
#pragma GCC ivdep
    for (int64_t r = 0; r < kFloats; ++r) column[r] = float((x[r * row_stride + i] - shift) * scale);
    squares = fmadd(load(column), load(column), squares);
  }
  return squares;
}

// Rows n <= kNarrowBlock; what fills up the last group repeats the last row.
template <class T>
void transpose(const T* x, int64_t row_stride, int64_t n, int64_t d, const Prepared<T>& p, const NarrowScratch& s) {
  const T scale = T(*p.scale);
  const int64_t padded = (n + kGroupRows - 1) / kGroupRows * kGroupRows;
  for (int64_t first = 0; first < padded; first += kFloats) {
    float* to = s.columns + first / kGroupRows * kGroupRows * d + first % kGroupRows;
    const int64_t from = first < n ? first : n - 1;
    const T* rows = x + from * row_stride;
    store(s.norms + first, sizeof(T) == 8 && d < 4 && from + kFloats <= n
                               ? transpose_few(rows, row_stride, d, p.shift, scale, to)
                               : transpose_rows(rows, row_stride, n - from, d, p.shift, scale, to));
  }
  const float up = 1.0f + float(d + 8) * 0x1p-23f, floor = sqrtf(float(d)) * 0x1p-74f;
  for (int64_t row = 0; row < padded; ++row) {
    const float norm = sqrtf(s.norms[row]) * up + floor;
    s.norms[row] = norm < kHugeRow ? norm : INFINITY;
  }
}

struct LowestRow {
  Floats first, second;
  Ints position;
};

// L of kGroupRows rows and the centroids from `position` on, a multiple of kShare; start is p.h, or p.half for rows on
// the grid (assign_grid.h), whose norms are 0.
template <class T>
inline __attribute__((always_inline)) void narrow_bounds(const Packed<T>& p, const float* start, int64_t position,
                                                         const float* columns, int64_t d, const Floats norm[kGroup],
                                                         Floats out[kShare][kGroup]) {
  const float* c = static_cast<const float*>(p.operands) + position * d;
#pragma GCC unroll 4
  for (int j = 0; j < kShare; ++j) {
    const Floats h = broadcast(start[position + j]), b = broadcast(p.b[position + j]);
#pragma GCC unroll 4
    for (int v = 0; v < kGroup; ++v) out[j][v] = fnmadd(norm[v], b, h);
  }
  for (int64_t i = 0; i < d; ++i) {
    Floats x[kGroup];
#pragma GCC unroll 4
    for (int v = 0; v < kGroup; ++v) x[v] = load(columns + i * kGroupRows + v * kFloats);
#pragma GCC unroll 4
    for (int j = 0; j < kShare; ++j) {
      const Floats ci = broadcast(c[i * kShare + j]);
#pragma GCC unroll 4
      for (int v = 0; v < kGroup; ++v) out[j][v] = fnmadd(x[v], ci, out[j][v]);
    }
  }
}

template <class T>
__attribute__((noinline)) void narrow_scan(const Packed<T>& p, const float* start, const float* columns, int64_t d,
                                           const Floats norm[kGroup], LowestRow low[kGroup]) {
  LowestRow best[kGroup];
#pragma GCC unroll 4
  for (int v = 0; v < kGroup; ++v) best[v] = LowestRow{broadcast(INFINITY), broadcast(INFINITY), Ints{}};
  const int64_t live = *p.live;
  for (int64_t at = 0; at < live; at += kShare) {
    Floats value[kShare][kGroup];
    narrow_bounds(p, start, at, columns, d, norm, value);
#pragma GCC unroll 4
    for (int j = 0; j < kShare; ++j) {
      const Ints position = Ints{} + int32_t(at + j);
#pragma GCC unroll 4
      for (int v = 0; v < kGroup; ++v) {
        Floats first = best[v].first;
        best[v].second = minimum(best[v].second, maximum(first, value[j][v]));
        best[v].position = value[j][v] < first ? position : best[v].position;
        best[v].first = minimum(first, value[j][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kGroup; ++v) low[v] = best[v];
}

// The nearest centroids so far of the rows of one vector, in D64.
struct NearestRows {
  Doubles distance[kFloats / kDoubles];
  Longs index[kFloats / kDoubles];
};

// Compare the rows of one vector, elements [d][kFloats], with one centroid: the lowest index on ties.
template <class T>
inline void consider_rows(const double* elements, const T* c, int64_t d, int64_t index, NearestRows* best) {
  constexpr int kParts = kFloats / kDoubles;
  Doubles acc[kParts] = {};
  for (int64_t i = 0; i < d; ++i) {
    const Doubles ci = broadcast(double(c[i]));
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      Doubles t = load(elements + i * kFloats + part * kDoubles) - ci;
      acc[part] = acc[part] + t * t;
    }
  }
  for (int part = 0; part < kParts; ++part) {
    const Longs own = Longs{} + index;
    const Longs tie = (acc[part] == best->distance[part]) & (own < best->index[part]);
    const Longs closer = (acc[part] < best->distance[part]) | tie;
    best->index[part] = closer ? own : best->index[part];
    best->distance[part] = closer ? acc[part] : best->distance[part];
  }
}

// Labels of the n rows of a group whose limit is not -infinity: D64 of the centroids whose bound is at most that. Where
// one row of a vector has a candidate, all are compared with it: it does no harm, and where there are ties everywhere
// it costs a tenth of one row at a time.
template <class T>
void narrow_rescan(const Packed<T>& p, const float* columns, int64_t d, const Floats norm[kGroup], const float* limit,
                   const T* x, int64_t row_stride, int64_t n, const T* centroids, double* elements, int64_t* labels) {
  NearestRows best[kGroup];
  for (int64_t row = 0; row < kGroupRows; ++row) {
    double* column = elements + row / kFloats * d * kFloats + row % kFloats;
    for (int64_t i = 0; i < d; ++i) column[i * kFloats] = row < n ? double(x[row * row_stride + i]) : 0.0;
  }
  for (int v = 0; v < kGroup; ++v) {
    for (int part = 0; part < kFloats / kDoubles; ++part) {
      best[v].distance[part] = broadcast(double(INFINITY));
      best[v].index[part] = Longs{} + INT64_MAX;
    }
  }
  const int64_t live = *p.live;
  for (int64_t at = 0; at < live; at += kShare) {
    Floats value[kShare][kGroup];
    narrow_bounds(p, p.h, at, columns, d, norm, value);
    for (int j = 0; j < kShare && at + j < live; ++j) {
      const int64_t index = p.index[at + j];
      for (int v = 0; v < kGroup; ++v) {
        if (mask_at_most(value[j][v], load(limit + v * kFloats)) == 0) continue;
        consider_rows(elements + v * d * kFloats, centroids + index * d, d, index, best + v);
      }
    }
  }
  for (int64_t row = 0; row < n; ++row) {
    const int lane = int(row % kFloats);
    if (limit[row] > -INFINITY) labels[row] = best[row / kFloats].index[lane / kDoubles][lane % kDoubles];
  }
}

// The label of a row that no pass can decide.
template <class T>
int64_t nearest_of_all(const T* x, const Packed<T>& p, int64_t d, const T* centroids) {
  Nearest best = {0.0, -1};
  if (!finite_row(x, d)) return -1;
  for (int64_t at = 0; at < *p.live; at += kChains) {
    const T *rows[kChains], *candidates[kChains];
    double distances[kChains];
    for (int i = 0; i < kChains; ++i) {
      rows[i] = x;
      candidates[i] = centroids + p.index[at + i < *p.live ? at + i : at] * d;
    }
    d64_chains(rows, candidates, d, distances);
    for (int i = 0; i < kChains && at + i < *p.live; ++i) consider(&best, distances[i], p.index[at + i]);
  }
  return best.index;
}

// Labels of the n rows that `transpose` left in s; exact: they are on the grid.
template <class T>
void assign_columns(const T* x, int64_t row_stride, int64_t n, int64_t d, const T* centroids,
                    const Prepared<T>& prepared, const NarrowScratch& s, bool exact, Ahead ahead, int64_t* labels,
                    int64_t* rechecked) {
  const Packed<T>& p = prepared.all;
  const double rho = double(d + 4) * 0x1p-53;
  const CommonLimit common = common_limit_of(prepared, p.largest[1], d);
  for (int64_t start = 0; start < n; start += kGroupRows) {
    Floats norm[kGroup];
    LowestRow low[kGroup];
    const float* columns = s.columns + start * d;
    for (int v = 0; v < kGroup; ++v) norm[v] = exact ? Floats{} : load(s.norms + start + v * kFloats);
    ahead.step(kGroupRows * d * int64_t(sizeof(T)));
    narrow_scan(p, exact ? p.half : p.h, columns, d, norm, low);
    // Positions are in the order of the indices, and the first of equal ones is known.
    for (int64_t row = start; exact && row < n && row < start + kGroupRows; ++row) {
      labels[row] = p.index[low[(row - start) / kFloats].position[row % kFloats]];
    }
    if (exact) continue;
    float limit[kGroupRows];
    int64_t open = 0;
    for (int64_t v = 0; v < kGroup && start + v * kFloats < n; ++v) {
      const int64_t at = start + v * kFloats, rows = n - at < kFloats ? n - at : kFloats;
      const uint32_t beyond = mask_at_most(broadcast(kHugeRow), norm[v]);
      const bool unsure = (mask_at_most(low[v].second, common_limit(common, low[v].first, norm[v])) | beyond) != 0;
      for (int64_t lane = 0; lane < rows; ++lane) labels[at + lane] = p.index[low[v].position[lane]];
      for (int64_t lane = 0; lane < kFloats; ++lane) limit[v * kFloats + lane] = -INFINITY;
      for (int64_t lane = 0; lane < rows && unsure; ++lane) {
        const float length = s.norms[at + lane];
        if (!(length < INFINITY)) {
          labels[at + lane] = nearest_of_all(x + (at + lane) * row_stride, p, d, centroids);
          ++*rechecked;
          continue;
        }
        const int64_t one = low[v].position[lane];
        float t = limit_of(low[v].first[lane], length, p.a[one], p.b[one], p.norm[one], rho, *prepared.slack);
        if (!(low[v].second[lane] <= t)) continue;
        limit[v * kFloats + lane] = t;
        ++open;
      }
    }
    if (open == 0) continue;
    for (int64_t row = (n - start + kFloats - 1) / kFloats * kFloats; row < kGroupRows; ++row) limit[row] = -INFINITY;
    const int64_t rows = n - start < kGroupRows ? n - start : kGroupRows;
    narrow_rescan(p, columns, d, norm, limit, x + start * row_stride, row_stride, rows, centroids, s.elements,
                  labels + start);
    *rechecked += open;
  }
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
