// D64 of every row to its own centroid, and the exact sum of any doubles.
#include <math.h>

#include "exact_sum.cuh"
#include "fixed.cuh"

namespace dcfast {
namespace cuda {
namespace {

// ---- distances -----------------------------------------------------------------------------------------------
// The terms of D64 may be made in any order, only their sum is sequential: a warp reads tiles of 32 rows and columns of
// x and of the rows' own centroids, 16 bytes per lane, leaves the squares in shared memory, and then each lane adds
// those of one row, in order.

constexpr int kDistanceThreads = 128;
constexpr int kDistanceWarps = kDistanceThreads / kWarp;
constexpr int kTile = kWarp;        // rows, and columns, of a tile
constexpr int kPadded = kTile + 1;  // doubles of a row of squares: the lanes' rows start in different banks

template <class T, bool kWide>
__global__ void __launch_bounds__(kDistanceThreads, 4)
    point_distances_d64(const T* x, int64_t problem_stride, int64_t row_stride, int64_t items, int64_t n, int64_t d,
                        const T* centroids, int64_t k, const int64_t* labels, const double* weight, double* out) {
  constexpr int kCount = Pack<T>::kCount;
  constexpr int kLanes = kTile / kCount;  // that share a row of a tile
  constexpr int kRows = kWarp / kLanes;   // read at once
  constexpr int kUnroll = 4;              // loads in flight, of x and of the centroids each
  static_assert(kTile % (kRows * kUnroll) == 0);
  __shared__ double squares[kDistanceWarps][kTile * kPadded];
  const int lane = threadIdx.x % kWarp;
  double* tile = squares[threadIdx.x / kWarp];
  const int64_t step = int64_t(gridDim.x) * kDistanceThreads;
  for (int64_t start = int64_t(blockIdx.x) * kDistanceThreads + (threadIdx.x - lane); start < items; start += step) {
    const int64_t item = start + lane, problem = item < items ? item / n : 0;
    const int64_t label = item < items ? labels[item] : -1;
    const bool inside = label >= 0 && label < k;
    // A row without a centroid is compared with some other's, for nothing.
    const int64_t row = problem * problem_stride + (item < items ? item - problem * n : 0) * row_stride;
    const int64_t centroid = (problem * k + (inside ? label : 0)) * d;
    double sum = 0.0;
    for (int64_t base = 0; base < d; base += kTile) {
      const Columns<T, kWide> columns(base / kTile, lane % kLanes, kLanes, d);
      for (int r0 = 0; r0 < kTile; r0 += kRows * kUnroll) {
        Pack<T> points[kUnroll], means[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int r = r0 + u * kRows + lane / kLanes;
          points[u] = columns.load(x + __shfl_sync(kAllLanes, row, r));
          means[u] = columns.load(centroids + __shfl_sync(kAllLanes, centroid, r));
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int r = r0 + u * kRows + lane / kLanes;
#pragma unroll
          for (int e = 0; e < kCount; ++e) {
            const double t = __dsub_rn(double(widen(points[u].elements[e])), double(widen(means[u].elements[e])));
            tile[r * kPadded + int(columns.at(e) - base)] = __dmul_rn(t, t);
          }
        }
      }
      __syncwarp();
      const int count = int(d - base < kTile ? d - base : kTile);
      for (int i = 0; i < count; ++i) sum = __dadd_rn(sum, tile[lane * kPadded + i]);
      __syncwarp();
    }
    if (!inside) sum = 0.0;
    if (item < items) out[item] = weight != nullptr ? __dmul_rn(weight[item], sum) : sum;
  }
}

template <class T>
int point_distances_all(const void* x, int64_t problem_stride, int64_t row_stride, int64_t problems, int64_t n,
                        int64_t d, const void* centroids, int64_t k, const int64_t* labels, const double* weight,
                        double* out, cudaStream_t stream) {
  const bool wide =
      packs_fit<T>(x, problem_stride, d) && packs_fit<T>(x, row_stride, d) && packs_fit<T>(centroids, d, d);
  const int64_t items = problems * n;
  launch(wide ? point_distances_d64<T, true> : point_distances_d64<T, false>,
         blocks_for(ceil_div(items, kDistanceThreads)), kDistanceThreads, 0, stream, static_cast<const T*>(x),
         problem_stride, row_stride, items, n, d, static_cast<const T*>(centroids), k, labels, weight, out);
  return launch_status();
}

// ---- sums ----------------------------------------------------------------------------------------------------
// A warp has words of its own in shared memory: no atomics but those of a block, once, on the words of the row.

constexpr int kSumThreads = 256;
constexpr int kSumWarps = kSumThreads / kWarp;
constexpr int64_t kValues = 16 * kSumThreads;  // of a block: so many that its end costs little
constexpr int64_t kMaxBlocks = 1024;           // of a row: each adds less than 2^32 to a word

__global__ void __launch_bounds__(kSumThreads)
    exact_sum_add(const double* values, int64_t length, int64_t blocks_per_row, unsigned long long* words) {
  __shared__ int64_t own[kSumWarps][kSumWords];
  for (int w = threadIdx.x; w < kSumWarps * kSumWords; w += kSumThreads) own[w / kSumWords][w % kSumWords] = 0;
  __syncthreads();
  const int64_t row = blockIdx.x / blocks_per_row, part = blockIdx.x % blocks_per_row;
  values += row * length;
  words += row * kSumWords;
  const int64_t step = blocks_per_row * kSumThreads, warp_first = threadIdx.x / kWarp * kWarp;
  for (int64_t start = part * kSumThreads + warp_first; start < length; start += step) {
    const int64_t at = start + threadIdx.x % kWarp;
    add_exactly(at < length ? values[at] : 0.0,
                [&](int word, int64_t amount) { own[threadIdx.x / kWarp][word] += amount; });
  }
  __syncthreads();
  for (int w = threadIdx.x; w < kSumWords; w += kSumThreads) {
    for (int warp = 1; warp < kSumWarps; ++warp) own[0][w] += own[warp][w];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int64_t up = 0;
    for (int w = 0; w < kDigits; ++w) {
      const int64_t value = own[0][w] + up;
      up = w + 1 < kDigits ? value >> kSumDigit : 0;
      own[0][w] = value - up * (int64_t(1) << kSumDigit);
    }
  }
  __syncthreads();
  for (int w = threadIdx.x; w < kSumWords; w += kSumThreads) {
    if (own[0][w] != 0) atomicAdd(words + w, (unsigned long long)own[0][w]);
  }
}

__global__ void __launch_bounds__(kWarp) exact_sum_round(const int64_t* words, double* out) {
  __shared__ int64_t row[kSumWords];
  for (int w = threadIdx.x; w < kSumWords; w += kWarp) row[w] = words[int64_t(blockIdx.x) * kSumWords + w];
  __syncwarp();
  if (threadIdx.x != 0) return;
  double sum = round_words<kSumDigit>(row, kDigits, 1, -1074);
  const bool up = row[kSpecials] > 0, down = row[kSpecials + 1] > 0;
  if (up) sum = INFINITY;
  if (down) sum = -INFINITY;
  if (row[kSpecials + 2] > 0 || (up && down)) sum = NAN;
  out[blockIdx.x] = sum;
}

}  // namespace

int point_distances(int dtype, const void* x, int64_t problem_stride, int64_t row_stride, int64_t problems, int64_t n,
                    int64_t d, const void* centroids, int64_t k, const int64_t* labels, const double* weight,
                    double* out, void* stream) {
  return with_dtype(dtype, [&](auto element) {
    return point_distances_all<decltype(element)>(x, problem_stride, row_stride, problems, n, d, centroids, k, labels,
                                                  weight, out, static_cast<cudaStream_t>(stream));
  });
}

int exact_sum(const double* values, int64_t rows, int64_t length, int64_t* words, double* out, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (length > 0) {
    const int64_t needed = ceil_div(length, kValues), blocks = needed < kMaxBlocks ? needed : kMaxBlocks;
    launch(exact_sum_add, unsigned(rows * blocks), kSumThreads, 0, on, values, length, blocks,
           reinterpret_cast<unsigned long long*>(words));
  }
  launch(exact_sum_round, unsigned(rows), kWarp, 0, on, words, out);
  return launch_status();
}

}  // namespace cuda
}  // namespace dcfast
