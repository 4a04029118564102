// Each empty cluster, in order, takes half of a donor drawn with probability proportional to its count - 1; see
// csrc/cpu/split_empty.h. Splits follow from one another, so a block walks the empty clusters of a problem.
//
// Each thread owns a range of clusters and keeps the sum of count - 1 over it: a draw is a prefix sum over the threads
// and a walk through one range, O(k / 1024) and not O(k).
#include "scan.cuh"

namespace dcfast {
namespace cuda {
namespace {

constexpr int kThreads = kScanThreads;
constexpr int kWarps = kThreads / kWarp;

__device__ __forceinline__ uint64_t philox(uint64_t seed, uint64_t iteration, uint64_t cluster) {
  uint32_t c0 = uint32_t(iteration), c1 = uint32_t(iteration >> 32), c2 = uint32_t(cluster),
           c3 = uint32_t(cluster >> 32), k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
    const uint32_t n0 = uint32_t(b >> 32) ^ c1 ^ k0, n2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c1 = uint32_t(b);
    c3 = uint32_t(a);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return uint64_t(c1) << 32 | c0;
}

__device__ __forceinline__ int64_t spare(int64_t count) { return count > 1 ? count - 1 : 0; }

template <class T>
__global__ void __launch_bounds__(kThreads) split_empty_kernel(T* centroids, int64_t* counts, int64_t k, int64_t d,
                                                               const int64_t* seeds, const int64_t* iterations) {
  __shared__ int64_t parts[kWarps];
  __shared__ unsigned empties[kWarps];
  __shared__ int64_t donor, given;
  centroids += int64_t(blockIdx.x) * k * d;
  counts += int64_t(blockIdx.x) * k;
  const uint64_t seed = uint64_t(seeds[blockIdx.x]), iteration = uint64_t(iterations[blockIdx.x]);
  const T up = T(1) + T(1) / T(1024), down = T(1) - T(1) / T(1024);
  const int64_t width = (k + kThreads - 1) / kThreads, first = int64_t(threadIdx.x) * width;
  const int64_t last = first + width < k ? first + width : k;
  int64_t own = 0;
  for (int64_t j = first; j < last; ++j) own += spare(counts[j]);
  for (int64_t start = 0; start < k; start += kThreads) {
    // A split fills the empty cluster that it is for and leaves the donor at least one, so what is empty here stays so.
    const int64_t j = start + threadIdx.x;
    const unsigned ballot = __ballot_sync(kAllLanes, j < k && counts[j] == 0);
    if (threadIdx.x % kWarp == 0) empties[threadIdx.x / kWarp] = ballot;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) {
      for (unsigned left = empties[w]; left != 0; left &= left - 1) {
        const int64_t empty = start + w * kWarp + __ffs(int(left)) - 1;
        int64_t total;
        const int64_t before = sum_before(own, parts, &total);
        if (total == 0) return;  // nothing left to share
        const int64_t draw = int64_t(__umul64hi(philox(seed, iteration, uint64_t(empty)), uint64_t(total)));
        if (before <= draw && draw < before + own) {
          int64_t at = first;
          for (int64_t prefix = before + spare(counts[at]); prefix <= draw; prefix += spare(counts[at])) ++at;
          const int64_t count = counts[at];
          donor = at;
          given = count / 2;
          counts[empty] = count / 2;
          counts[at] = count - count / 2;
          own += spare(count - count / 2) - spare(count);
        }
        __syncthreads();
        if (empty >= first && empty < last) own += spare(given);
        T *to = centroids + empty * d, *from = centroids + donor * d;
        for (int64_t i = threadIdx.x; i < d; i += kThreads) {
          const T value = from[i];
          to[i] = value * (i % 2 == 0 ? up : down);
          from[i] = value * (i % 2 == 0 ? down : up);
        }
      }
    }
    __syncthreads();  // all have read the empties
  }
}

template <class T>
int split_empty_all(void* centroids, int64_t* counts, int64_t problems, int64_t k, int64_t d, const int64_t* seeds,
                    const int64_t* iterations, cudaStream_t stream) {
  launch(split_empty_kernel<T>, unsigned(problems), kThreads, 0, stream, static_cast<T*>(centroids), counts, k, d,
         seeds, iterations);
  return launch_status();
}

}  // namespace

int split_empty(int dtype, void* centroids, int64_t* counts, int64_t problems, int64_t k, int64_t d,
                const int64_t* seeds, const int64_t* iterations, void* stream) {
  switch (dtype) {
    case DCFAST_FLOAT32:
      return split_empty_all<float>(centroids, counts, problems, k, d, seeds, iterations,
                                    static_cast<cudaStream_t>(stream));
    case DCFAST_FLOAT64:
      return split_empty_all<double>(centroids, counts, problems, k, d, seeds, iterations,
                                     static_cast<cudaStream_t>(stream));
    default:
      return DCFAST_INVALID_DTYPE;
  }
}

}  // namespace cuda
}  // namespace dcfast
