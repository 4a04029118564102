// Greedy k-means++: the whole loop over the centroids on the device, its random numbers given.
//
// A step reads x once for all its candidates, and the potential of every row, 8 bytes, twice: to compare and to accept.
// That, with a mark of 2 bytes written and read, is its floor: 104 MB for 100,000 rows of 256 float32. Nothing that a
// step needs leaves the device.
//
// After c centroids about one row in c comes closer to a candidate. So float32 sums of squares decide which rows may,
// and D64 whether they do; what they change is added to the exact sum so far, for each candidate. With u = 2^-24 all
// roundings of such a sum are factors of at most 1 + u, d + 2 of them one after another, and underflow adds less than
// d 2^-148, so that
//
//   D64 >= sum (1 - (d + 5) u) - d 2^-148,
//
// where the three u more are for the roundings of D64 and of this expression. That holds for the largest float in the
// place of a sum that overflows. float64 rows are summed in double, which is D64 itself.
#include <float.h>
#include <math.h>

#include "exact_sum.cuh"
#include "scan.cuh"

namespace dcfast {
namespace cuda {
namespace {

constexpr int kThreads = 128;  // and rows of a block that compares
constexpr int kTile = kWarp;   // columns in shared memory at a time
// Candidates that share a reading of x: the 2 + ln k of up to 3.2 million centroids.
constexpr int kTogether = 16;
constexpr int kGroup = 4;                         // candidates, and columns, that are taken up together
constexpr int64_t kMaxRows = int64_t(1) << 30;    // each adds less than 2^32 to a word, and takes as much away
constexpr int64_t kDrawnTogether = kScanThreads;  // rows whose potentials have a common total for the draws

using cuda::add_square;  // which the overload would hide
__device__ __forceinline__ float add_square(float sum, float x, float c) {
  const float t = x - c;
  return __fmaf_rn(t, t, sum);
}

struct Bound {
  double factor, slack;
};
__device__ __forceinline__ double at_least(float sum, const Bound& bound) {
  return fmax(0.0, __dsub_rn(__dmul_rn(double(fminf(sum, FLT_MAX)), bound.factor), bound.slack));
}
__device__ __forceinline__ double at_least(double sum, const Bound&) { return sum; }

template <class T>
struct Points {
  const T* x;
  int64_t row_stride, n, d;
  const double* weight;  // or null

  __device__ __forceinline__ const T* row(int64_t i) const { return x + i * row_stride; }
  __device__ __forceinline__ double weighted(int64_t i, double distance) const {
    return weight != nullptr ? __dmul_rn(weight[i], distance) : distance;
  }
};

// RN64(w D64) of a row to another, by one thread.
template <class T, bool kWide>
__device__ __forceinline__ double potential_d64(const Points<T>& p, int64_t row, int64_t from) {
  double sum = 0.0;
#pragma unroll 4
  for (int64_t tile = 0; tile * Pack<T>::kCount < p.d; ++tile) {
    const Columns<T, kWide> columns(tile, 0, 1, p.d);
    const Pack<T> own = columns.load(p.row(row)), other = columns.load(p.row(from));
#pragma unroll
    for (int e = 0; e < Pack<T>::kCount; ++e) {
      if (columns.at(e) < p.d) {
        sum = add_square(sum, double(widen(own.elements[e])), double(widen(other.elements[e])));
      }
    }
  }
  return p.weighted(row, sum);
}

// What draws count in.
__device__ __forceinline__ int64_t draw_units(double potential, double scale) {
  const double units = floor(__dmul_rn(potential, scale));
  return units < 0x1p62 ? int64_t(units) : 0;  // a potential that no double holds
}

// For potentials of that sum, rounded once: the integers sum to at most 2^61.
__device__ __forceinline__ double draw_scale(double total, int64_t n) {
  int exponent = 1024;
  if (total < INFINITY) {
    frexp(total, &exponent);
  } else {
    for (int64_t capacity = 1; capacity < (n < 2 ? 2 : n); capacity *= 2) ++exponent;
  }
  return ldexp(1.0, 61 - exponent < 1023 ? 61 - exponent : 1023);  // a double, however small the sum
}

// rows[trial] = the first row whose cumulative potential exceeds numerators[trial] 2^-53 of the total; a block for
// each.
__global__ void __launch_bounds__(kScanThreads)
    kmeans_plusplus_draw(const double* potential, const double* scale, int64_t n, const int64_t* totals,
                         const int64_t* numerators, int64_t* rows) {
  __shared__ int64_t parts[kWarp], drawn, rest;
  const int64_t blocks = (n + kDrawnTogether - 1) / kDrawnTogether, width = (blocks + kScanThreads - 1) / kScanThreads;
  const int64_t first = threadIdx.x * width, last = first + width < blocks ? first + width : blocks;
  if (threadIdx.x == 0) {
    drawn = rest = 0;
    rows[blockIdx.x] = 0;  // if nothing is left to draw
  }
  int64_t own = 0, total;
  for (int64_t block = first; block < last; ++block) own += totals[block];
  const int64_t before = sum_before(own, parts, &total);
  // floor(numerator total / 2^53) for numerator < 2^53 and total <= 2^62.
  const uint64_t numerator = uint64_t(numerators[blockIdx.x]);
  const int64_t threshold = int64_t(__umul64hi(numerator, uint64_t(total)) << 11 | numerator * uint64_t(total) >> 53);
  if (before <= threshold && threshold < before + own) {
    int64_t block = first, below = before;
    while (below + totals[block] <= threshold) below += totals[block++];
    drawn = block;
    rest = threshold - below;
  }
  __syncthreads();
  const int64_t row = drawn * kDrawnTogether + threadIdx.x;
  const int64_t units = row < n ? draw_units(potential[row], *scale) : 0;
  const int64_t below = sum_before(units, parts, &total);
  if (below <= rest && rest < below + units) rows[blockIdx.x] = row;
}

// Which of `count` candidates a row is nearer to than to any centroid, a bit each, and what that does to the sums of
// the potentials: words, one accumulator per candidate. A thread owns a row; a warp reads its 32 rows in tiles, 16
// bytes per lane, and leaves them in shared memory, beside those of the candidates.
template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads, 4)
    kmeans_plusplus_compare_d64(const Points<T> p, const Bound bound, const int64_t* rows, int count,
                                const double* potential, uint16_t* nearer, unsigned long long* words) {
  using Wide = typename Element<T>::Wide;
  constexpr int kCount = Pack<T>::kCount;
  constexpr int kLanes = kTile / kCount;  // that share a row of a tile
  constexpr int kRows = kWarp / kLanes;   // read at once
  static_assert(kWarp % (kRows * kLoadsInFlight) == 0);
  __shared__ Wide points[kThreads][kTile + 1];  // the lanes' rows start in different banks
  alignas(16) __shared__ Wide candidates[kTile][kTogether + 16 / sizeof(Wide)];
  const int lane = threadIdx.x % kWarp, warp_first = threadIdx.x - lane;
  const int64_t start = int64_t(blockIdx.x) * kThreads, row = start + threadIdx.x;
  Wide sum[kTogether] = {};
  for (int64_t base = 0; base < p.d; base += kTile) {
    const Columns<T, kWide> columns(base / kTile, lane % kLanes, kLanes, p.d);
    for (int r0 = warp_first; r0 < warp_first + kWarp; r0 += kRows * kLoadsInFlight) {
      Pack<T> packs[kLoadsInFlight];
#pragma unroll
      for (int u = 0; u < kLoadsInFlight; ++u) {
        const int64_t from = start + r0 + u * kRows + lane / kLanes;
        packs[u] = columns.load(p.row(from < p.n ? from : p.n - 1));
      }
      if (r0 == warp_first) __syncthreads();  // all are done with the last tile
#pragma unroll
      for (int u = 0; u < kLoadsInFlight; ++u) {
#pragma unroll
        for (int e = 0; e < kCount; ++e) {
          const int64_t column = columns.at(e);
          points[r0 + u * kRows + lane / kLanes][column - base] =
              column < p.d ? Wide(widen(packs[u].elements[e])) : Wide(0);
        }
      }
    }
    for (int at = threadIdx.x; at < kTile * kTogether; at += kThreads) {
      const int64_t column = base + at % kTile;
      const int c = at / kTile;
      candidates[at % kTile][c] = column < p.d && c < count ? Wide(widen(p.row(rows[c])[column])) : Wide(0);
    }
    __syncthreads();
    const int some = int(p.d - base < kTile ? p.d - base : kTile);
    for (int i = 0; i < some; i += kGroup) {
#pragma unroll
      for (int c = 0; c < kTogether; c += kGroup) {
        if (c >= count) break;
#pragma unroll
        for (int u = 0; u < kGroup; ++u) {
          const Wide own = points[threadIdx.x][i + u];
#pragma unroll
          for (int e = 0; e < kGroup; ++e) sum[c + e] = add_square(sum[c + e], own, candidates[i + u][c + e]);
        }
      }
    }
  }
  const double own = row < p.n ? potential[row] : 0.0;  // nothing is nearer than 0
  unsigned maybe = 0, is = 0;
#pragma unroll
  for (int c = 0; c < kTogether; ++c) {
    if (c < count && row < p.n && p.weighted(row, at_least(sum[c], bound)) < own) maybe |= 1u << c;
  }
  // Each lane settles one candidate of its own at a time.
  for (; __any_sync(kAllLanes, maybe != 0); maybe &= maybe - 1) {
    const int c = __ffs(int(maybe)) - 1;
    const double now = c >= 0 ? potential_d64<T, kWide>(p, row, rows[c]) : own;
    if (now < own) is |= 1u << c;
    unsigned left = __ballot_sync(kAllLanes, now < own);
    while (left != 0) {
      const int which = __shfl_sync(kAllLanes, c, __ffs(int(left)) - 1);
      const bool changes = now < own && c == which;
      const auto put = [&](int word, int64_t amount) {
        atomicAdd(words + which * kSumWords + word, (unsigned long long)amount);
      };
      add_exactly(changes ? now : 0.0, put);
      add_exactly(changes ? -own : 0.0, put);
      left &= ~__ballot_sync(kAllLanes, changes);
    }
  }
  if (row < p.n) nearer[row] = uint16_t(is);
}

// The candidate of the smallest sum becomes a centroid. One block of a multiprocessor is enough: registers for two are
// too few.
template <class T, bool kWide>
__global__ void __launch_bounds__(kScanThreads, 1)
    kmeans_plusplus_accept_d64(const Points<T> p, const int64_t* rows, const double* sums, int64_t trials,
                               int64_t candidates, const uint16_t* nearer, double* scale, double* potential,
                               int64_t* totals, int64_t* words, int64_t* chosen) {
  __shared__ int64_t parts[kWarp];
  int64_t best = 0;
  for (int64_t c = 1; c < candidates; ++c) best = sums[c] < sums[best] ? c : best;
  const int64_t row = blockIdx.x * kDrawnTogether + threadIdx.x;
  int64_t units = 0, total;
  const double next = draw_scale(sums[best], p.n);
  if (row < p.n) {
    double own = potential[row];
    if (nearer[best / kTogether * p.n + row] >> best % kTogether & 1) {
      potential[row] = own = potential_d64<T, kWide>(p, row, rows[best]);
    }
    units = draw_units(own, next);
  }
  sum_before(units, parts, &total);
  if (threadIdx.x == 0) totals[blockIdx.x] = total;
  if (blockIdx.x > 0) return;
  if (threadIdx.x == 0) *chosen = rows[best], *scale = next;
  // What the candidates of the next step start from.
  if (threadIdx.x < kSumWords) {
    const int64_t word = words[best * kSumWords + threadIdx.x];
    for (int64_t c = 0; c < trials; ++c) words[c * kSumWords + threadIdx.x] = word;
  }
}

template <class T, bool kWide>
int kmeans_plusplus_all(const Points<T>& p, int64_t trials, const int64_t* numerators, int64_t steps, double* scale,
                        double* potential, uint16_t* nearer, int64_t* totals, int64_t* words, double* sums,
                        int64_t* rows, int64_t* chosen, cudaStream_t stream) {
  const auto blocks = unsigned(ceil_div(p.n, kDrawnTogether));
  const Bound bound = {1.0 - double(p.d + 5) * 0x1p-24, double(p.d) * 0x1p-148};
  for (int64_t step = 0; step <= steps; ++step) {
    // The first row is the only candidate of its step, and the potentials are those to it already.
    const int64_t candidates = step > 0 ? trials : 1;
    if (step > 0) {
      launch(kmeans_plusplus_draw, unsigned(trials), kScanThreads, 0, stream, potential, scale, p.n, totals,
             numerators + (step - 1) * trials, rows);
      for (int64_t c = 0; c < trials; c += kTogether) {
        launch(kmeans_plusplus_compare_d64<T, kWide>, unsigned(ceil_div(p.n, kThreads)), kThreads, 0, stream, p, bound,
               rows + c, int(min(trials - c, int64_t(kTogether))), potential, nearer + c / kTogether * p.n,
               reinterpret_cast<unsigned long long*>(words + c * kSumWords));
      }
    }
    exact_sum(potential, candidates, step > 0 ? 0 : p.n, words, sums, stream);
    launch(kmeans_plusplus_accept_d64<T, kWide>, blocks, kScanThreads, 0, stream, p, rows, sums, trials, candidates,
           nearer, scale, potential, totals, words, chosen + step);
  }
  return launch_status();
}

}  // namespace

int kmeans_plusplus(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d, const double* weight,
                    int64_t trials, const int64_t* numerators, int64_t steps, double* scale, double* potential,
                    uint16_t* nearer, int64_t* totals, int64_t* words, double* sums, int64_t* rows, int64_t* chosen,
                    void* stream) {
  if (n > kMaxRows) return DCFAST_OUT_OF_RANGE;
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const Points<T> p = {static_cast<const T*>(x), row_stride, n, d, weight};
    const auto run = packs_fit<T>(x, row_stride, d) ? kmeans_plusplus_all<T, true> : kmeans_plusplus_all<T, false>;
    return run(p, trials, numerators, steps, scale, potential, nearer, totals, words, sums, rows, chosen,
               static_cast<cudaStream_t>(stream));
  });
}

}  // namespace cuda
}  // namespace dcfast
