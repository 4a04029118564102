// The pass of assign for many columns: centroids in the lanes, products of int16 summed in int32. (assign_bytes.h
// replaces the int16 for rows of which much is known.)
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
#pragma once

#include "assign_prepare.h"
#include "assign_tiles.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;  // 12 sums, two vectors of centroids, one of rows and a product: all 16 registers
#endif
constexpr int64_t kBlockBytes = 128 * 1024;  // packed rows of one block: a quarter of a 512 KiB L2
constexpr int64_t kMaxBlockRows = 96;

// Centroid j of c at position `at`.
template <class T>
void pack_wide(const T* c, int64_t j, int64_t d, const Prepared<T>& prepared, int64_t at) {
  const T* row = c + j * d;
  const Packed<T>& p = prepared.all;
  p.index[at] = j;
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
  p.half[at] = float(0.5 * square);
  square *= 1.0 + double(d + 8) * 0x1p-52;
  const double norm = sqrt(square) * (1.0 + 0x1p-50), half = 0.5 * square;
  // The length that the integers may have, less what rounding them adds to it and some places of float32.
  const double length = 65533.0 - 0.5 * sqrt(double(d)), floor = 0x1p-80;
  const bool on_grid = *prepared.grid > 0.0;
  const float unit = float(on_grid ? *prepared.grid * scale : fmax(fmax(norm, floor) / length, largest / 32766.5));
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
inline __attribute__((always_inline)) Floats shifted(const float* x, const float* m, float scale) {
  return (load(x) - load(m)) * scale;
}
inline __attribute__((always_inline)) Floats shifted(const double* x, const double* m, double scale) {
  return narrowed((load(x) - load(m)) * scale, (load(x + kDoubles) - load(m + kDoubles)) * scale);
}
template <class T>
inline float shifted_one(const T* x, const T* m, T scale) {
  return float((*x - *m) * scale);
}

// Per lane, a row's lowest bound so far, which vector of positions it came from, and the second lowest.
struct Lowest {
  Floats first, second;
  Ints vector;
};

// For one row, the lowest bound in every group; in that of its own centroid the second lowest too, and the position of
// the lowest.
struct InGroups {
  float first[kMaxGroups], second;
  int64_t position;  // in bytes, -1: `first` leaves out the own centroid
};

// What is known of a row's own centroid: bounds of |x~ - c~|^2, of the score, and whether it surely did not
// move away from the row.
struct Own {
  float most, least;  // infinite and 0 where the row has no label yet
  float high, low;
  int32_t group;  // of the centroid, or -1
  bool stayed;
};
constexpr Own kUnknown = {INFINITY, 0.0f, INFINITY, -INFINITY, -1, false};

// Bit g: the row is compared with all centroids of group g, or with those that changed.
struct Needs {
  uint8_t whole, changed;
};

// What a row in bytes is compared by (assign_bytes.h), and what was found.
constexpr int kRivals = 32;
struct InBytes {
  float per, limit, least;
};
struct Rivals {
  int64_t count;  // more than kRivals: some are missing
  int32_t position[kRivals];
  float low[kRivals];
};

// A thread's share: packed rows in slots, the last of them of zeros, to fill up tiles.
struct Scratch {
  int16_t* rows;         // [slots][2 pairs] q; in bytes the first half is used
  float* norms;          // [slots in whole vectors] |x~| rounded up
  float* inverses;       // [slots] x' = inverse * q
  float* squares;        // [slots] |x~|^2 up to epsilon
  float* rests;          // [slots] |x~ - x'|^2 up to epsilon
  float* limit;          // [slots in whole vectors] T of a row
  int64_t* row;          // [slots] which row it is
  Nearest* best;         // [slots]
  Own* own;              // [slots]
  Needs* needs;          // [slots]
  InGroups* in_groups;   // [slots]
  Lowest* low;           // [slots]
  Lowest* low_in_group;  // [slots]
  int32_t* list;         // [slots] those that a scan compares
  InBytes* in_bytes;     // [slots]
  Rivals* rivals;        // [slots]
  int64_t* left;         // [2 slots] rows that bytes leave to int16
  uint8_t* tile_rows;    // [slots in whole tiles][words][4] the rows of a list, one after the other
  int32_t* sums;         // [kTileRows][kPanel] of a tile
};

inline int64_t block_rows(int64_t d) {
  int64_t rows = kBlockBytes / (4 * pairs_of(d)) / kRows * kRows;
  return rows < kRows ? kRows : rows > kMaxBlockRows ? kMaxBlockRows : rows;
}

inline int64_t wide_scratch(int64_t d, char* base, Scratch* s) {
  const int64_t slots = block_rows(d) + 1;
  int64_t at = 0;
  s->rows = take<int16_t>(base, &at, slots * 2 * pairs_of(d));
  s->norms = take<float>(base, &at, slots + kFloats);
  s->inverses = take<float>(base, &at, slots);
  s->squares = take<float>(base, &at, slots);
  s->rests = take<float>(base, &at, slots);
  s->limit = take<float>(base, &at, slots + kFloats);
  s->row = take<int64_t>(base, &at, slots);
  s->best = take<Nearest>(base, &at, slots);
  s->own = take<Own>(base, &at, slots);
  s->needs = take<Needs>(base, &at, slots);
  s->in_groups = take<InGroups>(base, &at, slots);
  s->low = take<Lowest>(base, &at, slots);
  s->low_in_group = take<Lowest>(base, &at, slots);
  s->list = take<int32_t>(base, &at, slots);
  s->in_bytes = take<InBytes>(base, &at, kHasBytes ? slots : 0);
  s->rivals = take<Rivals>(base, &at, kHasBytes ? slots : 0);
  s->left = take<int64_t>(base, &at, kHasBytes ? 2 * slots : 0);
  s->tile_rows = take<uint8_t>(base, &at, kHasTiles ? (slots + kTileRows) * 4 * quads_of(d) : 0);
  s->sums = take<int32_t>(base, &at, kHasTiles ? kTileRows * kPanel : 0);
  if (base != nullptr) {
    memset(s->rows + (slots - 1) * 2 * pairs_of(d), 0, size_t(4 * pairs_of(d)));
    s->norms[slots - 1] = s->inverses[slots - 1] = 0.0f;
  }
  return at;
}

// Sums of d products in at least kFloats chains and their reduction, with room for the rounding of the operands.
inline float epsilon_of(int64_t d) { return float(double(d / kFloats + kFloats + 16) * 0x1p-23); }

// Squares of (x - c) * scale, up to epsilon, in the precision of T.
inline double square_between(const float* x, const float* c, int64_t d, float scale) {
  Floats squares[4] = {};  // as many chains as hide most of the latency of a multiply-add
  float tail = 0.0f;
  int64_t i = 0;
  const auto step = [&](int64_t at, int chain) {
    const Floats v = (load(x + at) - load(c + at)) * scale;
    squares[chain] = fmadd(v, v, squares[chain]);
  };
  for (; i + 4 * kFloats <= d; i += 4 * kFloats) {
    step(i, 0);
    step(i + kFloats, 1);
    step(i + 2 * kFloats, 2);
    step(i + 3 * kFloats, 3);
  }
  for (; i + kFloats <= d; i += kFloats) step(i, 0);
  for (; i < d; ++i) {
    const float v = (x[i] - c[i]) * scale;
    tail += v * v;
  }
  return double(sum((squares[0] + squares[1]) + (squares[2] + squares[3])) + tail);
}
inline double square_between(const double* x, const double* c, int64_t d, double scale) {
  Doubles squares = {};
  double tail = 0.0;
  int64_t i = 0;
  for (; i + kDoubles <= d; i += kDoubles) {
    const Doubles v = (load(x + i) - load(c + i)) * scale;
    squares += v * v;  // not fused, though it might be: tests look for fused doubles in these files
  }
  for (; i < d; ++i) {
    const double v = (x[i] - c[i]) * scale;
    tail += v * v;
  }
  return sum(squares) + tail;
}

// A square of a length that is off by at most epsilon, and by what may have underflowed, as a length not below it.
inline float length_from(float square, int64_t d) {
  return sqrtf(square) * (1.0f + epsilon_of(d)) + sqrtf(float(d)) * 0x1p-74f;
}

// Round x~ to multiples of inv = 1 / per; returns |x~|^2 and the square of what rounding took, each up to epsilon. Two
// chains each: a row waits for the latency of its multiply-adds.
template <class T>
inline void round_row(const T* x, const Prepared<T>& p, int64_t d, float inv, float per, int16_t* q, float* square,
                      float* rest) {
  const T scale = T(*p.scale);
  Floats squares[2] = {}, rests[2] = {};
  int64_t i = 0;
  const auto step = [&](int64_t at, int chain) {
    const Floats v = shifted(x + at, p.shift + at, scale);
    const Floats rounded = fmadd(v, broadcast(per), broadcast(kRounder));
    const Floats left = fnmadd(rounded - kRounder, broadcast(inv), v);
    squares[chain] = fmadd(v, v, squares[chain]);
    rests[chain] = fmadd(left, left, rests[chain]);
    return as_integers(rounded);
  };
  for (; i + 2 * kFloats <= d; i += 2 * kFloats) {
    const Ints low = step(i, 0), high = step(i + kFloats, 1);
    store_int16(q + i, low, high);
  }
  for (; i + kFloats <= d; i += kFloats) store_int16(q + i, step(i, 0));
  *square = sum(squares[0] + squares[1]);
  *rest = sum(rests[0] + rests[1]);
  for (; i < d; ++i) {
    const float v = shifted_one(x + i, p.shift + i, scale), rounded = rintf(v * per), left = v - rounded * inv;
    *square += v * v;
    *rest += left * left;
    q[i] = int16_t(fmaxf(-32767.0f, fminf(32767.0f, rounded)));
  }
  if (d % 2 != 0) q[d] = 0;
}

// A row's unit, and the squares of the lengths that suit it: rows that long do not exceed the integers, nor fill less
// than half of their range.
struct Units {
  float inv, per;     // the unit, and 1 / unit; 0 while there is none
  float least, most;  // of |x~|^2 up to epsilon
};

inline Units units_of(float length, int64_t d) {
  const float root = sqrtf(float(d)), target = 32765.0f - 0.5f * root;  // as for the centroids: room for rounding
  const float most = fmaxf(0.0f, length * (1.0f - 2.0f * epsilon_of(d)) - root * 0x1p-73f);
  return Units{length / target, target / length, 0.25f * length * length, most * most};
}

// Round one row to integers, by `units` if they suit it; else they become those of its length. Leaves |x~|^2 up to
// epsilon, the square of what rounding took, and x' / q, which is 0 where float32 cannot hold the row.
template <class T>
void pack_row(const T* x, const Prepared<T>& p, int64_t d, Units* units, int16_t* q, float* square, float* rest,
              float* inverse) {
  if (!(units->per > 0.0f)) *units = units_of(1.0f, d);
  *inverse = units->inv;
  round_row(x, p, d, units->inv, units->per, q, square, rest);
  if (units->least <= *square && *square <= units->most) return;
  const float own = length_from(*square, d);
  if (!(own < kHugeRow)) {
    memset(q, 0, size_t(4 * pairs_of(d)));  // nothing that the tiles compute for this row is used
    *inverse = *square = *rest = 0.0f;
    return;
  }
  const Units exact = units_of(own, d);
  *inverse = exact.inv;
  round_row(x, p, d, exact.inv, exact.per, q, square, rest);
  *units = units_of(1.02f * own, d);  // rows of one length differ by rounding
}

// What the lengths of rows follow from; the same for all rows, so that a loop over packed rows takes whole vectors.
struct Lengths {
  float root, up, least;

  explicit Lengths(int64_t d) : root(sqrtf(float(d))), up(1.0f + epsilon_of(d)), least(root * 0x1p-74f) {}
  // |x~| rounded up, as length_from
  float norm(float square) const { return sqrtf(square) * up + least; }
  // |x~ - x'| / |x~|: measured, or what rounding can do at most. The measure of a very short row drowns in what may
  // have underflowed.
  float share(float square, float rest, float inverse) const {
    const float measured = norm(rest), most = 0.51f * root * inverse;
    return (measured < most ? measured : most) / norm(square);
  }
  // + the rounding of x~ itself, and of `rest`
  float rho(float share) const { return share * up + 8.0f * float(kU); }
};

// Sums of q q' over all elements, for R rows and V vectors of a panel. Not inlined: all registers are for the
// accumulators here, and the compiler keeps them there only where nothing else asks for one.
template <int R, int V>
__attribute__((noinline)) void products(const int16_t* const* rows, int64_t pairs, const int32_t* panel,
                                        Ints out[R][2]) {
  Ints acc[R][V];
  const int16_t* row[R];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) row[r] = rows[r];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[r][v] = Ints{};
  }
  // What limits this loop where two threads share a core is how many instructions are decoded: 32 for six rows, and
  // the loop's own three for two pairs.
#pragma GCC unroll 2
  for (int64_t i = 0; i < pairs; ++i) {
    Ints c[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) c[v] = load(panel + i * kPanel + v * kFloats);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      Ints xi = broadcast_pair(row[r] + 2 * i);
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

// In the place of rho: rows and centroids are on the grid (assign_grid.h), where nothing is rounded.
constexpr float kExact = -1.0f;

template <class T>
inline __attribute__((always_inline)) PanelBounds bounds_of(const Packed<T>& p, int64_t at, float rho) {
  if (rho == kExact) return PanelBounds{load(p.half + at), Floats{}, load(p.unit + at)};
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

inline void merge(Lowest* into, const Lowest& other) {
  into->second = minimum(minimum(into->second, other.second), maximum(into->first, other.first));
  into->vector = other.first < into->first ? other.vector : into->vector;
  into->first = minimum(into->first, other.first);
}

// Compare the slots list[0, count) with the panels [first, last) and hand the bounds of every tile to
// take(index in the list, the first position, bounds of the left vector, of the right one).
template <class T, class Take>
inline __attribute__((always_inline)) void scan(const Prepared<T>& p, const Scratch& s, int64_t count, int64_t d,
                                                int64_t first, int64_t last, float rho, Ahead* ahead, Take take) {
  const int64_t pairs = pairs_of(d), tiles = (count + kRows - 1) / kRows;
  const int64_t share = (ahead->end - ahead->at) / ((last - first) * tiles + 1) + 64;
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t at = panel * kPanel;
    if (p.used[panel] == 0) continue;
    const bool half = p.used[panel] <= kFloats;  // the right vector holds padding alone
    const PanelBounds left = bounds_of(p.all, at, rho), right = bounds_of(p.all, at + kFloats, rho);
    const int32_t* operands = static_cast<const int32_t*>(p.all.operands) + at * pairs;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int32_t* slots = s.list + tile * kRows;
      const int16_t* rows[kRows];
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) rows[r] = s.rows + slots[r] * 2 * pairs;
      Ints out[kRows][2];
      if (half) {
        products<kRows, 1>(rows, pairs, operands, out);
      } else {
        products<kRows, 2>(rows, pairs, operands, out);
      }
      ahead->step(share);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const Floats norm = broadcast(s.norms[slots[r]]), inverse = broadcast(s.inverses[slots[r]]);
        take(tile * kRows + r, at, lower_bound(out[r][0], left, norm, inverse),
             half ? broadcast(INFINITY) : lower_bound(out[r][1], right, norm, inverse));
      }
    }
  }
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
