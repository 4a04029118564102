// What both passes of assign need: the centroids without duplicates, shifted and scaled, and D64 of candidates.
//
// Units. Centroids and rows are shifted by m (the mean of the centroids, rounded to the data's type) and scaled by
// one power of two, so that the largest centroid element lies in [1, 2): c~ = (c - m) s, x~ = (x - m) s. A pass
// computes, for every centroid j, a lower bound L_j of the score s_j = |c~_j|^2/2 - x~.c~_j, which orders the
// distances of a row:
//
//   L_j <= s_j <= L_j + 2 (a_j + |x~| b_j)
//
// where a_j + |x~| b_j bounds what rounding can do to the score. The best, 1, is proved when L_2 > T = L_1 + 2 (a_1 +
// |x~| b_1) + rho (|x~| + |c~_1|)^2: then s_2 - s_1 exceeds what the roundings of D64 itself (rho = (d + 4) 2^-53 of
// the smaller distance) could reverse. Otherwise only centroids with L_j <= T can be nearest, and D64 decides between
// them. (T grows by `slack`, what underflow can do to D64 of float64 data; it is infinite, so that every row is
// rechecked, where such data leaves the range in which D64 neither underflows nor overflows.)
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "d64.h"
#include "dcfast/core.h"
#include "float_env.h"
#include "simd.h"
#include "workspace.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr int kPanel = 2 * kFloats;  // centroids side by side in the packed forms
constexpr double kU = 0x1p-24;       // half a unit in the last place of float32
constexpr float kHugeRow = 0x1p50f;  // rows that far out are rechecked: their squares must not overflow float32

// Few columns: rows in the lanes and float32 (assign_narrow.h); more: centroids in the lanes and int16
// (assign_wide.h), where an element of a score costs half as much, but a row as much as 64 elements of the other 56
// centroids and more. Measured with AVX2 and AVX-512 from 20 x 4 to 256 x 400. From 64 columns on the wide pass is
// level even with ten centroids, and has bounds, except for double, which takes longer to round; for a few centroids
// another pass is ahead of both (assign_few.h).
constexpr int64_t kFew = 8;
template <class T>
bool is_narrow(int64_t k, int64_t d) {
  return d <= 16 || (d * (k + 56) <= 6700 && (d < 64 || (sizeof(T) == 8 && k > kFew)));
}

// The wide pass keeps, per row and group of centroids, how near one of them can be, and how far the own centroid: kKept
// floats a row, so that the memory that a fit takes stays below 64 bytes a row. A group is a run of indices, whole
// panels of AVX2 long. Of many centroids larger groups would hardly ever be far as a whole: they are one group, which
// costs least to look at.
constexpr int64_t kKept = 8, kMaxGroups = kKept - 1, kGroupStep = 16, kMaxGrouped = 512;

inline int64_t group_size(int64_t k) {
  const int64_t share = k <= kMaxGrouped ? kMaxGroups * kGroupStep : kGroupStep;
  return (k + share - 1) / share * kGroupStep;
}
inline int64_t groups_of(int64_t k) { return (k + group_size(k) - 1) / group_size(k); }

inline int64_t panels_of(int64_t k) { return (k + kPanel - 1) / kPanel; }
inline int64_t pairs_of(int64_t d) { return (d + 1) / 2; }

// The wide pass may round to bytes first (assign_bytes.h): four of them to a word, spans of kByteSpan columns to a sum,
// which is an int32 with VNNI and two int16 without. A tile of AMX takes 16 words at a time.
#if defined(__AVX2__)
constexpr bool kHasBytes = true;
#else
constexpr bool kHasBytes = false;
#endif
#if defined(__AVX512VNNI__)
constexpr bool kLongSums = true;
#else
constexpr bool kLongSums = false;
#endif
#if defined(__AMX_INT8__)
constexpr int64_t kTileWords = 16;
#else
constexpr int64_t kTileWords = 1;
#endif
constexpr int64_t kMostOfBytes = 8192, kByteSpan = kLongSums ? kMostOfBytes : 64;
inline int64_t quads_of(int64_t d) { return ((d + 3) / 4 + kTileWords - 1) / kTileWords * kTileWords; }
inline int64_t spans_of(int64_t d) { return (d + kByteSpan - 1) / kByteSpan; }

// One place in 2^23 and the smallest normal number are more than what rounding to float32 can take away.
inline float round_up(double v) { return float(v + fabs(v) * 0x1p-23 + 0x1p-126); }
inline float round_down(double v) { return -round_up(-v); }

// Centroids as a pass reads them; position p holds the centroid index[p]. Views into the workspace.
template <class T>
struct Packed {
  int64_t* live;   // [1] distinct finite centroids
  float* largest;  // [3] of a, b and norm
  int64_t* index;  // [positions] -1 in the padding
  float* h;        // [positions] |c~|^2/2 - a, rounded down; +inf in the padding
  float* a;        // [positions] rounded up
  float* b;        // [positions] rounded up; the wide pass adds the part that depends on the rows
  float* norm;     // [positions] |c~| rounded up
  float* unit;     // [positions] wide: c' = unit * its integers
  float* half;     // [positions] on a grid: |c~|^2/2; +inf in the padding
  void* operands;  // narrow: float32 [tiles][d][kShare]; wide: int16 [panels][pairs][kPanel][2]
  T* columns;      // wide: [panels][d][kPanel] the centroids themselves, for the recheck
};

// The same centroids in bytes (assign_bytes.h).
struct PackedBytes {
  float* largest;     // [2] of |c~| / unit and |c~ - c'| / unit, rounded up
  float* unit;        // [positions] c' = unit * its integers
  float* h;           // [positions] that of the centroid / unit; +inf in the padding
  float* per;         // [positions] 1 / unit; 0 in the padding
  int32_t* operands;  // int8 [panels][quads][kPanel][4]
  int32_t* starts;    // [panels][spans][kPanel] what the sums of a span begin with
};

// The panels of the wide pass: every group begins a new one. With `previous`, as many panels follow for the centroids
// that changed, group by group as well, without columns.
struct Groups {
  int64_t size, count;     // centroids per group; groups
  int64_t stride, panels;  // panels per group, and of all groups
  int64_t position(int64_t at) const { return at / size * stride * kPanel + at % size; }
};

inline Groups grouped(int64_t k) {
  const int64_t size = group_size(k), count = groups_of(k), stride = (size + kPanel - 1) / kPanel;
  return Groups{size, count, stride, count * stride};
}

template <class T>
struct Prepared {
  Groups groups;  // wide
  double* scale;  // [1]
  double* slack;  // [1]
  double* grid;   // [2] see assign_grid.h
  T* shift;       // [d] m
  Packed<T> all;  // distinct finite centroids, in the order of their index
  bool in_bytes;  // whether they are also there in bytes
  PackedBytes bytes;
  int32_t* used;      // [panels, and again for the changed] positions in use
  uint32_t* fresh;    // [2] bit g: some centroids of the group changed; at most a quarter of its panels are of them
  float* drift;       // [kKept] at least how far a centroid of the group moved; in the data's units
  float* step;        // [k] at least how far a centroid moved; with `previous`
  uint8_t* differs;   // [k] whether a centroid differs from `previous`
  uint64_t* hash;     // [k] used while preparing, as are the slots
  int32_t* slots;     // [hash size]
  int64_t* distinct;  // [k] the index of the live ones, in order
};

inline int64_t hash_size(int64_t k) {
  int64_t size = 16;
  while (size < 2 * k) size *= 2;
  return size;
}

// Bytes of the workspace for the narrow or the wide pass; for the latter with room for changed centroids or not, and
// for those in bytes if there are labels.
template <class T>
int64_t layout(int64_t k, int64_t d, bool narrow, bool with_previous, bool labelled, char* base, Prepared<T>* p) {
  int64_t at = 0;
  p->groups = grouped(k);
  const int64_t panels = narrow ? panels_of(k) : p->groups.panels * (with_previous ? 2 : 1);
  p->scale = take<double>(base, &at, 1);
  p->slack = take<double>(base, &at, 1);
  p->grid = take<double>(base, &at, 2);
  p->shift = take<T>(base, &at, d);
  p->all.live = take<int64_t>(base, &at, 1);
  p->all.largest = take<float>(base, &at, 3);
  p->all.index = take<int64_t>(base, &at, panels * kPanel);
  p->all.h = take<float>(base, &at, panels * kPanel);
  p->all.a = take<float>(base, &at, panels * kPanel);
  p->all.b = take<float>(base, &at, panels * kPanel);
  p->all.norm = take<float>(base, &at, panels * kPanel);
  p->all.unit = take<float>(base, &at, panels * kPanel);
  p->all.half = take<float>(base, &at, panels * kPanel);
  p->all.operands = take<float>(base, &at, panels * kPanel * (narrow ? d : pairs_of(d)));
  p->in_bytes = kHasBytes && !narrow && labelled && d <= kMostOfBytes;
  const int64_t in_bytes = p->in_bytes ? panels * kPanel : 0;
  p->bytes.largest = take<float>(base, &at, 2);
  p->bytes.unit = take<float>(base, &at, in_bytes);
  p->bytes.h = take<float>(base, &at, in_bytes);
  p->bytes.per = take<float>(base, &at, in_bytes);
  p->bytes.operands = take<int32_t>(base, &at, in_bytes * quads_of(d));
  p->bytes.starts = take<int32_t>(base, &at, in_bytes * spans_of(d));
  p->all.columns = take<T>(base, &at, narrow ? 0 : p->groups.panels * kPanel * d);
  p->used = take<int32_t>(base, &at, narrow ? 0 : panels);
  p->fresh = take<uint32_t>(base, &at, 2);
  p->drift = take<float>(base, &at, kKept);
  p->step = take<float>(base, &at, !narrow && with_previous ? k : 0);
  p->differs = take<uint8_t>(base, &at, k);
  p->hash = take<uint64_t>(base, &at, k);
  p->slots = take<int32_t>(base, &at, hash_size(k));
  p->distinct = take<int64_t>(base, &at, k);
  return at;
}

// The power of two that brings elements up to `largest` into [1, 2). The passes scale in T, and float32 holds 2^-126 to
// 2^127; beyond that elements are less than 1, and only tau grows beside them.
constexpr int kMostExponent = 120;

template <class T>
double scale_of(double largest) {
  int exponent = largest > 0.0 ? ilogb(largest) : 0;
  const int most = sizeof(T) == 4 ? kMostExponent : 1000;
  exponent = exponent < -most ? -most : exponent;
  if (sizeof(T) == 4 && exponent > most) exponent = most;
  return ldexp(1.0, -exponent);
}

// The scale, and the slack that goes with it.
template <class T>
void set_scale(double largest, int64_t d, const Prepared<T>& p) {
  const double scale = *p.scale = scale_of<T>(largest);
  // Rows reach 2^50 times the centroids, so below 2^440 no square exceeds 2^1000.
  *p.slack = abs(ilogb(scale)) > 440 ? INFINITY : double(d) * 0x1p-1073 * scale * scale;
}

// The largest element of n rows, shifted.
template <class T>
double largest_of(const T* x, int64_t row_stride, int64_t n, int64_t d, const T* shift) {
  typedef T Row __attribute__((vector_size(kDoubles * sizeof(T)), aligned(sizeof(T)), may_alias));
  Doubles lanes = {};
  double largest = 0.0;
  for (int64_t row = 0; row < n; ++row) {
    const T* here = x + row * row_stride;
    int64_t i = 0;
    for (; i + kDoubles <= d; i += kDoubles) {
      Doubles v = __builtin_convertvector(*reinterpret_cast<const Row*>(here + i), Doubles) -
                  __builtin_convertvector(*reinterpret_cast<const Row*>(shift + i), Doubles);
      v = v < 0.0 ? -v : v;
      lanes = v > lanes ? v : lanes;  // never a NaN
    }
    for (; i < d; ++i) {
      const double v = fabs(double(here[i]) - double(shift[i]));
      largest = v > largest ? v : largest;
    }
  }
  for (int lane = 0; lane < kDoubles; ++lane) largest = lanes[lane] > largest ? lanes[lane] : largest;
  return largest;
}

template <class T>
bool finite_row(const T* row, int64_t d) {
  bool finite = true;
  for (int64_t i = 0; i < d; ++i) finite = finite && fabs(double(row[i])) <= 1.7976931348623157e308;
  return finite;
}

template <class T>
bool equal_rows(const T* a, const T* b, int64_t d) {
  for (int64_t i = 0; i < d; ++i) {
    if (a[i] != b[i]) return false;
  }
  return true;
}

constexpr uint64_t kNotFinite = 0;  // as a hash

template <class T>
uint64_t hash_row(const T* row, int64_t d) {
  if (!finite_row(row, d)) return kNotFinite;
  // Four chains hide the latency of the multiplication.
  uint64_t hash[4] = {1, 2, 3, 4};
  for (int64_t i = 0; i < d; ++i) {
    double v = double(row[i]) + 0.0;  // -0 and +0 are equal centroids
    uint64_t bits;
    memcpy(&bits, &v, 8);
    uint64_t mixed = (hash[i % 4] ^ bits) * 0xD6E8FEB86659FD93u;
    hash[i % 4] = mixed ^ (mixed >> 32);
  }
  uint64_t all = hash[0] ^ (hash[1] * 3) ^ (hash[2] * 5) ^ (hash[3] * 7);
  return all == kNotFinite ? 1 : all;
}

// The distinct finite centroids, the lowest index of equal ones.
template <class T>
int64_t find_distinct(const T* c, int64_t k, int64_t d, const Prepared<T>& p, int64_t* distinct) {
  const int64_t size = hash_size(k);
  int64_t live = 0;
  memset(p.slots, 0xFF, size_t(4 * size));
  for (int64_t j = 0; j < k; ++j) {
    if (p.hash[j] == kNotFinite) continue;
    uint64_t slot = p.hash[j] & uint64_t(size - 1);
    bool seen = false;
    while (p.slots[slot] >= 0 && !seen) {
      int64_t other = distinct[p.slots[slot]];
      seen = p.hash[other] == p.hash[j] && equal_rows(c + other * d, c + j * d, d);
      slot = (slot + 1) & uint64_t(size - 1);
    }
    if (seen) continue;
    p.slots[slot] = int32_t(live);
    distinct[live++] = j;
  }
  return live;
}

// Word 0 of position `at` among panels of so many words a position; the next one is kPanel further on.
inline int32_t* word_at(void* operands, int64_t at, int64_t words) {
  return static_cast<int32_t*>(operands) + at / kPanel * words * kPanel + at % kPanel;
}

// Words of a position become those of another, or 0.
inline void copy_words(void* operands, int64_t from, int64_t to, int64_t words) {
  const int32_t* old = from < 0 ? nullptr : word_at(operands, from, words);
  int32_t* own = word_at(operands, to, words);
  for (int64_t i = 0; i < words; ++i) own[i * kPanel] = from < 0 ? 0 : old[i * kPanel];
}

template <class T>
void copy_operands(const Prepared<T>& prepared, int64_t from, int64_t to, int64_t d) {
  copy_words(prepared.all.operands, from, to, pairs_of(d));
  if (!prepared.in_bytes) return;
  copy_words(prepared.bytes.operands, from, to, quads_of(d));
  copy_words(prepared.bytes.starts, from, to, spans_of(d));
}

template <class T>
void pack_padding(const Prepared<T>& prepared, int64_t at, int64_t d) {
  const Packed<T>& p = prepared.all;
  p.index[at] = -1;
  p.h[at] = p.half[at] = INFINITY;
  p.a[at] = p.b[at] = p.norm[at] = p.unit[at] = 0.0f;
  if (prepared.in_bytes) {
    prepared.bytes.h[at] = INFINITY;
    prepared.bytes.unit[at] = prepared.bytes.per[at] = 0.0f;
  }
  copy_operands(prepared, -1, at, d);
}

template <class T>
void copy_position(const Prepared<T>& prepared, int64_t from, int64_t to, int64_t d) {
  const Packed<T>& p = prepared.all;
  p.index[to] = p.index[from];
  p.h[to] = p.h[from];
  p.a[to] = p.a[from];
  p.b[to] = p.b[from];
  p.norm[to] = p.norm[from];
  p.unit[to] = p.unit[from];
  p.half[to] = p.half[from];
  if (prepared.in_bytes) {
    prepared.bytes.h[to] = prepared.bytes.h[from];
    prepared.bytes.unit[to] = prepared.bytes.unit[from];
    prepared.bytes.per[to] = prepared.bytes.per[from];
  }
  copy_operands(prepared, from, to, d);
}

// What the common limits of all rows need.
template <class T>
void set_largest(const Packed<T>& p, int64_t positions) {
  float largest[3] = {};
  for (int64_t at = 0; at < positions; ++at) {
    largest[0] = fmaxf(largest[0], p.a[at]);
    largest[1] = fmaxf(largest[1], p.b[at]);
    largest[2] = fmaxf(largest[2], p.norm[at]);
  }
  memcpy(p.largest, largest, sizeof largest);
}

// D64 from x to the kPanel centroids of one panel of columns, a lane each.
template <class T>
void distance_panel(const T* x, const T* panel, int64_t d, double* out) {
  constexpr int kVectors = kPanel / kDoubles;
  typedef T Row __attribute__((vector_size(kDoubles * sizeof(T)), aligned(sizeof(T)), may_alias));
  Doubles acc[kVectors] = {};
  for (int64_t i = 0; i < d; ++i) {
    Doubles xi = broadcast(double(x[i]));
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Row c = *reinterpret_cast<const Row*>(panel + i * kPanel + v * kDoubles);
      Doubles t = xi - __builtin_convertvector(c, Doubles);
      acc[v] = acc[v] + t * t;
    }
  }
  for (int v = 0; v < kVectors; ++v) store(out + v * kDoubles, acc[v]);
}

// Fetches the rows that a thread is likely to need next into L2 while it computes, a share per tile.
struct Ahead {
  const char *at, *end;
  void step(int64_t bytes) {
    for (const char* stop = end - at < bytes ? end : at + bytes; at < stop; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// A row's nearest centroid so far, in D64, the lowest index on ties.
struct Nearest {
  double distance;
  int64_t index;
};

inline void consider(Nearest* best, double distance, int64_t index) {
  if (best->index < 0 || distance < best->distance || (distance == best->distance && index < best->index)) {
    best->distance = distance;
    best->index = index;
  }
}

// The terms of D64 added in another order, a lane for every kDoubles-th of them: a fraction of the time of one chain.
template <class T>
double distance_in_lanes(const T* x, const T* c, int64_t d) {
  typedef T Row __attribute__((vector_size(kDoubles * sizeof(T)), aligned(sizeof(T)), may_alias));
  Doubles acc[2] = {};
  double rest = 0.0;
  const auto term = [&](int64_t i) {
    const Doubles t = __builtin_convertvector(*reinterpret_cast<const Row*>(x + i), Doubles) -
                      __builtin_convertvector(*reinterpret_cast<const Row*>(c + i), Doubles);
    return t * t;
  };
  int64_t i = 0;
  for (; i + 2 * kDoubles <= d; i += 2 * kDoubles) {
    acc[0] = acc[0] + term(i);
    acc[1] = acc[1] + term(i + kDoubles);
  }
  for (; i < d; ++i) {
    const double t = double(x[i]) - double(c[i]);
    rest = rest + t * t;
  }
  return sum(acc[0] + acc[1]) + rest;
}

// The nearest of several centroids by D64, the lowest index on ties. Reorders the candidates.
//
// With g = (d + 4) 2^-52 a sum in either order is off by a share of at most g / 2, so that of two sums in lanes that
// differ by a share of 3 g the larger is the larger in D64 too. Only candidates within 4 g of the least are left to
// D64, and those of sums that may have underflowed (their squares lose less than 2^-1074 each) or be about to overflow.
template <class T>
int64_t nearest_of(const T* x, int64_t* candidates, int64_t count, int64_t d, const T* centroids) {
  const double clear = 1.0 + double(d + 4) * 0x1p-50;
  double least = INFINITY;
  int64_t close = 0;
  const auto exact_enough = [](double v) { return v > 0x1p-900 && v < 0x1p1000; };
  for (int64_t i = 0; i < count; ++i) {
    const double v = distance_in_lanes(x, centroids + candidates[i] * d, d);
    if (exact_enough(v) && v * clear < least) close = 0;
    if (!(exact_enough(least) && least * clear < v)) candidates[close++] = candidates[i];
    least = fmin(least, v);
  }
  if (close == 1) return candidates[0];
  Nearest best = {0.0, -1};
  for (int64_t first = 0; first < close; first += kChains) {
    const T *rows[kChains], *own[kChains];
    double distances[kChains];
    for (int r = 0; r < kChains; ++r) {
      rows[r] = x;
      own[r] = centroids + candidates[first + r < close ? first + r : first] * d;  // the last few repeat the first
    }
    d64_chains(rows, own, d, distances);
    for (int r = 0; r < kChains && first + r < close; ++r) consider(&best, distances[r], candidates[first + r]);
  }
  return best.index;
}

// T of a row from its lowest bound and that centroid's numbers.
inline float limit_of(double lowest, double norm, double a, double b, double centroid_norm, double rho, double slack) {
  double reach = norm + centroid_norm;
  double t = lowest + (2.0 * (a + norm * b) + rho * reach * reach) * (1.0 + 0x1p-20) + slack;
  return round_up(t + fabs(t) * 0x1p-50);
}

// T of a vector of rows with the largest a, b and norm of all centroids: most rows pass even so, at a fraction of the
// cost of looking up their own.
struct CommonLimit {
  Floats a, b, norm, rho, slack;
};

inline Floats common_limit(const CommonLimit& c, Floats first, Floats norm) {
  Floats reach = norm + c.norm;
  Floats t = first + (2.0f * (c.a + norm * c.b) + c.rho * reach * reach) * (1.0f + 0x1p-18f) + c.slack;
  return t + maximum(t, -t) * 0x1p-22f + 0x1p-126f;
}

// With `b` for the largest of all.
template <class T>
CommonLimit common_limit_of(const Prepared<T>& p, float b, int64_t d) {
  const double rho = double(d + 4) * 0x1p-53;
  return CommonLimit{broadcast(p.all.largest[0]), broadcast(b), broadcast(p.all.largest[2]), broadcast(round_up(rho)),
                     broadcast(round_up(*p.slack))};
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
