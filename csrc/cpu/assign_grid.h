// Lattices, where ties are everywhere and the recheck would compare most rows with most centroids in D64: where all
// centroids are small multiples of one power of two, the grid, and the rows of a block are too, neither the narrow nor
// the wide pass rounds, and D64 does not either, so that equal scores are ties, which the lowest index wins.
//
// In units of the grid, from the shift, which lies on it: a row is q, a centroid q', both integers. With Q >= |q'| and
// |q| Q + Q^2 / 2 <= 2^23 the product q.q' and the score |q'|^2 / 2 - q.q' are multiples of 1/2 up to 2^23, which
// float32 holds. D64 is |q - q'|^2 < 2^53 in units of grid^2, as are its partial sums: double holds them. (The grid is
// at least 2^-100, so that nothing underflows, and at most 1, so that elements of the rows do not when they are divided
// by it.)
#pragma once

#include "assign_block.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

// 1.5 * 2^52, which rounds doubles to integers, as kRounder does floats.
constexpr double kWholeDoubles = 6755399441055744.0;
constexpr double kMostUnits = 0x1p22;  // of an element: below, kRounder rounds to whole units

// The lowest set bit and the exponent above the highest of some numbers, as powers of two; 1 and 0 of zeros.
template <class T>
void find_bits(const T* c, int64_t d, double* lowest, double* above) {
  *lowest = 1.0;
  *above = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    if (c[i] == T(0)) continue;
    int exponent;
    const double mantissa = frexp(fabs(double(c[i])), &exponent);
    const int zeros = __builtin_ctzll(uint64_t(mantissa * 0x1p53));
    *lowest = fmin(*lowest, ldexp(1.0, exponent - 53 + zeros));
    *above = fmax(*above, ldexp(1.0, exponent));
  }
}

// p.grid[0]: the grid, or 0 if there is none; p.grid[1]: the length |q| that rows may have. Moves the shift to the
// grid.
template <class T>
void find_grid(const T* c, int64_t live, int64_t d, const int64_t* distinct, const Prepared<T>& p) {
  p.grid[0] = p.grid[1] = 0.0;
  double grid = 1.0, most = 0.0;
  for (int64_t at = 0; at < live; ++at) {
    double lowest, above;
    find_bits(c + distinct[at] * d, d, &lowest, &above);
    grid = fmin(grid, lowest);
    most = fmax(most, above);
    // As a rule the first centroid ends this.
    if (grid < 0x1p-100 || most > grid * kMostUnits) return;
  }
  for (int64_t i = 0; i < d; ++i) p.shift[i] = T(rint(double(p.shift[i]) / grid) * grid);
  double square = 1.0;
  for (int64_t at = 0; at < live; ++at) {
    const T* row = c + distinct[at] * d;
    double own = 0.0;
    for (int64_t i = 0; i < d; ++i) {
      const double units = (double(row[i]) - double(p.shift[i])) / grid;
      own += units * units;
    }
    square = fmax(square, own);
  }
  const double limit = (0x1p23 - 0.5 * square) / (sqrt(square) * (1.0 + 0x1p-50));
  if (!(limit >= 1.0)) return;
  p.grid[0] = grid;
  p.grid[1] = fmin(limit * (1.0 - 0x1p-20), 32767.0);
}

// kFloats elements of q, where `off` stays 0 if they are integers.
inline Floats units_from_shift(const float* x, const float* m, float per, Floats* off) {
  const Floats v = load(x) * per, whole = (v + kRounder) - kRounder;
  *off += v < whole ? whole - v : v - whole;  // a NaN stays one
  return v - load(m) * per;
}
inline Floats units_from_shift(const double* x, const double* m, float per, Floats* off) {
  Doubles halves[2], distances[2];
  for (int half = 0; half < 2; ++half) {
    const Doubles v = load(x + half * kDoubles) * double(per), whole = (v + kWholeDoubles) - kWholeDoubles;
    distances[half] = v == whole ? Doubles{} : Doubles{} + 1.0;
    halves[half] = v - load(m + half * kDoubles) * double(per);
  }
  *off += narrowed(distances[0], distances[1]);
  return narrowed(halves[0], halves[1]);
}

// Whether a row lies on the grid and is not too long; its q, if that is not null.
template <class T>
bool on_grid(const T* x, const Prepared<T>& p, int64_t d, int16_t* q) {
  const float per = float(1.0 / p.grid[0]);
  Floats off = {}, squares = {};
  int64_t i = 0;
  for (; i + kFloats <= d; i += kFloats) {
    const Floats units = units_from_shift(x + i, p.shift + i, per, &off);
    squares = fmadd(units, units, squares);
    if (q != nullptr) store_int16(q + i, as_integers(units + kRounder));
  }
  float square = sum(squares);
  bool whole = sum(off) == 0.0f;
  for (; i < d; ++i) {
    const double v = double(x[i]) * double(per), units = v - double(p.shift[i]) * double(per);
    whole = whole && v == rint(v);
    square += float(units) * float(units);
    if (q != nullptr) q[i] = int16_t(fmax(-32768.0, fmin(32767.0, units)));
  }
  return whole && length_from(square, d) <= float(p.grid[1]);
}

template <class T>
bool on_grid(const T* x, int64_t row_stride, int64_t n, int64_t d, const Prepared<T>& p) {
  bool all = p.grid[0] > 0.0;
  for (int64_t row = 0; all && row < n; ++row) all = on_grid(x + row * row_stride, p, d, nullptr);
  return all;
}

// Labels of the rows [start, stop), which fit into one block, by all centroids; whether the rows lie on the grid. If
// not, nothing was done.
template <class T>
bool assign_on_grid(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, int64_t start, int64_t stop,
                    Ahead* ahead) {
  if (!(p.grid[0] > 0.0)) return false;
  Block block = {};
  block.rho = kExact;
  for (int64_t row = start; row < stop; ++row, ++block.count) {
    int16_t* q = s.rows + block.count * 2 * pairs_of(r.d);
    if (!on_grid(r.row(row), p, r.d, q)) return false;
    if (r.d % 2 != 0) q[r.d] = 0;
    s.row[block.count] = row;
    s.norms[block.count] = 0.0f;
    s.inverses[block.count] = float(p.grid[0] * *p.scale);
  }
  find_lowest_of_all(r, p, s, block, ahead);
  for (int64_t slot = 0; slot < block.count; ++slot) {
    const Lowest& low = s.low[slot];
    // The first vector of a lane's lowest is known; positions are in the order of the indices.
    uint32_t lanes = mask_at_most(low.first, broadcast(least(low.first)));
    int64_t position = position_in(low, lanes);
    for (lanes &= lanes - 1; lanes != 0; lanes &= lanes - 1) {
      const int64_t other = position_in(low, lanes);
      position = other < position ? other : position;
    }
    r.labels[s.row[slot]] = p.all.index[position];
  }
  return true;
}

// Labels of the rows [start, stop) by all centroids.
template <class T>
void assign_block(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, int64_t start, int64_t stop,
                  int64_t n_threads, int64_t* rechecked) {
  const int64_t most = block_rows(r.d);
  for (int64_t first = start; first < stop; first += most) {
    const int64_t last = first + most < stop ? first + most : stop;
    // The next block of this thread, if the threads keep in step.
    Ahead ahead = r.ahead(last < stop ? last : stop + (n_threads - 1) * (stop - start), most);
    if (assign_on_grid(r, p, s, first, last, &ahead)) continue;
    Block block = {};
    for (int64_t row = first; row < last; ++row) pack_slot(r, p, s, row, kUnknown, Needs{}, &block);
    close_block(r, s, &block);
    assign_slots(r, p, s, block, &ahead, rechecked);
  }
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
