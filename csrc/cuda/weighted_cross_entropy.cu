// Cross-entropy with the weight 1 / size of each class, forward: one pass over the logits.
// See dcfast/ops/weighted_cross_entropy/__init__.py for the definition.
//
// A row is read by a warp, or by a block where it is long, 16 bytes per thread and load. Each thread keeps
// the maximum m of its elements and the sum of exp(x - m), rescaled where m grows (the softmax "online");
// shuffles and shared memory merge them in a fixed order. A second kernel, one block, sums the rows' losses
// and weights in double, again in a fixed order: no atomics, so a result has the same bits every time.
//
// The pass is bound by memory: 4.8 TB/s are 9 elements of float32 per clock and multiprocessor of an H200,
// which has 16 exponentials per clock. So exp(x - m) is taken as 2^((x - m) log2 e), one multiplication and
// the unit's own 2^x: the product's rounding, |x - m| 2^-24 of the term exp(x - m), stays below 2^-25 of the
// sum, which is at least 1.
#include <float.h>

#include "common.cuh"

namespace dcfast {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTotalThreads = 1024;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int64_t kWarpRow = 1024;  // elements of the longest row that one warp reads
constexpr int64_t kMaxBlocks = 1 << 30;

__device__ __forceinline__ float exponential(float x) { return exp2f(x * 1.4426950408889634f); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

template <class W>
struct Lowest;
template <>
struct Lowest<float> {
  static constexpr float kValue = -FLT_MAX;
};
template <>
struct Lowest<double> {
  static constexpr double kValue = -DBL_MAX;
};

template <class T>
struct Arguments {
  using W = typename Element<T>::Wide;
  const T* logits;
  int64_t row_stride;
  const int64_t* target;
  const W* sizes;
  int64_t n, k, ignore_index;
  W label_smoothing;
  W* losses;
  W* maxima;
  W* log_sums;
};

template <class W>
__device__ __forceinline__ W weight_of(W size) {
  return size > W(0) ? W(1) / size : W(0);
}

// The weight of a row: 0 if it is ignored, NaN if its target is no class.
template <class W>
__device__ __forceinline__ W weight_of_row(int64_t target, const W* sizes, int64_t k, int64_t ignore_index) {
  if (target == ignore_index) return W(0);
  return target >= 0 && target < k ? weight_of(sizes[target]) : W(NAN);
}

// What some elements of a row come to: their maximum m (at first the smallest finite number, so that elements
// of -inf leave no inf - inf), the sum of exp(x - m), and with label smoothing those of w (x - m) and of w.
template <class W, bool kSmooth>
struct Part {
  W maximum = Lowest<W>::kValue;
  W exponentials = 0, weighted = 0, weights = 0;

  __device__ __forceinline__ void raise(W to) {
    // Bounded, so that an empty part adds 0 * finite.
    const W change = fmax(maximum - to, Lowest<W>::kValue);
    exponentials *= exponential(change);
    if (kSmooth) weighted += weights * change;
    maximum = to;
  }

  template <int kCount>
  __device__ __forceinline__ void add(const W (&x)[kCount], const W* sizes) {
    W largest = x[0];
#pragma unroll
    for (int i = 1; i < kCount; ++i) largest = fmax(largest, x[i]);
    if (largest > maximum) raise(largest);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      exponentials += exponential(x[i] - maximum);
      if (kSmooth) {
        const W w = weight_of(__ldg(sizes + i));
        weighted += w * (x[i] - maximum);
        weights += w;
      }
    }
  }

  // Merges the part of the lane that is `offset` above.
  __device__ __forceinline__ void merge_down(int offset) {
    Part other;
    other.maximum = __shfl_down_sync(kAllLanes, maximum, offset);
    other.exponentials = __shfl_down_sync(kAllLanes, exponentials, offset);
    if (kSmooth) {
      other.weighted = __shfl_down_sync(kAllLanes, weighted, offset);
      other.weights = __shfl_down_sync(kAllLanes, weights, offset);
    }
    const W largest = fmax(maximum, other.maximum);
    raise(largest);
    other.raise(largest);
    exponentials += other.exponentials;
    weighted += other.weighted;
    weights += other.weights;
  }
};

// Thread `lane` of kGroup reads its share of a row: up to the first 16-byte boundary and after the last one
// an element at a time, in between 16 bytes.
template <class T, bool kSmooth, int kGroup>
__device__ __forceinline__ Part<typename Element<T>::Wide, kSmooth> read_row(const T* x,
                                                                             const typename Element<T>::Wide* sizes,
                                                                             int64_t k, int lane) {
  using W = typename Element<T>::Wide;
  constexpr int kPerLoad = Element<T>::kPerLoad;
  Part<W, kSmooth> part;
  auto add_one = [&](int64_t j) {
    const W one[1] = {widen(x[j])};
    part.add(one, sizes + j);
  };
  const int64_t unaligned = int64_t((16 - (reinterpret_cast<uintptr_t>(x) & 15)) & 15) / int64_t(sizeof(T));
  const int64_t head = unaligned < k ? unaligned : k;
  const int64_t body = head + (k - head) / kPerLoad * kPerLoad;
  constexpr int64_t kStep = int64_t(kGroup) * kPerLoad;
  if (lane < head) add_one(lane);
  int64_t j = head + int64_t(lane) * kPerLoad;
  for (; j + kStep < body; j += 2 * kStep) {  // two loads in flight
    W first[kPerLoad], second[kPerLoad];
    load_wide(x + j, first);
    load_wide(x + j + kStep, second);
    part.add(first, sizes + j);
    part.add(second, sizes + j + kStep);
  }
  if (j < body) {
    W last[kPerLoad];
    load_wide(x + j, last);
    part.add(last, sizes + j);
  }
  if (body + lane < k) add_one(body + lane);
  return part;
}

// The second bound lets ptxas use more than 64 registers on sm_90a, where float64 would spill.
template <class T, bool kSmooth, int kGroup>
__global__ void __launch_bounds__(kThreads, 2) row_losses(const Arguments<T> a) {
  using W = typename Element<T>::Wide;
  constexpr int kRows = kThreads / kGroup, kWarps = kGroup / kWarp;
  __shared__ Part<W, kSmooth> parts[kThreads / kWarp];
  const int lane = threadIdx.x % kGroup;
  const int64_t step = int64_t(gridDim.x) * kRows;
  for (int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x / kGroup; row < a.n; row += step) {
    const int64_t target = a.target[row];
    if (target == a.ignore_index) {
      if (lane == 0) a.losses[row] = a.maxima[row] = a.log_sums[row] = W(0);
      continue;
    }
    const T* x = a.logits + row * a.row_stride;
    Part<W, kSmooth> part = read_row<T, kSmooth, kGroup>(x, a.sizes, a.k, lane);
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) part.merge_down(offset);
    if (kWarps > 1) {
      __syncthreads();  // the last row's parts have been read
      if (lane % kWarp == 0) parts[lane / kWarp] = part;
      __syncthreads();
      if (lane < kWarp) {
        part = lane < kWarps ? parts[lane] : Part<W, kSmooth>();
#pragma unroll
        for (int offset = kWarps / 2; offset > 0; offset /= 2) part.merge_down(offset);
      }
    }
    if (lane == 0) {
      const W weight = weight_of_row(target, a.sizes, a.k, a.ignore_index);
      const W hit = target >= 0 && target < a.k ? widen(x[target]) : W(0);
      const W log_sum = logarithm(part.exponentials);
      W loss = weight * ((part.maximum - hit) + log_sum);
      if (kSmooth) {
        const W all = part.weights * log_sum - part.weighted;
        loss = (W(1) - a.label_smoothing) * loss + a.label_smoothing / W(a.k) * all;
      }
      a.losses[row] = loss;
      a.maxima[row] = part.maximum;
      a.log_sums[row] = log_sum;
    }
  }
}

// sums[0] = sum of the losses, over sums[1] if `mean`; sums[1] = sum of the rows' weights.
template <class W>
__global__ void __launch_bounds__(kTotalThreads)
    totals(const W* losses, const int64_t* target, const W* sizes, int64_t n, int64_t k, int64_t ignore_index,
           bool mean, W* sums) {
  __shared__ double parts[2][kTotalThreads / kWarp];
  double loss = 0.0, weight = 0.0;
  for (int64_t row = threadIdx.x; row < n; row += kTotalThreads) {
    loss += double(losses[row]);
    weight += double(weight_of_row(target[row], sizes, k, ignore_index));
  }
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  auto sum_of_warp = [&] {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      loss += __shfl_down_sync(kAllLanes, loss, offset);
      weight += __shfl_down_sync(kAllLanes, weight, offset);
    }
  };
  sum_of_warp();
  if (lane == 0) {
    parts[0][warp] = loss;
    parts[1][warp] = weight;
  }
  __syncthreads();
  if (warp != 0) return;
  static_assert(kTotalThreads / kWarp == kWarp, "one part per lane of the first warp");
  loss = parts[0][lane];
  weight = parts[1][lane];
  sum_of_warp();
  if (lane == 0) {
    sums[0] = W(mean ? loss / weight : loss);
    sums[1] = W(weight);
  }
}

template <class T, bool kSmooth>
void launch_rows(const Arguments<T>& a, cudaStream_t stream) {
  constexpr int kRows = kThreads / kWarp;
  if (a.k <= kWarpRow) {
    const int64_t blocks = (a.n + kRows - 1) / kRows;
    launch(row_losses<T, kSmooth, kWarp>, unsigned(blocks < kMaxBlocks ? blocks : kMaxBlocks), kThreads, 0, stream, a);
  } else {
    launch(row_losses<T, kSmooth, kThreads>, unsigned(a.n < kMaxBlocks ? a.n : kMaxBlocks), kThreads, 0, stream, a);
  }
}

template <class T>
int forward(const void* logits, int64_t row_stride, const int64_t* target, const void* sizes, int64_t n, int64_t k,
            int64_t ignore_index, double label_smoothing, bool mean, void* losses, void* maxima, void* log_sums,
            void* sums, cudaStream_t stream) {
  using W = typename Element<T>::Wide;
  const Arguments<T> a = {static_cast<const T*>(logits),
                          row_stride,
                          target,
                          static_cast<const W*>(sizes),
                          n,
                          k,
                          ignore_index,
                          W(label_smoothing),
                          static_cast<W*>(losses),
                          static_cast<W*>(maxima),
                          static_cast<W*>(log_sums)};
  if (n > 0) {
    if (label_smoothing > 0.0) {
      launch_rows<T, true>(a, stream);
    } else {
      launch_rows<T, false>(a, stream);
    }
    const int status = launch_status();
    if (status != DCFAST_OK) return status;
  }
  launch(totals<W>, 1, kTotalThreads, 0, stream, a.losses, target, a.sizes, n, k, ignore_index, mean,
         static_cast<W*>(sums));
  return launch_status();
}

}  // namespace

int weighted_cross_entropy(int dtype, const void* logits, int64_t row_stride, const int64_t* target, const void* sizes,
                           int64_t n, int64_t k, int64_t ignore_index, double label_smoothing, bool mean, void* losses,
                           void* maxima, void* log_sums, void* sums, void* stream) {
  auto run = [&](auto* launcher) {
    return launcher(logits, row_stride, target, sizes, n, k, ignore_index, label_smoothing, mean, losses, maxima,
                    log_sums, sums, static_cast<cudaStream_t>(stream));
  };
  switch (dtype) {
    case DCFAST_FLOAT32:
      return run(forward<float>);
    case DCFAST_FLOAT64:
      return run(forward<double>);
    case DCFAST_FLOAT16:
      return run(forward<__half>);
    case DCFAST_BFLOAT16:
      return run(forward<__nv_bfloat16>);
    default:
      return DCFAST_INVALID_DTYPE;
  }
}

}  // namespace cuda
}  // namespace dcfast
