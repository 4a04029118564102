// The pass of assign for CSR rows: centroids in the lanes, float32, the non-zeros of a row one after the other.
//
// Units and certificate are those of assign_prepare.h without the shift, which would leave no element of a row 0: c~ =
// c s, x~ = x s. The centroids are transposed once per call, so that a non-zero x_i meets the elements c_ji of all j
// side by side. With u = 2^-24, n the non-zeros of the row, g = (n + 1) u / (1 - (n + 1) u), x' = fl(x~) and c' =
// fl(c~):
//   * the sum:        a product takes part in at most n + 1 roundings, fused or not and in however many chains, and by
//                     Cauchy and Schwarz they cost at most g |x'||c'|
//   * the operands:   |x~.c~ - x'.c'| <= (2 u + u^2) |x~||c~|
//   * the bound:      fl(fl(h_j - r |c~_j|) - sum), where r = |x~| b: at most 2 u H_j + 4 u r |c~_j| + 2 u |x~||c~_j|
//   * underflow:      an operand or product below 2^-126 loses at most 2^-150: tau, and 2^-100 added to every norm
// so that a_j = 4 u H_j + tau and b_j = b |c~_j| with b = (g + 8 u) (1 + 16 u) are enough. n is the row's own: b is
// found once per row, and short rows have narrow bounds.
//
// Tile: kTile vectors of centroids, whose sums stay in registers while the row passes. Few vectors take several
// non-zeros at once instead, since a multiply-add has a latency of 4 clocks and two begin in each.
#pragma once

#include <omp.h>

#include "assign_prepare.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr int kTile = 8;
constexpr int64_t kLongRow = int64_t(1) << 20;  // rows of more non-zeros are rechecked: g must stay small

// Rows in CSR. Those of a part of a matrix begin at any offset.
template <class T, class Index>
struct CsrRows {
  const int64_t* indptr;
  const Index* indices;
  const T* values;
  int64_t n, d;
};

template <class T>
struct CsrPrepared {
  Prepared<T> common;  // of which the parts below `columns` are used
  int64_t width;       // centroids per column, padded to whole vectors
  float* columns;      // [d][width] c'
};

template <class T>
int64_t csr_layout(int64_t k, int64_t d, char* base, CsrPrepared<T>* p) {
  int64_t at = 0;
  p->width = (k + kFloats - 1) / kFloats * kFloats;
  p->common.scale = take<double>(base, &at, 1);
  p->common.slack = take<double>(base, &at, 1);
  p->common.all.live = take<int64_t>(base, &at, 1);
  p->common.all.index = take<int64_t>(base, &at, p->width);
  p->common.all.h = take<float>(base, &at, p->width);
  p->common.all.a = take<float>(base, &at, p->width);
  p->common.all.norm = take<float>(base, &at, p->width);
  p->common.hash = take<uint64_t>(base, &at, k);
  p->common.slots = take<int32_t>(base, &at, hash_size(k));
  p->columns = take<float>(base, &at, d * p->width);
  return at;
}

// A thread's share. `dense` holds zeros before and after every row.
template <class T>
struct CsrScratch {
  T* dense;             // [d]
  float* values;        // [d] x'
  float* bounds;        // [width] L
  int64_t* candidates;  // [k]
};

template <class T>
int64_t csr_scratch(int64_t k, int64_t d, char* base, CsrScratch<T>* s) {
  int64_t at = 0;
  s->dense = take<T>(base, &at, d);
  s->values = take<float>(base, &at, d);
  s->bounds = take<float>(base, &at, k + kFloats);
  s->candidates = take<int64_t>(base, &at, k);
  return at;
}

// Position `at` of the centroids, without its column; past the live ones, what is never the nearest.
template <class T>
void pack_norms(const T* c, int64_t d, const Prepared<T>& prepared, int64_t at) {
  const Packed<T>& p = prepared.all;
  if (at >= *p.live) {
    p.h[at] = INFINITY;
    p.a[at] = p.norm[at] = 0.0f;
    return;
  }
  const T* row = c + p.index[at] * d;
  double squares[4] = {};  // as many chains hide the latency of the additions
  for (int64_t i = 0; i < d; ++i) {
    const double v = double(row[i]) * *prepared.scale;
    squares[i % 4] += v * v;
  }
  const double square = ((squares[0] + squares[1]) + (squares[2] + squares[3])) * (1.0 + double(d + 8) * 0x1p-52);
  const double half = 0.5 * square, tau = double(d + 2) * 0x1p-120, a = 4.0 * kU * half + tau;
  p.h[at] = round_down(half * (1.0 - double(2 * d + 16) * 0x1p-52) - double(round_up(a)));
  p.a[at] = round_up(a);
  p.norm[at] = round_up(sqrt(square) * (1.0 + 0x1p-50) + 0x1p-100);
}

template <class T>
void csr_prepare(const T* c, int64_t k, int64_t d, char* workspace, int n_threads) {
  IeeeMode ieee;
  CsrPrepared<T> p;
  csr_layout(k, d, workspace, &p);
  const Packed<T>& all = p.common.all;
  double largest = 0.0;
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode own_mode;
#pragma omp for schedule(static)
    for (int64_t j = 0; j < k; ++j) p.common.hash[j] = hash_row(c + j * d, d);
  }
  const int64_t live = *all.live = find_distinct(c, k, d, p.common, all.index);
#pragma omp parallel num_threads(n_threads) reduction(max : largest)
  {
    IeeeMode own_mode;
#pragma omp for schedule(static)
    for (int64_t at = 0; at < live; ++at) {
      const T* row = c + all.index[at] * d;
      for (int64_t i = 0; i < d; ++i) {
        const double v = fabs(double(row[i]));
        largest = v > largest ? v : largest;
      }
    }
  }
  set_scale(largest, d, p.common);
  constexpr int64_t kColumns = 64;
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode own_mode;
#pragma omp for schedule(static) nowait
    for (int64_t at = 0; at < p.width; ++at) pack_norms(c, d, p.common, at);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < d; first += kColumns) {
      const int64_t last = d - first < kColumns ? d : first + kColumns;
      for (int64_t at = 0; at < p.width; ++at) {
        const T* row = at < live ? c + all.index[at] * d : nullptr;
        for (int64_t i = first; i < last; ++i) {
          p.columns[i * p.width + at] = row != nullptr ? float(double(row[i]) * *p.common.scale) : 0.0f;
        }
      }
    }
  }
}

// The non-zeros of a row as x', and an upper bound of |x~|: infinite or NaN where float32 cannot hold the row.
template <class T>
float narrow_row(const T* x, int64_t n, double scale, float* out) {
  for (int64_t p = 0; p < n; ++p) out[p] = float(double(x[p]) * scale);
  Floats squares = {};
  float tail = 0.0f;
  int64_t p = 0;
  for (; p + kFloats <= n; p += kFloats) squares = fmadd(load(out + p), load(out + p), squares);
  for (; p < n; ++p) tail += out[p] * out[p];
  const float up = 1.0f + float(n + 8) * 0x1p-23f, floor = sqrtf(float(n)) * 0x1p-74f;
  return sqrtf(sum(squares) + tail) * up + floor;
}

// Sums of V vectors of centroids, and their bounds from `at` on; returns the lowest.
template <int V, class T, class Index>
inline __attribute__((always_inline)) Floats bound_tile(const float* x, const Index* index, int64_t n,
                                                        const CsrPrepared<T>& p, int64_t at, Floats reach,
                                                        Floats lowest, float* bounds) {
  constexpr int kTogether = V <= 2 ? 4 : V <= 4 ? 2 : 1;  // non-zeros
  Floats acc[kTogether][V];
#pragma GCC unroll 4
  for (int t = 0; t < kTogether; ++t) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) acc[t][v] = Floats{};
  }
  const auto step = [&](int64_t i, Floats* into) {
    const Floats xi = broadcast(x[i]);
    const float* c = p.columns + int64_t(index[i]) * p.width + at;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) into[v] = fmadd(xi, load(c + v * kFloats), into[v]);
  };
  int64_t i = 0;
  for (; i + kTogether <= n; i += kTogether) {
#pragma GCC unroll 4
    for (int t = 0; t < kTogether; ++t) step(i + t, acc[t]);
  }
  for (; i < n; ++i) step(i, acc[0]);
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    Floats total = acc[0][v];
#pragma GCC unroll 4
    for (int t = 1; t < kTogether; ++t) total = total + acc[t][v];
    const int64_t place = at + v * kFloats;
    const Floats bound = fnmadd(reach, load(p.common.all.norm + place), load(p.common.all.h + place)) - total;
    store(bounds + place, bound);
    lowest = minimum(lowest, bound);
  }
  return lowest;
}

// L of all centroids; returns the lowest.
template <class T, class Index>
float bound_row(const float* x, const Index* index, int64_t n, const CsrPrepared<T>& p, float reach, float* bounds) {
  const Floats r = broadcast(reach);
  Floats lowest = broadcast(INFINITY);
  int64_t at = 0;
  for (; at + kTile * kFloats <= p.width; at += kTile * kFloats) {
    lowest = bound_tile<kTile>(x, index, n, p, at, r, lowest, bounds);
  }
  switch ((p.width - at) / kFloats) {
    case 7:
      return least(bound_tile<7>(x, index, n, p, at, r, lowest, bounds));
    case 6:
      return least(bound_tile<6>(x, index, n, p, at, r, lowest, bounds));
    case 5:
      return least(bound_tile<5>(x, index, n, p, at, r, lowest, bounds));
    case 4:
      return least(bound_tile<4>(x, index, n, p, at, r, lowest, bounds));
    case 3:
      return least(bound_tile<3>(x, index, n, p, at, r, lowest, bounds));
    case 2:
      return least(bound_tile<2>(x, index, n, p, at, r, lowest, bounds));
    case 1:
      return least(bound_tile<1>(x, index, n, p, at, r, lowest, bounds));
    default:
      return least(lowest);
  }
}

// The label of one row; counts it if D64 has to decide.
template <class T, class Index>
int64_t assign_row(const T* x, const Index* index, int64_t n, int64_t d, const T* centroids, const CsrPrepared<T>& p,
                   const CsrScratch<T>& s, int64_t* rechecked) {
  const Packed<T>& all = p.common.all;
  const int64_t live = *all.live;
  const float norm = narrow_row(x, n, *p.common.scale, s.values);
  int64_t count = 0;
  if (norm < kHugeRow && n <= kLongRow) {
    const double g = double(n + 1) * kU / (1.0 - double(n + 1) * kU), b = (g + 8.0 * kU) * (1.0 + 16.0 * kU);
    const float lowest = bound_row(s.values, index, n, p, round_up(double(norm) * b), s.bounds);
    int64_t one = 0;
    while (s.bounds[one] != lowest) ++one;
    const double rho = double(d + 4) * 0x1p-53;
    const float limit = limit_of(lowest, norm, all.a[one], b * all.norm[one], all.norm[one], rho, *p.common.slack);
    for (int64_t at = 0; at < live; at += kFloats) {
      for (uint32_t mask = mask_at_most(load(s.bounds + at), broadcast(limit)); mask != 0; mask &= mask - 1) {
        const int64_t position = at + __builtin_ctz(mask);
        if (position < live) s.candidates[count++] = all.index[position];
      }
    }
    if (count == 1) return all.index[one];
  } else {
    if (!finite_row(x, n)) return -1;
    memcpy(s.candidates, all.index, size_t(live) * sizeof(int64_t));
    count = live;
  }
  ++*rechecked;
  for (int64_t at = 0; at < n; ++at) s.dense[index[at]] = x[at];
  const int64_t nearest = nearest_of(s.dense, s.candidates, count, d, centroids);
  for (int64_t at = 0; at < n; ++at) s.dense[index[at]] = T(0);
  return nearest;
}

template <class T, class Index>
void csr_assign_all(const CsrRows<T, Index>& r, const void* centroids, int64_t k, char* workspace, char* scratch,
                    int64_t* labels, int64_t* counts, int n_threads) {
  CsrPrepared<T> p;
  csr_layout(k, r.d, workspace, &p);
  if (*p.common.all.live == 0) {
    for (int64_t row = 0; row < r.n; ++row) labels[row] = -1;
    return;
  }
  constexpr int64_t kRowsAtOnce = 64;
  int64_t rechecked = 0;
#pragma omp parallel num_threads(n_threads) reduction(+ : rechecked)
  {
    IeeeMode ieee;
    CsrScratch<T> own;
    csr_scratch(k, r.d, scratch + omp_get_thread_num() * csr_scratch(k, r.d, nullptr, &own), &own);
    int64_t count = 0;
#pragma omp for schedule(dynamic, kRowsAtOnce)
    for (int64_t row = 0; row < r.n; ++row) {
      const int64_t first = r.indptr[row], n = r.indptr[row + 1] - first;
      labels[row] =
          assign_row(r.values + first, r.indices + first, n, r.d, static_cast<const T*>(centroids), p, own, &count);
    }
    rechecked += count;
  }
  *counts += rechecked;
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
