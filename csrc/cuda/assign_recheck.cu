// The rows that the certified pass leaves open, by the definition's D64: two candidates, or every centroid.
// D64 adds in order, so that a thread owns a distance; nothing is fused. Blocks walk lists whose lengths only the
// device knows.
#include "assign.cuh"

namespace dcfast {
namespace cuda {
namespace {

constexpr int kPairThreads = 32;
constexpr int kPairUnroll = 8;  // loads in flight ahead of a chain of additions
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kChunk = 128;  // columns of the rows in shared memory
// From this many rows on, each centroid loaded serves several rows; below, every row gets its own block.
constexpr int32_t kManyRows = 4096;
constexpr unsigned kAll = 0xFFFFFFFFu;

template <class T>
__global__ void __launch_bounds__(kPairThreads) recheck_pairs_d64(const AssignData<T> data, const AssignPass pass) {
  const int32_t count = pass.counts[0];
  for (int32_t at = blockIdx.x * kPairThreads + threadIdx.x; at < count; at += gridDim.x * kPairThreads) {
    const int32_t item = pass.lists[at], first = pass.pair[item], second = pass.pair[pass.items + item];
    const int64_t p = pass.problem0 + item / pass.n, row = pass.row0 + item % pass.n;
    const T* x = data.x + p * data.x_problem + row * data.x_row;
    const T* c1 = data.centroids + p * data.c_problem + first * data.c_row;
    const T* c2 = data.centroids + p * data.c_problem + second * data.c_row;
    double sum1 = 0.0, sum2 = 0.0;
    int64_t i = 0;
    for (; i + kPairUnroll <= data.d; i += kPairUnroll) {
      T a[kPairUnroll], b1[kPairUnroll], b2[kPairUnroll];
#pragma unroll
      for (int u = 0; u < kPairUnroll; ++u) {
        a[u] = x[(i + u) * data.x_column];
        b1[u] = c1[(i + u) * data.c_column];
        b2[u] = c2[(i + u) * data.c_column];
      }
#pragma unroll
      for (int u = 0; u < kPairUnroll; ++u) {
        sum1 = add_square(sum1, double(widen(a[u])), double(widen(b1[u])));
        sum2 = add_square(sum2, double(widen(a[u])), double(widen(b2[u])));
      }
    }
    for (; i < data.d; ++i) {
      const double a = double(widen(x[i * data.x_column]));
      sum1 = add_square(sum1, a, double(widen(c1[i * data.c_column])));
      sum2 = add_square(sum2, a, double(widen(c2[i * data.c_column])));
    }
    const bool takes_second = sum2 < sum1 || (sum2 == sum1 && second < first);
    pass.labels[p * pass.label_stride + row] = takes_second ? second : first;
  }
}

// The nearer of two centroids; index k stands for none.
__device__ __forceinline__ void take_nearer(double distance, int64_t j, double& best, int64_t& best_at) {
  if (distance < best || (distance == best && j < best_at)) {
    best = distance;
    best_at = j;
  }
}

// kRows rows against kColumns centroids per thread at a time. Works only on lists of fewest to most - 1 rows.
template <class T, int kRows, int kColumns>
__global__ void __launch_bounds__(kThreads, 2)
    recheck_all_d64(const AssignData<T> data, const uint8_t* live, const T* transposed, const AssignPass pass,
                    int32_t fewest, int32_t most) {
  constexpr int kUnroll = kRows == 1 ? 4 : 1;  // with many rows their sums take the registers
  __shared__ double x[kRows][kChunk];
  __shared__ double nearest[kRows][kWarps];
  __shared__ int64_t nearest_at[kRows][kWarps];
  const int32_t count = pass.counts[1];
  if (count < fewest || count >= most) return;
  const int32_t* const list = pass.lists + pass.items;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int32_t start = blockIdx.x * kRows; start < count; start += gridDim.x * kRows) {
    int64_t problem[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) problem[r] = pass.problem0 + list[min(start + r, count - 1)] / pass.n;
    double best[kRows];
    int64_t best_at[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      best[r] = INFINITY;
      best_at[r] = data.k;
    }
    // The centroids of one problem after another; nearly always there is one.
    for (int64_t p = -1;;) {
      int64_t next = INT64_MAX;
#pragma unroll
      for (int r = 0; r < kRows; ++r) next = problem[r] > p && problem[r] < next ? problem[r] : next;
      if (next == INT64_MAX) break;
      p = next;
      for (int64_t j0 = 0; j0 < data.k; j0 += kThreads * kColumns) {
        double sum[kRows][kColumns] = {};
        for (int64_t i0 = 0; i0 < data.d; i0 += kChunk) {
          const int columns = static_cast<int>(data.d - i0 < kChunk ? data.d - i0 : kChunk);
          __syncthreads();
          for (int at = threadIdx.x; at < kRows * kChunk; at += kThreads) {
            const int r = at / kChunk, i = at % kChunk;
            if (i >= columns) continue;
            const int32_t item = list[min(start + r, count - 1)];
            x[r][i] = double(widen(data.x[(pass.problem0 + item / pass.n) * data.x_problem +
                                          (pass.row0 + item % pass.n) * data.x_row + (i0 + i) * data.x_column]));
          }
          __syncthreads();
          // Past the last centroid that one again: a load under a condition would be waited for on its own.
          const T* c[kColumns];
#pragma unroll
          for (int u = 0; u < kColumns; ++u) {
            const int64_t j = j0 + u * kThreads + threadIdx.x;
            c[u] = transposed + (p * data.d + i0) * data.k + (j < data.k ? j : data.k - 1);
          }
#pragma unroll kUnroll
          for (int i = 0; i < columns; ++i) {
#pragma unroll
            for (int u = 0; u < kColumns; ++u) {
              const double centroid = double(widen(c[u][i * data.k]));
#pragma unroll
              for (int r = 0; r < kRows; ++r) sum[r][u] = add_square(sum[r][u], x[r][i], centroid);
            }
          }
        }
#pragma unroll
        for (int u = 0; u < kColumns; ++u) {
          const int64_t j = j0 + u * kThreads + threadIdx.x;
          if (j >= data.k || !live[p * data.k + j]) continue;
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            if (problem[r] == p) take_nearer(sum[r][u], j, best[r], best_at[r]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        const double distance = __shfl_xor_sync(kAll, best[r], step);
        const int64_t j = __shfl_xor_sync(kAll, best_at[r], step);
        take_nearer(distance, j, best[r], best_at[r]);
      }
      if (lane == 0) {
        nearest[r][warp] = best[r];
        nearest_at[r][warp] = best_at[r];
      }
    }
    __syncthreads();
    if (threadIdx.x < kRows && start + static_cast<int32_t>(threadIdx.x) < count) {
      const int r = threadIdx.x;
      double distance = nearest[r][0];
      int64_t j = nearest_at[r][0];
      for (int w = 1; w < kWarps; ++w) take_nearer(nearest[r][w], nearest_at[r][w], distance, j);
      const int32_t item = list[start + r];
      pass.labels[(pass.problem0 + item / pass.n) * pass.label_stride + pass.row0 + item % pass.n] = j;
    }
  }
}

}  // namespace

template <class T>
int assign_recheck(const AssignData<T>& data, const AssignCentroids<T>& made, const AssignPass& pass,
                   int multiprocessors, cudaStream_t stream) {
  auto blocks = [&](int64_t most, int per_multiprocessor) {
    const int64_t limit = int64_t(multiprocessors) * per_multiprocessor;
    return unsigned(most < limit ? most : limit);
  };
  launch(recheck_pairs_d64<T>, blocks((pass.items + kPairThreads - 1) / kPairThreads, 16), kPairThreads, 0, stream,
         data, pass);
  launch(recheck_all_d64<T, 1, 4>, blocks(pass.items, 4), kThreads, 0, stream, data, made.live, made.transposed, pass,
         1, kManyRows);
  if (pass.items >= kManyRows) {
    launch(recheck_all_d64<T, 8, 2>, blocks(pass.items / 8, 2), kThreads, 0, stream, data, made.live, made.transposed,
           pass, kManyRows, INT32_MAX);
  }
  return launch_status();
}

#define DCFAST_INSTANTIATE(T) \
  template int assign_recheck<T>(const AssignData<T>&, const AssignCentroids<T>&, const AssignPass&, int, cudaStream_t);
DCFAST_INSTANTIATE(float)
DCFAST_INSTANTIATE(double)
DCFAST_INSTANTIATE(__half)
DCFAST_INSTANTIATE(__nv_bfloat16)
#undef DCFAST_INSTANTIATE

}  // namespace cuda
}  // namespace dcfast
