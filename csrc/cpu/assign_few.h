// The pass of assign for many columns and few centroids: a row's squares to all of them in the precision of the data.
// Nothing is packed and a row is read once; up to kFew centroids, if they stay in L1 beside it, that is less than it
// takes to round it to integers. A square is off by at most epsilon, so that a centroid whose least possible square
// exceeds the largest possible one of another is not the nearest; D64 decides between what is left.
#pragma once

#include "assign_block.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr int64_t kFewBytes = 24 * 1024;
constexpr int kAtOnce = 4;  // centroids that share the loads of a row

inline Floats lanes_of(const float*) { return Floats{}; }
inline Doubles lanes_of(const double*) { return Doubles{}; }

// Squares of x less each of kAtOnce centroids, as square_between without a scale.
template <class T>
inline void squares_between(const T* x, const T* const c[kAtOnce], int64_t d, double out[kAtOnce]) {
  using Lanes = decltype(lanes_of(x));
  constexpr int64_t kLanes = int64_t(sizeof(Lanes) / sizeof(T));
  // Two chains each hide the latency. All loops over them are unrolled, or they would not stay in registers.
  Lanes acc[kAtOnce][2];
#pragma GCC unroll 4
  for (int j = 0; j < kAtOnce; ++j) acc[j][0] = acc[j][1] = Lanes{};
  int64_t i = 0;
  const auto step = [&](int64_t at, int chain) {
    const Lanes v = load(x + at);
#pragma GCC unroll 4
    for (int j = 0; j < kAtOnce; ++j) {
      const Lanes t = v - load(c[j] + at);
      if constexpr (sizeof(T) == 4) {
        acc[j][chain] = fmadd(t, t, acc[j][chain]);
      } else {
        acc[j][chain] += t * t;  // not fused, as in square_between
      }
    }
  };
  for (; i + 2 * kLanes <= d; i += 2 * kLanes) {
    step(i, 0);
    step(i + kLanes, 1);
  }
  for (; i + kLanes <= d; i += kLanes) step(i, 0);
  T tail[kAtOnce] = {};
  for (; i < d; ++i) {
    for (int j = 0; j < kAtOnce; ++j) tail[j] += (x[i] - c[j][i]) * (x[i] - c[j][i]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < kAtOnce; ++j) out[j] = double(sum(acc[j][0] + acc[j][1]) + tail[j]);
}

// Whether the centroids are few, and squares of the data as they are lose less than tau to underflow: 2^-150 per
// column.
template <class T>
bool are_few(const Prepared<T>& p, int64_t d) {
  const int64_t live = *p.all.live;
  return live <= kFew && live * d * int64_t(sizeof(T)) <= kFewBytes && abs(ilogb(*p.scale)) <= 20;
}

template <class T>
void assign_few(const Rows<T>& r, const Prepared<T>& p, int64_t start, int64_t stop, int64_t* rechecked) {
  const double epsilon = double(epsilon_of(r.d)) + 0x1p-30, tau = 0x1p-120;  // with room for the roundings of D64
  const int64_t live = *p.all.live;
  const T* c[kFew + kAtOnce];
  for (int64_t j = 0; j < kFew + kAtOnce; ++j) c[j] = r.centroids + p.distinct[j < live ? j : 0] * r.d;
  for (int64_t row = start; row < stop; ++row) {
    const T* x = r.row(row);
    double squares[kFew + kAtOnce], least = INFINITY;
    bool exceeded = false;
    for (int64_t j = 0; j < live; j += kAtOnce) squares_between(x, c + j, r.d, squares + j);
    for (int64_t j = 0; j < live; ++j) {
      least = squares[j] < least ? squares[j] : least;
      exceeded = exceeded || !(squares[j] < 0x1p100);
    }
    if (exceeded && !finite_row(x, r.d)) {
      r.labels[row] = -1;
      continue;
    }
    const double most = exceeded ? INFINITY : least * (1.0 + 2.0 * epsilon) + 2.0 * tau;
    int64_t candidates[kFew + 1], count = 0;
    candidates[0] = -1;
    for (int64_t j = 0; j < live; ++j) {
      candidates[count] = p.distinct[j];
      count += !(squares[j] * (1.0 - epsilon) > most);
    }
    if (count > 1) {
      ++*rechecked;
      candidates[0] = nearest_of(x, candidates, count, r.d, r.centroids);
    }
    r.labels[row] = candidates[0];
  }
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
