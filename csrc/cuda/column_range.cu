// The smallest non-zero and the largest finite magnitude of every column of w x, in one pass over x.
//
// A warp keeps the ranges of its columns in registers over many rows, several 16-byte loads in flight; the warps of a
// block merge theirs in shared memory, and a block adds one atomic per column and bound. Positive doubles are ordered
// as their bits are.
#include <math.h>

#include "rows.cuh"

namespace dcfast {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBlocks = 4;  // per multiprocessor: some 32 warps
constexpr unsigned long long kInfinity = 0x7FF0000000000000ull;

template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    column_range_kernel(const T* x, int64_t row_stride, int64_t n, int64_t d, const double* weight, int lanes,
                        int64_t tiles, unsigned long long* smallest, unsigned long long* largest) {
  constexpr int kCount = Pack<T>::kCount, kUnroll = kLoadsInFlight;
  __shared__ unsigned long long bounds[2][kWarps][kWarp * kCount];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int rows_at_once = kWarp / lanes;
  const Columns<T, kWide> columns(blockIdx.x % tiles, lane % lanes, lanes, d);
  unsigned long long least[kCount], most[kCount];
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    least[e] = kInfinity;
    most[e] = 0;
  }
  const int64_t step = int64_t(gridDim.x) / tiles * kWarps * rows_at_once;
  int64_t row = (int64_t(blockIdx.x) / tiles * kWarps + warp) * rows_at_once + lane / lanes;
  for (; row < n; row += kUnroll * step) {
    Pack<T> packs[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      packs[u] = columns.load(x + (row + u * step < n ? row + u * step : row) * row_stride);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const double w = weight != nullptr ? weight[row + u * step < n ? row + u * step : row] : 1.0;
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        const double magnitude = fabs(__dmul_rn(double(widen(packs[u].elements[e])), w));
        const auto bits = (unsigned long long)(__double_as_longlong(magnitude));
        const bool some = bits != 0 && bits < kInfinity;
        least[e] = min(least[e], some ? bits : kInfinity);
        most[e] = max(most[e], some ? bits : 0);
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    bounds[0][warp][e * kWarp + lane] = least[e];
    bounds[1][warp][e * kWarp + lane] = most[e];
  }
  __syncthreads();
  // A lane of each row that the block read at once has the same columns: they merge by the atomics.
  for (int at = threadIdx.x; at < kCount * kWarp; at += kThreads) {
    unsigned long long low = kInfinity, high = 0;
    for (int w = 0; w < kWarps; ++w) {
      low = min(low, bounds[0][w][at]);
      high = max(high, bounds[1][w][at]);
    }
    const Columns<T, kWide> own(blockIdx.x % tiles, at % kWarp % lanes, lanes, d);
    const int64_t column = own.at(at / kWarp);
    if (column >= d || high == 0) continue;
    atomicMin(smallest + column, low);
    atomicMax(largest + column, high);
  }
}

template <class T>
int column_range_all(const void* x, int64_t row_stride, int64_t n, int64_t d, const double* weight, double* smallest,
                     double* largest, cudaStream_t stream) {
  const int lanes = lanes_of_a_row<T>(d);
  const int64_t tiles = ceil_div(d, int64_t(lanes) * Pack<T>::kCount);
  const int64_t most = ceil_div(n, int64_t(kWarps) * (kWarp / lanes));  // blocks per tile that find a row
  const unsigned blocks = blocks_for(tiles * min(most, ceil_div(kBlocks * multiprocessors(), tiles)));
  auto* low = reinterpret_cast<unsigned long long*>(smallest);
  auto* high = reinterpret_cast<unsigned long long*>(largest);
  const T* rows = static_cast<const T*>(x);
  if (packs_fit<T>(x, row_stride, d)) {
    launch(column_range_kernel<T, true>, blocks, kThreads, 0, stream, rows, row_stride, n, d, weight, lanes, tiles, low,
           high);
  } else {
    launch(column_range_kernel<T, false>, blocks, kThreads, 0, stream, rows, row_stride, n, d, weight, lanes, tiles,
           low, high);
  }
  return launch_status();
}

}  // namespace

int column_range(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d, const double* weight,
                 double* smallest, double* largest, void* stream) {
  return with_dtype(dtype, [&](auto element) {
    return column_range_all<decltype(element)>(x, row_stride, n, d, weight, smallest, largest,
                                               static_cast<cudaStream_t>(stream));
  });
}

}  // namespace cuda
}  // namespace dcfast
