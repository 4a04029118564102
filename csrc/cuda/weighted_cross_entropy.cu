// Cross-entropy with the weight 1 / size of each class: loss, gradient, or both in one reading of the logits.
// See dcfast/ops/weighted_cross_entropy/__init__.py for the definition.
//
// A row is worked on by a warp, by 128 threads or by 512, the more the longer it is; each thread has up to four loads
// of 16 bytes under way. It keeps the maximum m of its elements and the sum of exp(x - m), rescaled where m grows (the
// softmax "online"); shuffles and shared memory merge the threads' sums in a fixed order. Another kernel, one block,
// sums the rows' losses and weights in double, again in a fixed order: no atomics, so a result has the same bits every
// time.
//
// Where the gradient is made along with the loss, the logits wait in shared memory for the row's sums, each piece for
// the thread that has read it. All that a block may have of it holds 56,000 float32 on sm_90: what is beyond that is
// read again, from the second-level cache, for at one row per multiprocessor the rows that are worked on are about as
// large as that. The gradient may take the logits' place: nobody reads an element that somebody else writes.
//
// Both passes are bound by memory: 4.8 TB/s are 10 elements of 2 bytes per clock and multiprocessor of an H200, which
// takes 16 exponentials and 128 other operations per clock. So exp(x - m) of float16 and bfloat16 is 2^((x - m) log2
// e), a multiplication and the unit's own 2^x, within 2^-22 and |x - m| 2^-24 of itself. float32, of which there is
// half as much, takes expf, within 2^-23.
#include <float.h>
#include <limits.h>

#include <ptx.cuh>

#include "common.cuh"

namespace dcfast {
namespace cuda {
namespace {

constexpr int kTotalThreads = 1024;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int64_t kMaxBlocks = 1 << 30;
// Loads under way per thread: 1,024 threads with 64 bytes each cover the memory's latency (4.8 TB/s for 0.8 us are 29
// kB per multiprocessor) twice.
constexpr int kInFlight = 4;
// Pieces of 16 bytes of the longest rows that a warp and that 128 threads work on: 8 per thread.
constexpr int kWarpPieces = 256;
constexpr int kMiddlePieces = 1024;
constexpr int kMiddle = 128;
constexpr int kLong = 512;

template <int kGroup>
constexpr int kThreads = kGroup == kWarp ? 256 : kGroup;
// Two blocks of 512 threads per multiprocessor leave 64 registers per thread, which float64 would spill.
template <class T>
constexpr int kBlocks = sizeof(T) == 8 ? 1 : 2;

template <class T>
__device__ __forceinline__ typename Element<T>::Wide exponential(typename Element<T>::Wide x) {
  return ex2_approx_ftz(x * 1.4426950408889634f);
}
template <>
__device__ __forceinline__ float exponential<float>(float x) {
  return expf(x);
}
template <>
__device__ __forceinline__ double exponential<double>(double x) {
  return exp(x);
}
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
  const W* weights;  // 1 / size of every class, then their sum; null without label smoothing
  int64_t n;
  int k;
  int64_t ignore_index;
  W label_smoothing;
  const W* row_gradients;  // null: 1
  int64_t row_gradient_stride;
  const W* divisor;  // of all row gradients; null: 1
  W* losses;
  W* maxima;
  W* log_sums;
  T* gradient;  // n x k, or null
  int pieces;   // that shared memory holds of each row under way
};

// The weight of a row: 0 if it is ignored, NaN if its target is no class.
template <class W>
__device__ __forceinline__ W weight_of_row(int64_t target, const W* sizes, int64_t k, int64_t ignore_index) {
  if (target == ignore_index) return W(0);
  if (target < 0 || target >= k) return W(NAN);
  return sizes[target] > W(0) ? W(1) / sizes[target] : W(0);
}

// The target's column, or -1.
__device__ __forceinline__ int column_of(int64_t target, int k) { return target >= 0 && target < k ? int(target) : -1; }

// 16 bytes of a row.
template <class T>
struct Piece {
  static constexpr int kCount = Element<T>::kPerLoad;
  union {
    uint4 bits;
    T elements[kCount];
  };
};

// Where a row's 16-byte pieces lie: from element `head` on, `count` of them; the others, fewer than two pieces, are
// taken one at a time. If a gradient is written and its row begins elsewhere between two 16-byte boundaries, all of
// them are.
template <class T>
struct Pieces {
  int head, count;

  __device__ __forceinline__ Pieces(const T* x, const T* gradient, int k) {
    const unsigned at = unsigned(reinterpret_cast<uintptr_t>(x)), to = unsigned(reinterpret_cast<uintptr_t>(gradient));
    const int unaligned = int((16 - (at & 15)) & 15) / int(sizeof(T));
    const bool apart = gradient != nullptr && ((at ^ to) & 15) != 0;
    head = apart || unaligned > k ? k : unaligned;
    count = (k - head) / Piece<T>::kCount;
  }
  __device__ __forceinline__ int column(int piece) const { return head + piece * Piece<T>::kCount; }
};

// take(i, load(i)) for i = first, first + kGroup, ... below n, with kInFlight loads at a time.
template <class T, int kGroup, class Load, class Take>
__device__ __forceinline__ void stream(int first, int n, Load load, Take take) {
#pragma unroll 1
  for (int i = first; i < n; i += kInFlight * kGroup) {
    Piece<T> pieces[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (i + j * kGroup < n) pieces[j].bits = load(i + j * kGroup);
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (i + j * kGroup < n) take(i + j * kGroup, pieces[j]);
    }
  }
}

// The elements outside of the pieces.
template <class T, int kGroup, class Take>
__device__ __forceinline__ void stream_rest(const Pieces<T>& pieces, int k, int thread, Take take) {
  const int gap = pieces.column(pieces.count) - pieces.head;
#pragma unroll 1
  for (int j = thread; j < k - gap; j += kGroup) take(j < pieces.head ? j : j + gap);
}

// What some elements of a row come to: their maximum m (at first the smallest finite number, so that elements
// of -inf leave no inf - inf), the sum of exp(x - m), and with label smoothing those of w (x - m) and of w.
template <class T>
struct Part {
  using W = typename Element<T>::Wide;
  W maximum, exponentials, weighted, weights;

  __device__ __forceinline__ void raise(W to) {
    // Bounded, so that an empty part adds 0 * finite.
    const W change = fmax(maximum - to, Lowest<W>::kValue);
    exponentials *= exponential<T>(change);
    weighted += weights * change;
    maximum = to;
  }

  // Adds elements; w, their classes' weights, may be null.
  template <int kCount>
  __device__ __forceinline__ void add(const W (&x)[kCount], const W* w) {
    W largest = x[0];
#pragma unroll
    for (int i = 1; i < kCount; ++i) largest = fmax(largest, x[i]);
    if (largest > maximum) raise(largest);
#pragma unroll
    for (int i = 0; i < kCount; ++i) exponentials += exponential<T>(x[i] - maximum);
    if (w == nullptr) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      weighted += w[i] * (x[i] - maximum);
      weights += w[i];
    }
  }

  __device__ __forceinline__ void merge(Part other) {
    const W largest = fmax(maximum, other.maximum);
    raise(largest);
    other.raise(largest);
    exponentials += other.exponentials;
    weighted += other.weighted;
    weights += other.weights;
  }

  __device__ __forceinline__ Part of_lane_below(int offset) const {
    return {__shfl_down_sync(kAllLanes, maximum, offset), __shfl_down_sync(kAllLanes, exponentials, offset),
            __shfl_down_sync(kAllLanes, weighted, offset), __shfl_down_sync(kAllLanes, weights, offset)};
  }
};

template <int kGroup>
__device__ __forceinline__ void meet() {
  if (kGroup == kWarp) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

// The part of the whole row, for each of its threads; `parts` has room for one per warp.
template <class T, int kGroup>
__device__ __forceinline__ Part<T> merged(Part<T> part, Part<T>* parts, int thread) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) part.merge(part.of_lane_below(offset));
  if (thread % kWarp == 0) parts[thread / kWarp] = part;
  meet<kGroup>();
  part = parts[0];
#pragma unroll 1
  for (int warp = 1; warp < kGroup / kWarp; ++warp) part.merge(parts[warp]);
  return part;
}

// The gradient of a row: softmax exp(x_j - m) - uniform w_j, less hit where j is the target. With g the row's own
// gradient and s the smoothing, hit = g (1 - s) w_y, uniform = g s / k, softmax = (hit + uniform sum_j w_j) / sum_j
// exp(x_j - m).
template <class T>
struct Gradient {
  using W = typename Element<T>::Wide;
  W hit, uniform, softmax, maximum;
  int target;
  const W* weights;

  __device__ __forceinline__ Gradient(const Arguments<T>& a, int64_t row, W weight, W maximum, W inverse_sum)
      : maximum(maximum), target(column_of(a.target[row], a.k)), weights(a.weights) {
    W g = a.row_gradients == nullptr ? W(1) : a.row_gradients[row * a.row_gradient_stride];
    if (a.divisor != nullptr) g = *a.divisor == W(0) ? W(NAN) : g / *a.divisor;
    hit = g * (W(1) - a.label_smoothing) * weight;
    uniform = g * a.label_smoothing / W(a.k);
    softmax = (weights == nullptr ? hit : hit + uniform * weights[a.k]) * inverse_sum;
  }

  // Of kCount elements from column j on, in their place.
  template <int kCount>
  __device__ __forceinline__ void of(T (&x)[kCount], int j) const {
    W values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = softmax * exponential<T>(widen(x[i]) - maximum);
    if (weights != nullptr) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] -= uniform * weights[j + i];
    }
    const int at = target - j;
    if (at >= 0 && at < kCount) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] -= at == i ? hit : W(0);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = narrow<T>(values[i]);
  }
};

template <class T, int kGroup>
__device__ __forceinline__ void write_zeros(T* to, int k, int thread) {
  const Pieces<T> pieces(to, nullptr, k);
#pragma unroll 1
  for (int i = thread; i < pieces.count; i += kGroup) {
    st_global_v4(to + pieces.column(i), make_uint4(0, 0, 0, 0));
  }
  stream_rest<T, kGroup>(pieces, k, thread, [&](int j) { to[j] = narrow<T>(0); });
}

// Writes the gradient of a row; its first `kept` pieces are the thread's own in shared memory.
template <class T, int kGroup>
__device__ __forceinline__ void write_gradient(const Gradient<T>& gradient, const Pieces<T>& pieces, const T* x, T* to,
                                               int k, const uint4* shared, int kept, int thread) {
  stream<T, kGroup>(
      thread, pieces.count,
      [&](int i) { return i < kept ? shared[i] : *reinterpret_cast<const uint4*>(x + pieces.column(i)); },
      [&](int i, Piece<T> piece) {
        gradient.of(piece.elements, pieces.column(i));
        st_global_v4(to + pieces.column(i), piece.bits);
      });
  stream_rest<T, kGroup>(pieces, k, thread, [&](int j) {
    T one[1] = {x[j]};
    gradient.of(one, j);
    to[j] = one[0];
  });
}

template <class T, int kGroup>
__global__ void __launch_bounds__(kThreads<kGroup>, kBlocks<T>) weighted_cross_entropy_rows(const Arguments<T> a) {
  using W = typename Element<T>::Wide;
  constexpr int kRows = kThreads<kGroup> / kGroup;
  __shared__ Part<T> all_parts[kThreads<kGroup> / kWarp];
  const int thread = threadIdx.x % kGroup, group = threadIdx.x / kGroup;
  Part<T>* parts = all_parts + group * (kGroup / kWarp);
  uint4* shared = reinterpret_cast<uint4*>(dynamic_shared()) + group * a.pieces;
  for (int64_t row = int64_t(blockIdx.x) * kRows + group; row < a.n; row += int64_t(gridDim.x) * kRows) {
    const int64_t target = a.target[row];
    T* to = a.gradient == nullptr ? nullptr : a.gradient + row * a.k;
    if (target == a.ignore_index) {
      if (thread == 0) a.losses[row] = a.maxima[row] = a.log_sums[row] = W(0);
      if (to != nullptr) write_zeros<T, kGroup>(to, a.k, thread);
      continue;
    }
    const T* x = a.logits + row * a.row_stride;
    const W weight = weight_of_row(target, a.sizes, a.k, a.ignore_index);
    const int column = column_of(target, a.k);
    const W hit = column < 0 ? W(0) : widen(x[column]);
    const Pieces<T> pieces(x, to, a.k);
    Part<T> part = {Lowest<W>::kValue, 0, 0, 0};
    stream<T, kGroup>(
        thread, pieces.count, [&](int i) { return *reinterpret_cast<const uint4*>(x + pieces.column(i)); },
        [&](int i, const Piece<T>& piece) {
          if (i < a.pieces) shared[i] = piece.bits;
          W values[Piece<T>::kCount];
#pragma unroll
          for (int e = 0; e < Piece<T>::kCount; ++e) values[e] = widen(piece.elements[e]);
          part.add(values, a.weights == nullptr ? nullptr : a.weights + pieces.column(i));
        });
    stream_rest<T, kGroup>(pieces, a.k, thread, [&](int j) {
      const W one[1] = {widen(x[j])};
      part.add(one, a.weights == nullptr ? nullptr : a.weights + j);
    });
    part = merged<T, kGroup>(part, parts, thread);
    if (thread == 0) {
      const W log_sum = logarithm(part.exponentials);
      W loss = weight * ((part.maximum - hit) + log_sum);
      if (a.weights != nullptr) {
        const W all = part.weights * log_sum - part.weighted;
        loss = (W(1) - a.label_smoothing) * loss + a.label_smoothing / W(a.k) * all;
      }
      a.losses[row] = loss;
      a.maxima[row] = part.maximum;
      a.log_sums[row] = log_sum;
    }
    if (to != nullptr) {
      const Gradient<T> gradient(a, row, weight, part.maximum, W(1) / part.exponentials);
      write_gradient<T, kGroup>(gradient, pieces, x, to, a.k, shared, a.pieces, thread);
    }
    meet<kGroup>();  // the row's parts have been read
  }
}

// The gradient from the rows' maxima and log_sums.
template <class T, int kGroup>
__global__ void __launch_bounds__(kThreads<kGroup>, kBlocks<T>)
    weighted_cross_entropy_backward_rows(const Arguments<T> a) {
  using W = typename Element<T>::Wide;
  constexpr int kRows = kThreads<kGroup> / kGroup;
  const int thread = threadIdx.x % kGroup, group = threadIdx.x / kGroup;
  for (int64_t row = int64_t(blockIdx.x) * kRows + group; row < a.n; row += int64_t(gridDim.x) * kRows) {
    const int64_t target = a.target[row];
    T* to = a.gradient + row * a.k;
    if (target == a.ignore_index) {
      write_zeros<T, kGroup>(to, a.k, thread);
      continue;
    }
    const T* x = a.logits + row * a.row_stride;
    const W weight = weight_of_row(target, a.sizes, a.k, a.ignore_index);
    const Gradient<T> gradient(a, row, weight, a.maxima[row], exponential<T>(-a.log_sums[row]));
    write_gradient<T, kGroup>(gradient, Pieces<T>(x, to, a.k), x, to, a.k, nullptr, 0, thread);
  }
}

// sum, unless null, = that of the losses, over total if `mean`; total = the sum of the rows' weights.
template <class W>
__global__ void __launch_bounds__(kTotalThreads)
    totals(const W* losses, const int64_t* target, const W* sizes, int64_t n, int64_t k, int64_t ignore_index,
           bool mean, W* sum, W* total) {
  __shared__ double parts[2][kTotalThreads / kWarp];
  double loss = 0.0, weight = 0.0;
  for (int64_t row = threadIdx.x; row < n; row += kTotalThreads) {
    if (sum != nullptr) loss += double(losses[row]);
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
    // Without any weight the mean is NaN, even where label smoothing leaves a loss.
    if (sum != nullptr) *sum = W(!mean ? loss : weight == 0.0 ? NAN : loss / weight);
    *total = W(weight);
  }
}

template <class T, int kGroup>
void launch_group(bool from_statistics, Arguments<T> a, int shared_bytes, cudaStream_t stream) {
  constexpr int kBlock = kThreads<kGroup>, kRows = kBlock / kGroup;
  const int64_t blocks = (a.n + kRows - 1) / kRows;
  const unsigned grid = unsigned(blocks < kMaxBlocks ? blocks : kMaxBlocks);
  if (from_statistics) {
    launch(weighted_cross_entropy_backward_rows<T, kGroup>, grid, kBlock, 0, stream, a);
    return;
  }
  if (a.gradient != nullptr) {
    // Whole rounds of the threads, so that a piece that is not kept belongs to the same thread in both passes.
    const int rounds = (a.k / Piece<T>::kCount + kGroup - 1) / kGroup;
    const int room = shared_bytes / (kBlock * 16);
    a.pieces = int(rounds < room ? rounds : room) * kGroup;
  }
  launch(weighted_cross_entropy_rows<T, kGroup>, grid, kBlock, size_t(kRows) * a.pieces * 16, stream, a);
}

// Every row's loss, with the gradient unless that is null, or (from_statistics) the gradient alone.
template <class T>
int launch_rows(bool from_statistics, const Arguments<T>& a, cudaStream_t stream) {
  if (a.n == 0) return DCFAST_OK;
  int device = 0, shared_bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error != cudaSuccess) return DCFAST_CUDA_ERROR + int(error);
  shared_bytes -= 1024;  // the parts, and the alignment of what comes after them
  const int pieces = a.k / Piece<T>::kCount;
  if (pieces <= kWarpPieces) {
    launch_group<T, kWarp>(from_statistics, a, shared_bytes, stream);
  } else if (pieces <= kMiddlePieces) {
    launch_group<T, kMiddle>(from_statistics, a, shared_bytes, stream);
  } else {
    launch_group<T, kLong>(from_statistics, a, shared_bytes, stream);
  }
  return launch_status();
}

}  // namespace

int weighted_cross_entropy(int dtype, const void* logits, int64_t row_stride, const int64_t* target, const void* sizes,
                           const void* weights, int64_t n, int64_t k, int64_t ignore_index, double label_smoothing,
                           bool mean, const void* row_gradients, int64_t row_gradient_stride, void* losses,
                           void* maxima, void* log_sums, void* sum, void* total, void* gradient, void* stream) {
  if (k > INT_MAX) return DCFAST_OUT_OF_RANGE;
  return with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using W = typename Element<T>::Wide;
    const auto on = static_cast<cudaStream_t>(stream);
    const W *of_class = static_cast<const W*>(sizes), *divisor = nullptr;
    auto sum_up = [&](void* to) {
      launch(totals<W>, 1, kTotalThreads, 0, on, static_cast<const W*>(losses), target, of_class, n, k, ignore_index,
             mean, static_cast<W*>(to), static_cast<W*>(total));
    };
    if (gradient != nullptr && mean) {
      sum_up(nullptr);
      divisor = static_cast<const W*>(total);
    }
    const int status = launch_rows<T>(
        false,
        {static_cast<const T*>(logits), row_stride, target, of_class, static_cast<const W*>(weights), n, int(k),
         ignore_index, W(label_smoothing), static_cast<const W*>(row_gradients), row_gradient_stride, divisor,
         static_cast<W*>(losses), static_cast<W*>(maxima), static_cast<W*>(log_sums), static_cast<T*>(gradient), 0},
        on);
    if (status != DCFAST_OK || sum == nullptr) return status;
    sum_up(sum);
    return launch_status();
  });
}

int weighted_cross_entropy_backward(int dtype, const void* logits, int64_t row_stride, const int64_t* target,
                                    const void* sizes, const void* weights, int64_t n, int64_t k, int64_t ignore_index,
                                    double label_smoothing, const void* row_gradients, int64_t row_gradient_stride,
                                    const void* divisor, void* maxima, void* log_sums, void* gradient, void* stream) {
  if (k > INT_MAX) return DCFAST_OUT_OF_RANGE;
  return with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using W = typename Element<T>::Wide;
    return launch_rows<T>(true,
                          {static_cast<const T*>(logits), row_stride, target, static_cast<const W*>(sizes),
                           static_cast<const W*>(weights), n, int(k), ignore_index, W(label_smoothing),
                           static_cast<const W*>(row_gradients), row_gradient_stride, static_cast<const W*>(divisor),
                           nullptr, static_cast<W*>(maxima), static_cast<W*>(log_sums), static_cast<T*>(gradient), 0},
                          static_cast<cudaStream_t>(stream));
  });
}

}  // namespace cuda
}  // namespace dcfast
