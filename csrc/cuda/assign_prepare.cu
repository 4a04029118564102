// The operands of the certified pass: units of a problem, float16 rows and centroids, and what the bound needs of them.
// All of it is bound by memory: x is read once, its float16 form written once.
#include "assign.cuh"

namespace dcfast {
namespace cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kCentroidsPerBlock = 64;
constexpr unsigned kAll = 0xFFFFFFFFu;
constexpr double kHalfLimit = 32768.0;  // the largest row element that float16 is asked to hold
constexpr int kExponent = 8;            // the largest centroid element is below 2^8

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}
__device__ __forceinline__ double warp_max(double value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = fmax(value, __shfl_xor_sync(kAll, value, step));
  return value;
}

// Any hash will do: one that fails to tell two centroids apart costs a duplicate that stays.
__device__ __forceinline__ unsigned long long mixed(unsigned long long bits, int64_t column) {
  bits = (bits ^ (bits >> 29)) * (static_cast<unsigned long long>(2 * column + 1) * 0x9E3779B97F4A7C15ull);
  return bits ^ (bits >> 32);
}

// Of 64 centroids: which are finite, their places in the hash table, their share of the sums, their columns.
template <class T>
__global__ void __launch_bounds__(kThreads, 3) gather(const AssignData<T> data, const AssignCentroids<T> made) {
  __shared__ bool finite[kCentroidsPerBlock];
  const int64_t blocks = (data.k + kCentroidsPerBlock - 1) / kCentroidsPerBlock;
  const int64_t p = blockIdx.x / blocks, first = blockIdx.x % blocks * kCentroidsPerBlock;
  const int count = static_cast<int>(data.k - first < kCentroidsPerBlock ? data.k - first : kCentroidsPerBlock);
  const T* const c = data.centroids + p * data.c_problem + first * data.c_row;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int j = warp; j < count; j += kWarps) {
    unsigned long long hash = 0;
    int infinite = 0;
    for (int64_t i = lane; i < data.d; i += 32) {
      const double v = double(widen(c[j * data.c_row + i * data.c_column])) + 0.0;  // one zero, not two
      infinite += !(fabs(v) < INFINITY);
      hash += mixed(static_cast<unsigned long long>(__double_as_longlong(v)), i);
    }
    hash = warp_sum(hash) | 1;
    infinite = warp_sum(infinite);
    if (lane == 0) {
      finite[j] = infinite == 0;
      int32_t slot = -1;
      if (infinite == 0) {
        // There are twice as many slots as centroids: an empty one or this hash is found.
        slot = static_cast<int32_t>((hash >> 20) & static_cast<unsigned long long>(made.slots - 1));
        for (;;) {
          const unsigned long long there = atomicCAS(&made.keys[p * made.slots + slot], 0ull, hash);
          if (there == 0 || there == hash) break;
          slot = static_cast<int32_t>((slot + 1) & (made.slots - 1));
        }
        atomicMax(&made.lowest[p * made.slots + slot], static_cast<int32_t>(data.k - first - j));
        atomicAdd(&made.finite[p], 1);
      }
      made.slot[p * data.k + first + j] = slot;
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < data.d; i += kThreads) {
    double sum = 0.0;
    for (int j = 0; j < count; ++j) {
      const T v = c[j * data.c_row + i * data.c_column];
      if (finite[j]) sum += double(widen(v));
      made.transposed[(p * data.d + i) * data.k + first + j] = v;
    }
    atomicAdd(&made.sums[p * data.d + i], sum);
  }
}

// m, any vector will do: the mean of the finite centroids, unless it is out of range.
template <class T>
__device__ __forceinline__ double shift_of(const AssignCentroids<T>& made, int64_t p, int64_t d, int64_t column) {
  const int32_t count = made.finite[p];
  const double mean = made.sums[p * d + column] / double(count > 0 ? count : 1);
  return fabs(mean) <= 1e300 ? mean : 0.0;
}

// Which centroids live, and the largest |c - m| among them.
template <class T>
__global__ void __launch_bounds__(kThreads, 3) measure(const AssignData<T> data, const AssignCentroids<T> made) {
  const int64_t blocks = (data.k + kWarps - 1) / kWarps;
  const int64_t p = blockIdx.x / blocks, j = blockIdx.x % blocks * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (blockIdx.x % blocks == 0) {
    for (int64_t i = threadIdx.x; i < data.d; i += kThreads) made.shift[p * data.d + i] = shift_of(made, p, data.d, i);
  }
  if (j >= data.k) return;
  const T* const c = data.centroids + p * data.c_problem;
  const int32_t slot = made.slot[p * data.k + j];
  bool live = slot >= 0;
  if (live) {
    const int64_t first = data.k - made.lowest[p * made.slots + slot];
    int differs = first == j;
    for (int64_t i = lane; i < data.d && first != j; i += 32) {
      differs |= widen(c[j * data.c_row + i * data.c_column]) != widen(c[first * data.c_row + i * data.c_column]);
    }
    live = __any_sync(kAll, differs);
  }
  double largest = 0.0;
  for (int64_t i = lane; i < data.d && live; i += 32) {
    largest = fmax(largest, fabs(double(widen(c[j * data.c_row + i * data.c_column])) - shift_of(made, p, data.d, i)));
  }
  largest = warp_max(largest);
  if (lane == 0) {
    made.live[p * data.k + j] = live;
    // Of numbers that are not negative the larger one has the larger bits.
    atomicMax(&made.largest[p], static_cast<unsigned long long>(__double_as_longlong(largest)));
  }
}

// float64 -> float32, not below v; 0 stays 0.
__device__ __forceinline__ float up(double v) { return v == 0.0 ? 0.0f : float(v * (1.0 + 0x1p-22) + 0x1p-140); }

__device__ __forceinline__ double power_of_two(int n) { return __longlong_as_double((1023ll + n) << 52); }

// The power of two that brings the largest centroid element below 2^8, and what D64 may lose to underflow in its units.
__device__ __forceinline__ double scale_of(unsigned long long largest_bits, int64_t d, double* slack) {
  const double largest = __longlong_as_double(static_cast<long long>(largest_bits));
  const bool finite = largest < INFINITY;
  int exponent = 0;  // largest in [2^(exponent - 1), 2^exponent)
  if (largest > 0.0 && finite) {
    const int biased = static_cast<int>(largest_bits >> 52);
    exponent = biased == 0 ? -1000 : biased - 1022;
    if (exponent < -1000) exponent = -1000;
  }
  const double scale = power_of_two(kExponent - exponent);
  // Rows reach 2^8 times the centroids, so below 2^430 no square overflows, and above 2^-430 what D64 loses is bounded.
  const bool in_range = finite && exponent <= 430 && exponent >= -430;
  *slack = in_range ? double(d) * 0x1p-1073 * scale * scale : INFINITY;
  return scale;
}

// What rounding left of a vector, summed by the lanes of a warp.
struct Norms {
  double square = 0.0, half_square = 0.0, lost = 0.0;
  int infinite = 0, too_large = 0;
};

// k-blocks of a vector whose loads are under way together: what one row of 256 columns has.
constexpr int kBlocksInFlight = 4;

// The operand of one vector, row `at` of `rows_padded`, k-block by k-block. v is valid memory even where the vector is
// not kept: loads that depend on nothing but their address are issued one after the other.
template <class T>
__device__ __forceinline__ Norms round_vector(const T* v, int64_t stride, int64_t d, const double* shift, double scale,
                                              bool keep, __half* halves, int64_t at, int64_t rows_padded, int lane) {
  constexpr int kParts = 2 * kBlocksInFlight;  // of 32 elements
  Norms norms;
  for (int64_t first = 0; first < d; first += kBlocksInFlight * kBlockColumns) {
    T values[kParts];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int64_t i = first + 32 * part + lane;
      values[part] = v[(i < d ? i : d - 1) * stride];
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int e = part % 2 * 32 + lane;
      const int64_t block = first + part / 2 * kBlockColumns, i = block + e;
      if (block >= d) break;
      const bool inside = i < d && keep;
      const double value = double(widen(values[part]));
      norms.infinite += inside && !(fabs(value) < INFINITY);
      double t = inside ? (value - shift[i < d ? i : d - 1]) * scale : 0.0;
      const bool fits = fabs(t) < kHalfLimit;
      norms.too_large += !fits;
      t = fits ? t : 0.0;
      const __half half = __double2half(t);
      const double w = double(__half2float(half)), rest = t - w;
      norms.square += t * t;
      norms.half_square += w * w;
      norms.lost += rest * rest;
      __half* const to = halves + (block / kBlockColumns * rows_padded + at) * kBlockColumns;
      to[((e / 8) ^ static_cast<int>(at & 7)) * 8 + e % 8] = half;
    }
  }
  norms.square = warp_sum(norms.square);
  norms.half_square = warp_sum(norms.half_square);
  norms.lost = warp_sum(norms.lost);
  norms.infinite = warp_sum(norms.infinite);
  norms.too_large = warp_sum(norms.too_large);
  return norms;
}

// Norms rounded up past the roundings of their sums of squares.
struct Bounds {
  double norm, half_norm, residual, grow;
  __device__ __forceinline__ Bounds(const Norms& sums, int64_t d) {
    constexpr double kRoot = 1.0 + 0x1p-50;
    grow = 1.0 + (double(d) + 8.0) * 0x1p-52;
    norm = sqrt(sums.square * grow) * kRoot;
    half_norm = sqrt(sums.half_square * grow) * kRoot;
    residual = sqrt(sums.lost * grow) * kRoot + norm * 0x1p-52;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    round_centroids(const AssignData<T> data, const AssignCentroids<T> made, double spread) {
  const int64_t blocks = made.k_padded / kWarps;
  const int64_t p = blockIdx.x / blocks, j = blockIdx.x % blocks * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  double slack;
  const double scale = scale_of(made.largest[p], data.d, &slack);
  if (j == 0 && lane == 0) {
    made.scale[p] = scale;
    made.slack[p] = slack;
  }
  const int64_t k_blocks = (data.d + kBlockColumns - 1) / kBlockColumns;
  const bool live = j < data.k && made.live[p * data.k + j];
  // The padding reads a centroid that is there, and keeps nothing of it.
  const int64_t from = j < data.k ? j : 0;
  const Norms sums = round_vector(data.centroids + p * data.c_problem + from * data.c_row, data.c_column, data.d,
                                  made.shift + p * data.d, scale, live,
                                  made.halves + p * k_blocks * made.k_padded * kBlockColumns, j, made.k_padded, lane);
  if (lane != 0) return;
  const Bounds bounds(sums, data.d);
  const int64_t at = p * made.k_padded + j;
  const float a = up(0.5 * sums.square * bounds.grow * kW + (double(data.d) + 2.0) * 0x1p-120);
  const double h = 0.5 * sums.square / (bounds.grow * bounds.grow), low = h - double(a);
  const double b = (bounds.norm * kE + bounds.residual + spread * bounds.half_norm) * (1.0 + 0x1p-15);
  made.bounds[at] = live ? float2{float(low - fabs(low) * 0x1p-23 - 0x1p-140), up(b)} : float2{kDead, 0.0f};
  made.error[at] = live ? a : 0.0f;
  made.norm[at] = live ? up(bounds.norm) : 0.0f;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    round_rows(const AssignData<T> data, const AssignCentroids<T> made, const AssignSlice slice, __half* halves,
               float* size, float* norm) {
  const int64_t blocks = slice.n_padded / kWarps;
  const int64_t k_blocks = (data.d + kBlockColumns - 1) / kBlockColumns;
  const int lane = threadIdx.x % 32;
  for (int64_t block = blockIdx.x; block < slice.problems * blocks; block += gridDim.x) {
    const int64_t p = block / blocks, row = block % blocks * kWarps + threadIdx.x / 32;
    const int64_t problem = slice.problem0 + p;
    const int64_t from = slice.row0 + (row < slice.n ? row : 0);
    const Norms sums = round_vector(data.x + problem * data.x_problem + from * data.x_row, data.x_column, data.d,
                                    made.shift + problem * data.d, made.scale[problem], row < slice.n,
                                    halves + p * k_blocks * slice.n_padded * kBlockColumns, row, slice.n_padded, lane);
    if (lane != 0) continue;
    const Bounds bounds(sums, data.d);
    const bool usable = sums.infinite == 0 && sums.too_large == 0;
    const int64_t at = p * slice.n_padded + row;
    size[at] = usable ? up(fmax(bounds.half_norm, bounds.residual / kE)) : 0.0f;
    // An infinite norm sends the row to the full recheck; NaN marks a row with no label.
    norm[at] = usable ? up(bounds.norm) : sums.infinite == 0 ? INFINITY : NAN;
  }
}

}  // namespace

template <class T>
int assign_prepare(const AssignData<T>& data, const AssignCentroids<T>& made, double spread, cudaStream_t stream) {
  cudaMemsetAsync(made.keys, 0, static_cast<size_t>(made.zeroed), stream);
  const int64_t gathers = data.problems * ((data.k + kCentroidsPerBlock - 1) / kCentroidsPerBlock);
  const int64_t measures = data.problems * ((data.k + kWarps - 1) / kWarps);
  launch(gather<T>, unsigned(gathers), kThreads, 0, stream, data, made);
  launch(measure<T>, unsigned(measures), kThreads, 0, stream, data, made);
  launch(round_centroids<T>, unsigned(data.problems * (made.k_padded / kWarps)), kThreads, 0, stream, data, made,
         spread);
  return launch_status();
}

template <class T>
int assign_rows(const AssignData<T>& data, const AssignCentroids<T>& made, const AssignSlice& slice, __half* halves,
                float* size, float* norm, cudaStream_t stream) {
  const int64_t blocks = slice.problems * (slice.n_padded / kWarps);
  launch(round_rows<T>, unsigned(blocks < (1 << 30) ? blocks : 1 << 30), kThreads, 0, stream, data, made, slice, halves,
         size, norm);
  return launch_status();
}

#define DCFAST_INSTANTIATE(T)                                                                                       \
  template int assign_prepare<T>(const AssignData<T>&, const AssignCentroids<T>&, double, cudaStream_t);            \
  template int assign_rows<T>(const AssignData<T>&, const AssignCentroids<T>&, const AssignSlice&, __half*, float*, \
                              float*, cudaStream_t);
DCFAST_INSTANTIATE(float)
DCFAST_INSTANTIATE(double)
DCFAST_INSTANTIATE(__half)
DCFAST_INSTANTIATE(__nv_bfloat16)
#undef DCFAST_INSTANTIATE

}  // namespace cuda
}  // namespace dcfast
