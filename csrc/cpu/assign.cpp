// Labels of the nearest centroids: a float32 pass whose error is bounded per score, and a recheck in double
// of the rows that the bound cannot decide. See dcfast/ops/assign/__init__.py for the definition of a label.
//
// Units. Centroids and rows are shifted by m (the mean of the centroids) and scaled by one power of two, so
// that the largest centroid element lies in [1, 2): c~ = (c - m) s, x~ = (x - m) s, c' and x' their float32
// roundings. The pass computes, for every centroid j, a lower bound L_j of the score s_j = |c~_j|^2/2 -
// x~.c~_j:
//
//   L_j = (H_j - a_j) - |x~| b_j - x'.c'_j,    H_j = |c~_j|^2/2
//
// where a_j + |x~| b_j bounds what rounding can do to the score. With u = 2^-24, n = block + blocks + 2
// roundings in sequence (sums run in blocks of 256 elements) and g = n u / (1 - n u):
//   * the sum itself:        g (H_j + |x~| b_j + |x'||c'_j|)            (u per step, fused or not: n + 1
//   without FMA)
//   * the rounded operands:  |x~.c~ - x'.c'| <= (2 u + u^2) |x~||c~|
//   * underflow:             every product or operand lost below 2^-126 costs at most that: tau
// so that a_j = 2 g H_j + tau and b_j = (g + 4 u) |c~_j| (1 + 2 g) + tau are enough.
//
// The best, 1, is proved when L_2 > T = L_1 + 2 (a_1 + |x~| b_1) + rho (|x~| + |c~_1|)^2: then s_2 - s_1
// exceeds what the roundings of D64 itself (rho = (d + 4) 2^-53 of each distance) could reverse. Otherwise
// only centroids with L_j <= T can be nearest. (T grows by `slack`, what underflow can do to D64 of float64
// data; it is infinite, so that every row is rechecked, where such data leaves the range in which D64 neither
// underflows nor overflows.) The third lowest L tells whether two candidates are all; if not, the row is
// scanned again, and every centroid with L_j <= T is evaluated in D64.
//
// Tile: 2 vectors of centroids by kRows rows of accumulators (12 of 16 registers on AVX2, 24 of 32 on
// AVX-512). Centroids are packed in panels of d x kPanel, one panel at a time in L1, and a block of rows in
// L2.
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "d64.h"
#include "dcfast/core.h"
#include "float_env.h"
#include "simd.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr int kPanel = 2 * kFloats;
#if defined(__AVX512F__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif
constexpr int64_t kSumBlock = 256;           // elements summed before a fresh accumulator: bounds g for large d
constexpr int64_t kBlockBytes = 128 * 1024;  // packed rows of one block: a quarter of a 512 KiB L2
constexpr int64_t kMaxBlockRows = 96;
constexpr float kHugeRow = 0x1p50f;  // rows that far out are rechecked: their squares must not overflow float32

typedef float HalfFloats __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));

int64_t align64(int64_t bytes) { return (bytes + 63) & ~int64_t(63); }

// Views into the workspace that prepare fills.
struct Prepared {
  int64_t* live;     // [1] number of distinct finite centroids, in the order of their index
  double* scale;     // [1]
  double* slack;     // [1]
  double* shift;     // [d] m
  int64_t* index;    // [panels * kPanel] original index of a live centroid
  float* h;          // [panels * kPanel] H_j - a_j rounded down; +inf in the padding
  float* a;          // [panels * kPanel] rounded up
  float* b;          // [panels * kPanel] rounded up
  float* norm;       // [panels * kPanel] |c~_j| rounded up
  float* packed;     // [panels][d][kPanel] c'
  void* transposed;  // [panels][d][kPanel] the centroids themselves, in the data's dtype, for the recheck
  int32_t* slots;    // [hash size] used while preparing
};

int64_t hash_size(int64_t k) {
  int64_t size = 16;
  while (size < 2 * k) size *= 2;
  return size;
}

int64_t panels_of(int64_t k) { return (k + kPanel - 1) / kPanel; }

template <class T>
int64_t layout(int64_t k, int64_t d, char* base, Prepared* p) {
  int64_t padded = panels_of(k) * kPanel, at = 0;
  auto take = [&](int64_t bytes) {
    char* here = base + at;
    at += align64(bytes);
    return here;
  };
  p->live = reinterpret_cast<int64_t*>(take(8));
  p->scale = reinterpret_cast<double*>(take(8));
  p->slack = reinterpret_cast<double*>(take(8));
  p->shift = reinterpret_cast<double*>(take(8 * d));
  p->index = reinterpret_cast<int64_t*>(take(8 * padded));
  p->h = reinterpret_cast<float*>(take(4 * padded));
  p->a = reinterpret_cast<float*>(take(4 * padded));
  p->b = reinterpret_cast<float*>(take(4 * padded));
  p->norm = reinterpret_cast<float*>(take(4 * padded));
  p->packed = reinterpret_cast<float*>(take(4 * padded * d));
  p->transposed = take(int64_t(sizeof(T)) * padded * d);
  p->slots = reinterpret_cast<int32_t*>(take(4 * hash_size(k)));
  return at;
}

// One place in 2^23 and the smallest normal number are more than what rounding to float32 can take away.
float round_up(double v) { return float(v + fabs(v) * 0x1p-23 + 0x1p-126); }

float round_down(double v) { return -round_up(-v); }

template <class T>
bool finite_row(const T* row, int64_t d) {
  for (int64_t i = 0; i < d; ++i) {
    if (!(fabs(double(row[i])) <= 1.7976931348623157e308)) return false;
  }
  return true;
}

template <class T>
bool equal_rows(const T* a, const T* b, int64_t d) {
  for (int64_t i = 0; i < d; ++i) {
    if (a[i] != b[i]) return false;
  }
  return true;
}

template <class T>
uint64_t hash_row(const T* row, int64_t d) {
  uint64_t hash = 0x9E3779B97F4A7C15u;
  for (int64_t i = 0; i < d; ++i) {
    double v = double(row[i]) + 0.0;  // -0 and +0 are equal centroids
    uint64_t bits;
    memcpy(&bits, &v, 8);
    hash = (hash ^ bits) * 0xD6E8FEB86659FD93u;
    hash ^= hash >> 32;
  }
  return hash;
}

template <class T>
void prepare(const T* c, int64_t k, int64_t d, char* workspace) {
  IeeeMode ieee;
  Prepared p;
  layout<T>(k, d, workspace, &p);

  // Finite and distinct centroids, the lowest index of equal ones.
  int64_t size = hash_size(k), live = 0;
  memset(p.slots, 0xFF, size_t(4 * size));
  for (int64_t j = 0; j < k; ++j) {
    const T* row = c + j * d;
    if (!finite_row(row, d)) continue;
    uint64_t slot = hash_row(row, d) & uint64_t(size - 1);
    bool seen = false;
    while (p.slots[slot] >= 0 && !seen) {
      seen = equal_rows(c + p.index[p.slots[slot]] * d, row, d);
      slot = (slot + 1) & uint64_t(size - 1);
    }
    if (seen) continue;
    p.slots[slot] = int32_t(live);
    p.index[live++] = j;
  }
  *p.live = live;

  // Any common vector is a valid shift; their mean makes the norms, and with them the bounds, small.
  for (int64_t i = 0; i < d; ++i) p.shift[i] = 0.0;
  for (int64_t j = 0; j < live; ++j) {
    for (int64_t i = 0; i < d; ++i) p.shift[i] += double(c[p.index[j] * d + i]) / double(live);
  }
  double largest = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    if (!(fabs(p.shift[i]) <= 1e300)) p.shift[i] = 0.0;
  }
  for (int64_t j = 0; j < live; ++j) {
    for (int64_t i = 0; i < d; ++i) largest = fmax(largest, fabs(double(c[p.index[j] * d + i]) - p.shift[i]));
  }
  int exponent = largest > 0.0 ? ilogb(largest) : 0;
  if (exponent < -1000) exponent = -1000;
  double scale = ldexp(1.0, -exponent);
  *p.scale = scale;
  // Rows reach 2^50 times the centroids, so below 2^440 no square exceeds 2^1000.
  *p.slack = abs(exponent) > 440 ? INFINITY : double(d) * 0x1p-1073 * scale * scale;

  const double u = 0x1p-24;
  int64_t block = d < kSumBlock ? d : kSumBlock;
  double n = double(block + (d + kSumBlock - 1) / kSumBlock + 3);
  double g = n * u / (1.0 - n * u);
  double tau = double(d + 2) * 0x1p-120;
  T* transposed = static_cast<T*>(p.transposed);
  int64_t padded = panels_of(k) * kPanel;
  for (int64_t j = 0; j < padded; ++j) {
    float* packed = p.packed + (j / kPanel) * d * kPanel + j % kPanel;
    T* original = transposed + (j / kPanel) * d * kPanel + j % kPanel;
    if (j >= live) {
      for (int64_t i = 0; i < d; ++i) packed[i * kPanel] = 0.0f;
      for (int64_t i = 0; i < d; ++i) original[i * kPanel] = T(0);
      p.h[j] = INFINITY;
      p.a[j] = p.b[j] = p.norm[j] = 0.0f;
      p.index[j] = -1;
      continue;
    }
    const T* row = c + p.index[j] * d;
    double square = 0.0;
    for (int64_t i = 0; i < d; ++i) {
      double v = (double(row[i]) - p.shift[i]) * scale;
      square += v * v;
      packed[i * kPanel] = float(v);
      original[i * kPanel] = row[i];
    }
    square *= 1.0 + double(d + 8) * 0x1p-52;
    double half = 0.5 * square, norm = sqrt(square) * (1.0 + 0x1p-50);
    double a = 2.0 * g * half + tau, b = (g + 4.0 * u) * norm * (1.0 + 2.0 * g) + tau;
    p.h[j] = round_down(half * (1.0 - double(2 * d + 16) * 0x1p-52) - round_up(a));
    p.a[j] = round_up(a);
    p.b[j] = round_up(b);
    p.norm[j] = round_up(norm);
  }
}

// D64 from x to the kPanel centroids of one transposed panel, a lane each.
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

// Shift, scale and round one row; returns |x~| rounded up, or a negative number where float32 cannot hold it.
template <class T>
float pack_row(const T* x, const Prepared& p, int64_t d, float* packed) {
  const double scale = *p.scale;
  typedef T Row __attribute__((vector_size(kDoubles * sizeof(T)), aligned(sizeof(T)), may_alias));
  Doubles squares = {};
  int64_t i = 0;
  for (; i + kDoubles <= d; i += kDoubles) {
    Row row = *reinterpret_cast<const Row*>(x + i);
    Doubles v = (__builtin_convertvector(row, Doubles) - load(p.shift + i)) * scale;
    squares += v * v;
    *reinterpret_cast<HalfFloats*>(packed + i) = __builtin_convertvector(v, HalfFloats);
  }
  double square = 0.0;
  for (int lane = 0; lane < kDoubles; ++lane) square += squares[lane];
  for (; i < d; ++i) {
    double v = (double(x[i]) - p.shift[i]) * scale;
    square += v * v;
    packed[i] = float(v);
  }
  double norm = sqrt(square) * (1.0 + double(d + 8) * 0x1p-52) + sqrt(double(d)) * 0x1p-140;
  if (norm < kHugeRow) return round_up(norm);
  memset(packed, 0, size_t(4 * d));  // nothing that the tiles compute for this row is used
  return -1.0f;
}

// out -= x c' over the elements [start, stop). Not inlined: all registers are for the accumulators here, and the
// compiler keeps them there only where nothing else asks for one.
__attribute__((noinline)) void subtract_products(const float* x, int64_t d, const float* panel, int64_t start,
                                                 int64_t stop, Floats out[kRows][2]) {
  Floats acc[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    acc[r][0] = out[r][0];
    acc[r][1] = out[r][1];
  }
  for (int64_t i = start; i < stop; ++i) {
    Floats c0 = load(panel + i * kPanel), c1 = load(panel + i * kPanel + kFloats);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      Floats xi = broadcast(x[r * d + i]);
      acc[r][0] = fnmadd(xi, c0, acc[r][0]);
      acc[r][1] = fnmadd(xi, c1, acc[r][1]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    out[r][0] = acc[r][0];
    out[r][1] = acc[r][1];
  }
}

// L of kRows rows and kPanel centroids.
inline __attribute__((always_inline)) void tile(const float* x, int64_t d, const float* panel, const float* norms,
                                                const float* h, const float* b, Floats out[kRows][2]) {
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    Floats norm = broadcast(norms[r]);
    out[r][0] = fnmadd(norm, load(b), load(h));
    out[r][1] = fnmadd(norm, load(b + kFloats), load(h + kFloats));
  }
  int64_t first = d < kSumBlock ? d : kSumBlock;
  subtract_products(x, d, panel, 0, first, out);
  for (int64_t start = first; start < d; start += kSumBlock) {
    Floats part[kRows][2] = {};
    subtract_products(x, d, panel, start, start + kSumBlock < d ? start + kSumBlock : d, part);
    for (int r = 0; r < kRows; ++r) {
      out[r][0] += part[r][0];
      out[r][1] += part[r][1];
    }
  }
}

// Per lane, a row's lowest bound so far, which panel it came from (vector by vector), and the second lowest.
struct Lowest {
  Floats first, second;
  Ints vector;
};

inline __attribute__((always_inline)) void update(Lowest* low, Floats value, int32_t vector) {
  Floats first = low->first;
  low->second = minimum(low->second, maximum(first, value));
  low->vector = value < first ? Ints{} + vector : low->vector;
  low->first = minimum(first, value);
}

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

struct Scratch {
  float* rows;    // [block][d] packed rows
  float* norms;   // [block]
  Lowest* low;    // [block]
  float* limit;   // [block] T of the rows that are scanned again
  int64_t* open;  // [block] which rows those are
  Nearest* best;  // [block]
};

int64_t block_rows(int64_t d) {
  int64_t rows = kBlockBytes / (4 * d) / kRows * kRows;
  return rows < kRows ? kRows : rows > kMaxBlockRows ? kMaxBlockRows : rows;
}

int64_t scratch_layout(int64_t d, char* base, Scratch* s) {
  int64_t rows = block_rows(d), at = 0;
  auto take = [&](int64_t bytes) {
    char* here = base + at;
    at += align64(bytes);
    return here;
  };
  s->rows = reinterpret_cast<float*>(take(4 * rows * d));
  s->norms = reinterpret_cast<float*>(take(4 * rows));
  s->low = reinterpret_cast<Lowest*>(take(int64_t(sizeof(Lowest)) * rows));
  s->limit = reinterpret_cast<float*>(take(4 * rows));
  s->open = reinterpret_cast<int64_t*>(take(8 * rows));
  s->best = reinterpret_cast<Nearest*>(take(int64_t(sizeof(Nearest)) * rows));
  return at;
}

// Pass over every centroid for `groups` tiles of packed rows: the two lowest bounds of each, per lane.
void scan(const Prepared& p, const Scratch& s, int64_t groups, int64_t panels, int64_t d) {
  for (int64_t row = 0; row < groups * kRows; ++row) {
    s.low[row] = Lowest{broadcast(INFINITY), broadcast(INFINITY), Ints{}};
  }
  for (int64_t panel = 0; panel < panels; ++panel) {
    int64_t at = panel * kPanel;
    for (int64_t group = 0; group < groups; ++group) {
      Floats out[kRows][2];
      int64_t row = group * kRows;
      tile(s.rows + row * d, d, p.packed + at * d, s.norms + row, p.h + at, p.b + at, out);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        Lowest low = s.low[row + r];
        update(&low, out[r][0], int32_t(2 * panel));
        update(&low, out[r][1], int32_t(2 * panel + 1));
        s.low[row + r] = low;
      }
    }
  }
}

// Second pass over the rows that the first left open: D64 of every centroid whose bound is at most the limit.
template <class T>
void rescan(const Prepared& p, const Scratch& s, int64_t open, int64_t panels, int64_t d, const T* x,
            int64_t row_stride, const T* centroids) {
  const T* transposed = static_cast<const T*>(p.transposed);
  int64_t groups = (open + kRows - 1) / kRows;
  for (int64_t panel = 0; panel < panels; ++panel) {
    int64_t at = panel * kPanel;
    for (int64_t group = 0; group < groups; ++group) {
      Floats out[kRows][2];
      int64_t row = group * kRows;
      tile(s.rows + row * d, d, p.packed + at * d, s.norms + row, p.h + at, p.b + at, out);
      for (int r = 0; r < kRows && row + r < open; ++r) {
        float limit = s.limit[row + r];
        if (!any_at_most(minimum(out[r][0], out[r][1]), broadcast(limit))) continue;
        const T* here = x + s.open[row + r] * row_stride;
        Nearest* best = s.best + row + r;
        int candidates[kPanel], count = 0;
        for (int lane = 0; lane < kPanel && at + lane < *p.live; ++lane) {
          if (out[r][lane / kFloats][lane % kFloats] <= limit) candidates[count++] = lane;
        }
        // From four candidates on, all lanes of the panel cost less than one at a time.
        double distances[kPanel];
        if (count >= 4) distance_panel(here, transposed + at * d, d, distances);
        for (int n = 0; n < count; ++n) {
          int64_t index = p.index[at + candidates[n]];
          consider(best, count >= 4 ? distances[candidates[n]] : d64(here, centroids + index * d, d), index);
        }
      }
    }
  }
}

template <class T>
void assign_block(const T* x, int64_t row_stride, int64_t n, int64_t d, const T* centroids, const Prepared& p,
                  const Scratch& s, int64_t* labels, int64_t* rechecked, int64_t* rescanned) {
  const int64_t live = *p.live, panels = panels_of(live);
  const double rho = double(d + 4) * 0x1p-53;
  const int64_t groups = (n + kRows - 1) / kRows;
  for (int64_t row = 0; row < groups * kRows; ++row) {
    if (row < n) {
      s.norms[row] = pack_row(x + row * row_stride, p, d, s.rows + row * d);
    } else {
      memset(s.rows + row * d, 0, size_t(4 * d));
      s.norms[row] = 0.0f;
    }
  }
  scan(p, s, groups, panels, d);

  int64_t open = 0;
  for (int64_t row = 0; row < n; ++row) {
    const T* here = x + row * row_stride;
    const Lowest& low = s.low[row];
    float limit = INFINITY;
    if (s.norms[row] >= 0.0f) {
      int nearest = 0;
      for (int lane = 1; lane < kFloats; ++lane) nearest = low.first[lane] < low.first[nearest] ? lane : nearest;
      const int64_t one = int64_t(low.vector[nearest]) * kFloats + nearest;
      double norm = s.norms[row], reach = norm + double(p.norm[one]);
      double t = double(low.first[nearest]) +
                 (2.0 * (double(p.a[one]) + norm * double(p.b[one])) + rho * reach * reach) * (1.0 + 0x1p-20) +
                 *p.slack;
      limit = round_up(t + fabs(t) * 0x1p-50);
      // Complete unless a lane hides a second candidate behind its first.
      if (!any_at_most(low.second, broadcast(limit))) {
        Nearest best = {0.0, -1};
        int candidates = 0;
        for (int lane = 0; lane < kFloats; ++lane) candidates += low.first[lane] <= limit;
        if (candidates == 1) {
          labels[row] = p.index[one];
          continue;
        }
        ++*rechecked;
        for (int lane = 0; lane < kFloats; ++lane) {
          if (!(low.first[lane] <= limit)) continue;
          int64_t index = p.index[int64_t(low.vector[lane]) * kFloats + lane];
          consider(&best, d64(here, centroids + index * d, d), index);
        }
        labels[row] = best.index;
        continue;
      }
    } else if (!finite_row(here, d)) {
      labels[row] = -1;
      continue;
    }
    ++*rechecked;
    ++*rescanned;
    // Rows still open move to the front of the block; a row never moves behind itself.
    memmove(s.rows + open * d, s.rows + row * d, size_t(4 * d));
    s.norms[open] = s.norms[row] < 0.0f ? 0.0f : s.norms[row];
    s.limit[open] = limit;
    s.open[open] = row;
    s.best[open] = Nearest{0.0, -1};
    ++open;
  }
  if (open == 0) return;
  for (int64_t row = open; row % kRows != 0; ++row) s.norms[row] = 0.0f;  // the last tile's unused rows
  rescan(p, s, open, panels, d, x, row_stride, centroids);
  for (int64_t row = 0; row < open; ++row) labels[s.open[row]] = s.best[row].index;
}

template <class T>
void assign_all(const T* x, int64_t row_stride, int64_t n, int64_t d, const T* centroids, int64_t k, char* workspace,
                char* scratch, int64_t* labels, int64_t* counts, int n_threads) {
  Prepared p;
  layout<T>(k, d, workspace, &p);
  if (*p.live == 0) {
    for (int64_t row = 0; row < n; ++row) labels[row] = -1;
    return;
  }
  const int64_t rows = block_rows(d), blocks = (n + rows - 1) / rows;
  int64_t rechecked = 0, rescanned = 0;
#pragma omp parallel num_threads(n_threads) reduction(+ : rechecked, rescanned)
  {
    IeeeMode ieee;
    Scratch s;
    int64_t bytes = scratch_layout(d, nullptr, &s);
    scratch_layout(d, scratch + omp_get_thread_num() * bytes, &s);
#pragma omp for schedule(dynamic)
    for (int64_t block = 0; block < blocks; ++block) {
      int64_t start = block * rows, count = n - start < rows ? n - start : rows;
      assign_block(x + start * row_stride, row_stride, count, d, centroids, p, s, labels + start, &rechecked,
                   &rescanned);
    }
  }
  counts[0] += rechecked;
  counts[1] += rescanned;
}

}  // namespace

int assign_workspace(int dtype, int64_t k, int64_t d, int64_t* bytes) {
  Prepared p;
  if (dtype == DCFAST_FLOAT32) {
    *bytes = layout<float>(k, d, nullptr, &p);
  } else if (dtype == DCFAST_FLOAT64) {
    *bytes = layout<double>(k, d, nullptr, &p);
  } else {
    return DCFAST_INVALID_DTYPE;
  }
  return k <= INT32_MAX - kPanel ? DCFAST_OK : DCFAST_OUT_OF_RANGE;
}

int assign_prepare(int dtype, const void* centroids, int64_t k, int64_t d, void* workspace) {
  char* base = static_cast<char*>(workspace);
  if (dtype == DCFAST_FLOAT32) {
    prepare(static_cast<const float*>(centroids), k, d, base);
  } else if (dtype == DCFAST_FLOAT64) {
    prepare(static_cast<const double*>(centroids), k, d, base);
  } else {
    return DCFAST_INVALID_DTYPE;
  }
  return DCFAST_OK;
}

int assign_scratch(int dtype, int64_t d, int64_t* bytes) {
  if (dtype != DCFAST_FLOAT32 && dtype != DCFAST_FLOAT64) return DCFAST_INVALID_DTYPE;
  Scratch s;
  *bytes = scratch_layout(d, nullptr, &s);
  return DCFAST_OK;
}

int assign(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d, const void* centroids, int64_t k,
           const void* workspace, void* scratch, int64_t* labels, int64_t* counts, int n_threads) {
  char* base = static_cast<char*>(const_cast<void*>(workspace));
  char* own = static_cast<char*>(scratch);
  if (dtype == DCFAST_FLOAT32) {
    assign_all(static_cast<const float*>(x), row_stride, n, d, static_cast<const float*>(centroids), k, base, own,
               labels, counts, n_threads);
  } else if (dtype == DCFAST_FLOAT64) {
    assign_all(static_cast<const double*>(x), row_stride, n, d, static_cast<const double*>(centroids), k, base, own,
               labels, counts, n_threads);
  } else {
    return DCFAST_INVALID_DTYPE;
  }
  return DCFAST_OK;
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
