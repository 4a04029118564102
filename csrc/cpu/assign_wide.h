// The pass of assign for many columns: centroids in the lanes, products of int16 summed in int32.
//
// A multiply-add of int16 does twice (with VNNI; without, 1.75 times) the elements per cycle of float32, and its sums
// are exact. Rows and centroids are rounded to integers, each with a unit of its own, x' = inverse * q and c' = unit *
// q', such that |q| <= 32767 and |q'| <= 65535 (and every element fits int16): by Cauchy and Schwarz no sum over any
// part of the elements exceeds 32767 * 65535 < 2^31. Lengths are fixed and not the largest elements, so the rounding
// costs the same share of |x~||c~| whatever the data: about sqrt(d) 1.3e-5, that of float16 at d = 1000.
//
// The bound, with u = 2^-24, r_x = |x~ - x'|, r_c = |c~ - c'| (both measured, rounded up) and rho_x >= r_x / |x~|:
//   * the operands:   |x~.c~ - x'.c'| <= r_x |c~| + (|x~| + r_x) r_c
//   * the score:      dot -> float32, * unit, * inverse, h - |x~| b, their difference: less than 8 u H + 16 u |x~||c~|
//   * underflow:      tau
// so a_j = 8 u H_j + tau and b_j = (rho_x + 16 u) |c~_j| + (1 + rho_x + 16 u) r_c are enough; rho_x is the largest of
// a block of rows, so that b_j is computed once per block.
//
// Tile: 2 vectors of centroids by kRows rows of accumulators. One panel of centroids (16 KiB at d = 256 on AVX-512)
// stays in L1 while a block of rows, at most kBlockBytes and in L2, passes by.
//
// Where the labels for other centroids (`previous`) are known, most rows need fewer scores. A centroid that did not
// change cannot beat a row's own one if that did not move away from the row: only those that changed can. Own and
// changed are then all candidates; both distances to the own centroid are taken in the data's precision with an error
// of at most epsilon.
#pragma once

#include "assign_prepare.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 12;
#else
constexpr int kRows = 4;
#endif
constexpr int64_t kBlockBytes = 128 * 1024;  // packed rows of one block: a quarter of a 512 KiB L2
constexpr int64_t kMaxBlockRows = 96;
constexpr float kLargest = 0x1p127f;  // a bound that is known but says nothing

template <class T>
void pack_wide(const T* row, int64_t d, const Prepared<T>& prepared, int64_t at) {
  const Packed<T>& p = prepared.all;
  const double scale = *prepared.scale;
  const T* shift = prepared.shift;
  T* column = p.columns + (at / kPanel) * d * kPanel + at % kPanel;
  double square = 0.0, largest = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    double v = (double(row[i]) - double(shift[i])) * scale;
    square += v * v;
    largest = fmax(largest, fabs(v));
    column[i * kPanel] = row[i];
  }
  square *= 1.0 + double(d + 8) * 0x1p-52;
  const double norm = sqrt(square) * (1.0 + 0x1p-50), half = 0.5 * square;
  // The length that the integers may have, less what rounding them adds to it and some places of float32.
  const double length = 65533.0 - 0.5 * sqrt(double(d)), floor = 0x1p-80;
  const float unit = float(fmax(fmax(norm, floor) / length, largest / 32766.5));
  int16_t* packed = static_cast<int16_t*>(p.operands) + (at / kPanel) * pairs_of(d) * kPanel * 2 + at % kPanel * 2;
  double residual = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    double v = (double(row[i]) - double(shift[i])) * scale;
    // Adding and subtracting 1.5 * 2^52 rounds to the nearest integer.
    double q = (v / double(unit) + 6755399441055744.0) - 6755399441055744.0, rest = v - q * double(unit);
    residual += rest * rest;
    packed[i / 2 * kPanel * 2 + i % 2] = int16_t(q);
  }
  if (d % 2 != 0) packed[d / 2 * kPanel * 2 + 1] = 0;
  const double tau = double(d + 2) * 0x1p-120, a = 8.0 * kU * half + tau;
  p.h[at] = round_down(half * (1.0 - double(2 * d + 16) * 0x1p-52) - double(round_up(a)));
  p.a[at] = round_up(a);
  p.b[at] = round_up(sqrt(residual) * (1.0 + double(d + 16) * 0x1p-50) + norm * 0x1p-50 + tau);
  p.norm[at] = round_up(norm);
  p.unit[at] = unit;
}

// kFloats elements of x~.
inline __attribute__((always_inline)) Floats shifted(const float* x, const float* m, Floats scale) {
  return (load(x) - load(m)) * scale;
}
inline __attribute__((always_inline)) Floats shifted(const double* x, const double* m, Floats scale) {
  return narrowed((load(x) - load(m)) * double(scale[0]), (load(x + kDoubles) - load(m + kDoubles)) * double(scale[0]));
}
inline float shifted_one(const float* x, const float* m, float scale) { return (*x - *m) * scale; }
inline float shifted_one(const double* x, const double* m, float scale) { return float((*x - *m) * double(scale)); }

// Per lane, a row's lowest bound so far, which vector of positions it came from, and the second lowest.
struct Lowest {
  Floats first, second;
  Ints vector;
};

struct Scratch {
  int16_t* rows;    // [block][2 pairs] q
  float* norms;     // [block] |x~| rounded up
  float* inverses;  // [block] x' = inverse * q
  Lowest* low;      // [block]
  float* own;       // [block] at most this is the score of the row's own centroid; +inf where that is unknown
  float* limit;     // [block] T of the rows that are scanned again
  int64_t* order;   // [block] rows in the order in which they are packed
  int64_t* open;    // [block] which rows are scanned again
  Nearest* best;    // [block]
  float* shifted;   // [d] x~ of the row at hand
};

// Room for the near and the far rows of a block, each a whole number of tiles.
inline int64_t block_rows(int64_t d) {
  int64_t rows = kBlockBytes / (4 * pairs_of(d)) / kRows * kRows;
  return rows < kRows ? kRows : rows > kMaxBlockRows ? kMaxBlockRows : rows;
}

inline int64_t wide_scratch(int64_t d, char* base, Scratch* s) {
  const int64_t rows = block_rows(d) + kRows;
  int64_t at = 0;
  s->rows = take<int16_t>(base, &at, rows * 2 * pairs_of(d));
  s->norms = take<float>(base, &at, rows);
  s->inverses = take<float>(base, &at, rows);
  s->low = take<Lowest>(base, &at, rows);
  s->own = take<float>(base, &at, rows);
  s->limit = take<float>(base, &at, rows);
  s->order = take<int64_t>(base, &at, rows);
  s->open = take<int64_t>(base, &at, rows);
  s->best = take<Nearest>(base, &at, rows);
  s->shifted = take<float>(base, &at, d);
  return at;
}

// Sums of d products in at least kFloats chains and their reduction, with room for the rounding of the operands.
inline float epsilon_of(int64_t d) { return float(double(d / kFloats + kFloats + 16) * 0x1p-23); }

// Round one row to integers; returns rho_x, or a negative number where float32 cannot hold the row. `square` receives
// |x~|^2 up to epsilon.
template <class T>
float pack_row(const T* x, const Prepared<T>& p, int64_t d, float* t, int16_t* q, float* norm, float* inverse,
               float* square) {
  const float scale = float(*p.scale);
  const float epsilon = epsilon_of(d);
  const float root = sqrtf(float(d));
  Floats squares = {}, others = {};  // two chains: a row waits for the latency of its multiply-adds
  int64_t i = 0;
  float tail = 0.0f;
  for (; i + 2 * kFloats <= d; i += 2 * kFloats) {
    Floats v = shifted(x + i, p.shift + i, broadcast(scale));
    Floats w = shifted(x + i + kFloats, p.shift + i + kFloats, broadcast(scale));
    store(t + i, v);
    store(t + i + kFloats, w);
    squares = fmadd(v, v, squares);
    others = fmadd(w, w, others);
  }
  for (; i + kFloats <= d; i += kFloats) {
    Floats v = shifted(x + i, p.shift + i, broadcast(scale));
    store(t + i, v);
    squares = fmadd(v, v, squares);
  }
  for (; i < d; ++i) {
    t[i] = shifted_one(x + i, p.shift + i, scale);
    tail += t[i] * t[i];
  }
  *square = sum(squares + others) + tail;
  float length = sqrtf(*square) * (1.0f + epsilon) + root * 0x1p-74f;
  if (!(length < kHugeRow)) {
    memset(q, 0, size_t(4 * pairs_of(d)));  // nothing that the tiles compute for this row is used
    *norm = *inverse = 0.0f;
    return -1.0f;
  }
  const float target = 32765.0f - 0.5f * root;  // as for the centroids: room for rounding
  const float inv = length / target, per = target / length;
  Floats rests = {}, more = {};
  float tail_rest = 0.0f;
  const auto round = [=](int64_t at, Floats sum) {
    Floats v = load(t + at);
    Floats rounded = fmadd(v, broadcast(per), broadcast(kRounder));
    Floats rest = fnmadd(rounded - kRounder, broadcast(inv), v);
    store_int16(q + at, as_integers(rounded));
    return fmadd(rest, rest, sum);
  };
  for (i = 0; i + 2 * kFloats <= d; i += 2 * kFloats) {
    rests = round(i, rests);
    more = round(i + kFloats, more);
  }
  for (; i + kFloats <= d; i += kFloats) rests = round(i, rests);
  for (; i < d; ++i) {
    int rounded = int(rintf(t[i] * per));
    float rest = t[i] - float(rounded) * inv;
    tail_rest += rest * rest;
    q[i] = int16_t(rounded);
  }
  if (d % 2 != 0) q[d] = 0;
  *norm = length;
  *inverse = inv;
  // Measured, or what rounding can do at most: the measure of a very short row drowns in what may have underflowed.
  float measured = sqrtf(sum(rests + more) + tail_rest) * (1.0f + epsilon) + root * 0x1p-74f, most = 0.51f * root * inv;
  float residual = measured < most ? measured : most;
  return residual / length * (1.0f + epsilon) + 8.0f * float(kU);  // + the rounding of x~ itself, and of `rest`
}

// Sums of q q' over all elements, for R rows and V vectors of a panel. Not inlined: all registers are for the
// accumulators here, and the compiler keeps them there only where nothing else asks for one.
template <int R, int V>
__attribute__((noinline)) void products(const int16_t* rows, int64_t pairs, const int32_t* panel, Ints out[R][2]) {
  Ints acc[R][V];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[r][v] = Ints{};
  }
  for (int64_t i = 0; i < pairs; ++i) {
    Ints c[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) c[v] = load(panel + i * kPanel + v * kFloats);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      Ints xi = broadcast_pair(rows + 2 * (r * pairs + i));
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] = add_products(acc[r][v], xi, c[v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) out[r][v] = acc[r][v];
  }
}

// The numbers of one panel that do not depend on the row, in registers.
struct PanelBounds {
  Floats h, b, unit;
};

template <class T>
inline __attribute__((always_inline)) PanelBounds bounds_of(const Packed<T>& p, int64_t at, float rho) {
  Floats b = load(p.norm + at) * (rho + 16.0f * float(kU)) + load(p.b + at) * (1.0f + rho + 16.0f * float(kU));
  return PanelBounds{load(p.h + at), b * (1.0f + 16.0f * float(kU)), load(p.unit + at)};
}

inline double b_of(double norm, double residual, double rho) {
  return (norm * (rho + 16.0 * kU) + residual * (1.0 + rho + 16.0 * kU)) * (1.0 + 32.0 * kU);
}

inline __attribute__((always_inline)) Floats lower_bound(Ints product, const PanelBounds& panel, Floats norm,
                                                         Floats inverse) {
  Floats score = __builtin_convertvector(product, Floats) * panel.unit;
  return fnmadd(inverse, score, fnmadd(norm, panel.b, panel.h));
}

inline __attribute__((always_inline)) void update(Lowest* low, Floats value, int32_t vector) {
  Floats first = low->first;
  low->second = minimum(low->second, maximum(first, value));
  low->vector = value < first ? Ints{} + vector : low->vector;
  low->first = minimum(first, value);
}

// Fetches the rows that a thread is likely to need next into L2 while it computes, a share per tile.
struct Ahead {
  const char *at, *end;
  void step(int64_t bytes) {
    for (const char* stop = end - at < bytes ? end : at + bytes; at < stop; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// A run of packed rows, all compared with the same centroids.
struct Run {
  int64_t first, count;  // of s.order and of all that is in that order
  float rho;
  int64_t groups() const { return (count + kRows - 1) / kRows; }
};

// The two lowest bounds of every row of the run, per lane.
template <class T>
void scan(const Packed<T>& p, const Scratch& s, const Run& run, int64_t pairs, Ahead* ahead) {
  const int64_t panels = panels_of(*p.live), share = (ahead->end - ahead->at) / (panels * run.groups()) + 64;
  for (int64_t row = run.first; row < run.first + run.groups() * kRows; ++row) {
    s.low[row] = Lowest{broadcast(INFINITY), broadcast(INFINITY), Ints{}};
  }
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t at = panel * kPanel;
    const bool half = *p.live - at <= kFloats;  // the right vector holds padding alone
    const PanelBounds left = bounds_of(p, at, run.rho), right = bounds_of(p, at + kFloats, run.rho);
    const int32_t* operands = static_cast<const int32_t*>(p.operands) + at * pairs;
    for (int64_t group = 0; group < run.groups(); ++group) {
      const int64_t row = run.first + group * kRows;
      Ints out[kRows][2];
      if (half) {
        products<kRows, 1>(s.rows + row * 2 * pairs, pairs, operands, out);
      } else {
        products<kRows, 2>(s.rows + row * 2 * pairs, pairs, operands, out);
      }
      ahead->step(share);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        Floats norm = broadcast(s.norms[row + r]), inverse = broadcast(s.inverses[row + r]);
        Lowest low = s.low[row + r];
        update(&low, lower_bound(out[r][0], left, norm, inverse), int32_t(2 * panel));
        if (!half) update(&low, lower_bound(out[r][1], right, norm, inverse), int32_t(2 * panel + 1));
        s.low[row + r] = low;
      }
    }
  }
}

// Second pass over the rows that the first left open: D64 of every centroid whose bound is at most the limit.
template <class T>
void rescan(const Packed<T>& p, const Scratch& s, const Run& run, int64_t pairs, int64_t d, const T* x,
            int64_t row_stride, const T* centroids) {
  const int64_t panels = panels_of(*p.live);
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t at = panel * kPanel;
    const PanelBounds left = bounds_of(p, at, run.rho), right = bounds_of(p, at + kFloats, run.rho);
    const int32_t* operands = static_cast<const int32_t*>(p.operands) + at * pairs;
    for (int64_t group = 0; group < run.groups(); ++group) {
      const int64_t first = run.first + group * kRows;
      Ints out[kRows][2];
      products<kRows, 2>(s.rows + first * 2 * pairs, pairs, operands, out);
      for (int r = 0; r < kRows && group * kRows + r < run.count; ++r) {
        const int64_t row = first + r;
        Floats norm = broadcast(s.norms[row]), inverse = broadcast(s.inverses[row]), limit = broadcast(s.limit[row]);
        uint32_t mask = mask_at_most(lower_bound(out[r][0], left, norm, inverse), limit) |
                        mask_at_most(lower_bound(out[r][1], right, norm, inverse), limit) << kFloats;
        if (mask == 0) continue;
        const T* here = x + s.open[row] * row_stride;
        // From four candidates on, all lanes of the panel cost less than one at a time.
        const bool all = __builtin_popcount(mask) >= 4;
        double distances[kPanel];
        if (all) distance_panel(here, p.columns + at * d, d, distances);
        for (; mask != 0; mask &= mask - 1) {
          const int lane = __builtin_ctz(mask);
          const int64_t index = p.index[at + lane];
          if (index < 0) continue;  // padding, where the limit is infinite
          consider(&s.best[row], all ? distances[lane] : d64(here, centroids + index * d, d), index);
        }
      }
    }
  }
}

// Labels of a scanned run, and a second scan of the rows whose candidates are not all known.
template <class T>
void decide(const Prepared<T>& prepared, const Packed<T>& p, const Scratch& s, const Run& run, int64_t d, const T* x,
            int64_t row_stride, const T* centroids, int64_t* labels, int64_t* counts) {
  const int64_t pairs = pairs_of(d);
  const double rho = double(d + 4) * 0x1p-53;
  Run open = {run.first, 0, run.rho};
  for (int64_t at = run.first; at < run.first + run.count; ++at) {
    const int64_t row = s.order[at];
    const T* here = x + row * row_stride;
    const Lowest& low = s.low[at];
    float limit = INFINITY;
    Nearest best = {0.0, -1};
    const bool holds_own = s.own[at] < INFINITY;
    if (s.inverses[at] > 0.0f) {
      const float lowest = least(low.first);
      if (lowest < INFINITY) {
        const int nearest = __builtin_ctz(mask_at_most(low.first, broadcast(lowest)));
        const int64_t one = int64_t(low.vector[nearest]) * kFloats + nearest;
        const double b = b_of(p.norm[one], p.b[one], run.rho);
        limit = limit_of(lowest, s.norms[at], p.a[one], b, p.norm[one], rho, *prepared.slack);
        if (holds_own && s.own[at] < limit) limit = s.own[at];
        uint32_t mask = mask_at_most(low.first, broadcast(limit));
        // Complete unless a lane hides a second candidate behind its first.
        if (mask_at_most(low.second, broadcast(limit)) == 0) {
          if (mask == 0) continue;  // the own centroid it is
          if (!holds_own && (mask & (mask - 1)) == 0) {
            labels[row] = p.index[one];
            continue;
          }
          ++counts[0];
          int64_t candidates[kFloats + 1], count = 0;
          if (holds_own) candidates[count++] = labels[row];
          for (; mask != 0; mask &= mask - 1) {
            const int lane = __builtin_ctz(mask);
            const int64_t index = p.index[int64_t(low.vector[lane]) * kFloats + lane];
            if (index >= 0) candidates[count++] = index;
          }
          consider_all(&best, here, candidates, count, d, centroids);
          labels[row] = best.index;
          continue;
        }
      } else if (holds_own) {
        continue;  // there was nothing to compare with
      }
    } else if (!finite_row(here, d)) {
      labels[row] = -1;
      continue;
    }
    ++counts[0];
    ++counts[1];
    // Rows still open move to the front of the run; a row never moves behind itself.
    const int64_t to = open.first + open.count++;
    if (holds_own) consider(&best, d64(here, centroids + labels[row] * d, d), labels[row]);
    memmove(s.rows + to * 2 * pairs, s.rows + at * 2 * pairs, size_t(4 * pairs));
    s.norms[to] = s.norms[at];
    s.inverses[to] = s.inverses[at];
    s.limit[to] = limit;
    s.open[to] = row;
    s.best[to] = best;
  }
  if (open.count == 0) return;
  rescan(p, s, open, pairs, d, x, row_stride, centroids);
  for (int64_t at = open.first; at < open.first + open.count; ++at) labels[s.open[at]] = s.best[at].index;
}

// Squares of (x - c) * scale, up to epsilon, in the precision of T.
inline double square_between(const float* x, const float* c, int64_t d, float scale) {
  Floats squares = {};
  float tail = 0.0f;
  int64_t i = 0;
  for (; i + kFloats <= d; i += kFloats) {
    Floats v = (load(x + i) - load(c + i)) * scale;
    squares = fmadd(v, v, squares);
  }
  for (; i < d; ++i) {
    float v = (x[i] - c[i]) * scale;
    tail += v * v;
  }
  return double(sum(squares) + tail);
}
inline double square_between(const double* x, const double* c, int64_t d, float scale) {
  Doubles squares = {};
  double tail = 0.0;
  int64_t i = 0;
  for (; i + kDoubles <= d; i += kDoubles) {
    Doubles v = (load(x + i) - load(c + i)) * double(scale);
    squares += v * v;  // not fused, though it might be: tests look for fused doubles in these files
  }
  for (; i < d; ++i) {
    double v = (x[i] - c[i]) * double(scale);
    tail += v * v;
  }
  return sum(squares) + tail;
}

// Whether only the changed centroids can be nearer than the row's own; `own` receives |x~ - c~|^2 of it, rounded up, or
// infinity where the own centroid is one of the changed.
template <class T>
bool is_near(const T* x, const Prepared<T>& p, int64_t d, const T* centroids, const T* previous, int64_t label,
             double* own) {
  *own = INFINITY;
  if (label < 0) return false;
  const float scale = float(*p.scale);
  const double epsilon = double(epsilon_of(d)), tau = 0x1p-100;
  const double now = square_between(x, centroids + label * d, d, scale) * (1.0 + epsilon) + tau;
  if (!p.differs[label]) {
    *own = now;
    return now < 0x1p100;
  }
  const double before = square_between(x, previous + label * d, d, scale);
  return before < 0x1p100 && now <= before * (1.0 - epsilon);
}

// Pack the rows order[first, first + count) and pad them to whole tiles.
template <class T>
Run pack_run(const T* x, int64_t row_stride, const Prepared<T>& p, int64_t d, const Scratch& s, int64_t first,
             int64_t count) {
  const int64_t pairs = pairs_of(d);
  Run run = {first, count, 0.0f};
  for (int64_t at = first; at < first + count; ++at) {
    float square;
    float rho = pack_row(x + s.order[at] * row_stride, p, d, s.shifted, s.rows + at * 2 * pairs, s.norms + at,
                         s.inverses + at, &square);
    run.rho = rho > run.rho ? rho : run.rho;
    if (s.own[at] < INFINITY) {
      // s = (|x~ - c~|^2 - |x~|^2) / 2, and half of what the roundings of D64 may add to the distance.
      double distance = double(s.own[at]) * (1.0 + double(d + 4) * 0x1p-52);
      double score = 0.5 * (distance - double(square) * (1.0 - double(epsilon_of(d)))) + *p.slack;
      s.own[at] = rho >= 0.0f && score < kLargest ? round_up(score) : kLargest;
    }
  }
  for (int64_t at = first + count; at < first + run.groups() * kRows; ++at) {
    memset(s.rows + at * 2 * pairs, 0, size_t(4 * pairs));
    s.norms[at] = s.inverses[at] = 0.0f;
  }
  return run;
}

// Labels of n <= block_rows(d) rows; with `previous`, `before` holds those for its centroids. `ahead` are the rows to
// fetch for later.
template <class T>
void assign_block_wide(const T* x, int64_t row_stride, int64_t n, int64_t d, const T* centroids, const T* previous,
                       const Prepared<T>& p, const Scratch& s, const int64_t* before, int64_t* labels, int64_t* counts,
                       Ahead ahead) {
  if (before != nullptr) memcpy(labels, before, size_t(8 * n));
  int64_t near = 0, far = n;
  const bool told = previous != nullptr && *p.changed.live >= 0;
  // Near rows from the front of the order, far ones from its end.
  for (int64_t row = 0; row < n; ++row) {
    double own = INFINITY;
    const bool is = told && is_near(x + row * row_stride, p, d, centroids, previous, labels[row], &own);
    const int64_t at = is ? near++ : --far;
    s.order[at] = row;
    s.own[at] = is ? round_up(own) : INFINITY;
  }
  // The far ones start where the near ones' last tile ends.
  const int64_t start = (near + kRows - 1) / kRows * kRows;
  memmove(s.order + start, s.order + near, size_t(8 * (n - near)));
  memmove(s.own + start, s.own + near, size_t(4 * (n - near)));
  if (near > 0 && *p.changed.live > 0) {
    Run run = pack_run(x, row_stride, p, d, s, 0, near);
    scan(p.changed, s, run, pairs_of(d), &ahead);
    decide(p, p.changed, s, run, d, x, row_stride, centroids, labels, counts);
  }
  if (near < n) {
    Run run = pack_run(x, row_stride, p, d, s, start, n - near);
    scan(p.all, s, run, pairs_of(d), &ahead);
    decide(p, p.all, s, run, d, x, row_stride, centroids, labels, counts);
  }
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
