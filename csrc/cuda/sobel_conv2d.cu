// The convolution of Sobel gradients. See sobel_conv2d.cuh for the plan.
#include "sobel_conv2d.cuh"
#include "sobel_conv2d_plain.cuh"

namespace dcfast {
namespace cuda {
namespace {

struct Forward {
  Sizes s;
  Tiling t;
  bool bytes;  // whether the image holds bytes, or the weights' dtype
  const void* image;
  const double* fold;
  const void* weight;
  const float* scale;  // null for 1
  const float* bias;   // null for 0
  bool relu;
  void* output;
};

// Tiles of 16 filters of a warp, warps of a block and blocks of a multiprocessor: what the registers hold. With one
// piece they are 168 for each of 384 threads; with two, products in flight take more, and the weights leave no room for
// a second block.
template <class M>
constexpr int kForwardTiles = M::kPieces == 1 ? 3 : 2;
template <class M>
constexpr int kForwardWarps = M::kPieces == 1 ? 6 : 8;
template <class M>
constexpr int kForwardBlocks = M::kPieces == 1 ? 2 : 1;

// Words from one filter's weights to the next: an odd number of 16 bytes, so that 8 rows fall into different banks.
__host__ __device__ constexpr int weight_pitch(int steps) { return 8 * steps + 4; }

template <class M>
__global__ void __launch_bounds__(kForwardWarps<M>* kWarp, kForwardBlocks<M>) sobel_conv2d_forward(const Forward a) {
  constexpr int kPieces = M::kPieces, kWarps = kForwardWarps<M>, kTiles = kForwardTiles<M>, kRows = 16 * kTiles;
  typedef typename M::T T;
  const Sizes& s = a.s;
  const Tiling& t = a.t;
  const int pitch = weight_pitch(t.steps), lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int pixel_tiles = (t.rows * t.columns + kPixels - 1) / kPixels, filter_tiles = t.block_filters / kRows;
  __shared__ uint32_t largest;
  uint32_t* weights = reinterpret_cast<uint32_t*>(dynamic_shared());  // (piece, filter, pitch)
  float* stage = reinterpret_cast<float*>(weights + kPieces * t.block_filters * pitch) + warp * 8 * kStagePitch;
  int2* offsets = reinterpret_cast<int2*>(stage + (kWarps - warp) * 8 * kStagePitch);  // (step, lane % 4)
  float* multiplier = reinterpret_cast<float*>(offsets + 4 * t.steps);
  float* addend = multiplier + t.block_filters;
  int* bases = reinterpret_cast<int*>(addend + t.block_filters);
  Words<kPieces>* planes = reinterpret_cast<Words<kPieces>*>(bases + pixel_tiles * kPixels);

  const int first = int(blockIdx.x % t.filter_blocks) * t.block_filters;
  for (int f = warp; f < t.block_filters; f += kWarps) {
    const int filter = first + f;
    const bool there = filter < int(s.filters);
    const T* from = static_cast<const T*>(a.weight) + int64_t(filter) * 2 * t.taps;
    float scale = 1.0f;
    if (M::kScaled) {
      uint32_t most = 0;
      for (int k = lane; there && k < 2 * t.taps; k += kWarp) most = max(most, magnitude_of(widen(from[k])));
      scale = scale_of(__reduce_max_sync(kAllLanes, most));
    }
    for (int k = lane; k < 8 * t.steps; k += kWarp) {
      const bool tap = there && k < t.taps;
      const Words<kPieces> w =
          M::pack(tap ? widen(from[k]) * scale : 0.0f, tap ? widen(from[t.taps + k]) * scale : 0.0f);
#pragma unroll
      for (int i = 0; i < kPieces; ++i) weights[(i * t.block_filters + f) * pitch + k] = w.piece[i];
    }
    if (lane == 0) {
      multiplier[f] = inverse_of(scale) * (there && a.scale != nullptr ? a.scale[filter] : 1.0f);
      addend[f] = there && a.bias != nullptr ? a.bias[filter] : 0.0f;
    }
  }
  // Taps beyond the last have weight 0 and look at the first.
  for (int i = threadIdx.x; i < 4 * t.steps; i += blockDim.x) {
    const int tap = i / 4 * 8 + i % 4, width = int(s.kernel_w);
    offsets[i].x = tap < t.taps ? tap / width * t.pitch + tap % width : 0;
    offsets[i].y = tap + 4 < t.taps ? (tap + 4) / width * t.pitch + (tap + 4) % width : 0;
  }
  fill_bases(s, t, pixel_tiles * kPixels, bases);
  const int64_t area = s.out_h * s.out_w;
  const int stride = int(gridDim.x) / t.filter_blocks;
  // The row of the weights that this lane names to ldmatrix: of matrices (rows 0-7, 8-15) x (k 0-7, 8-15).
  const uint32_t* weight_row = weights + (lane % 16) * pitch + lane / 16 * 4;

  for (int64_t tile = blockIdx.x / t.filter_blocks; tile < t.tiles; tile += stride) {
    __syncthreads();  // the tables are written, the last tile's planes were read
    const Place place = place_of(tile, s, t);
    const float unscale = write_planes<M>(s, t, a.image, a.bytes, a.fold, place, &largest, planes);
    // The last band of an image may be lower than the others.
    const int pixels = min(t.rows, int(s.out_h) - place.row) * t.columns;
    for (int job = warp; job < (pixels + kPixels - 1) / kPixels * filter_tiles; job += kWarps) {
      const int pixel = job / filter_tiles * kPixels, f0 = job % filter_tiles * kRows;
      int base[kPixelTiles];
      float sum[kTiles][kPixelTiles][4];
#pragma unroll
      for (int n = 0; n < kPixelTiles; ++n) {
        base[n] = bases[pixel + 8 * n + lane / 4];
#pragma unroll
        for (int m = 0; m < kTiles; ++m) sum[m][n][0] = sum[m][n][1] = sum[m][n][2] = sum[m][n][3] = 0.0f;
      }
#pragma unroll 1
      for (int step = 0; step < t.steps; ++step) {
        const int2 offset = offsets[4 * step + lane % 4];
        uint32_t rows[kTiles][kPieces][4];
#pragma unroll
        for (int m = 0; m < kTiles; ++m)
#pragma unroll
          for (int i = 0; i < kPieces; ++i)
            ldmatrix_x4(rows[m][i], weight_row + (i * t.block_filters + f0 + 16 * m) * pitch + 8 * step);
#pragma unroll
        for (int n = 0; n < kPixelTiles; ++n) {
          const Words<kPieces> near = planes[base[n] + offset.x], far = planes[base[n] + offset.y];
          uint32_t columns[kPieces][2];
#pragma unroll
          for (int i = 0; i < kPieces; ++i) {
            columns[i][0] = near.piece[i];
            columns[i][1] = far.piece[i];
          }
#pragma unroll
          for (int m = 0; m < kTiles; ++m) {
            if (kPieces == 1) {
              M::multiply(sum[m][n], rows[m], columns);
            } else {
              float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
              M::multiply(part, rows[m], columns);
#pragma unroll
              for (int i = 0; i < 4; ++i) sum[m][n][i] += part[i];
            }
          }
        }
      }
      // Two pixels per lane, as the stage is read.
      int64_t to[2];
      bool there[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int p = pixel + kWarp * e + lane, y = place.row + p / t.columns, x = place.column + p % t.columns;
        there[e] = p < pixels && x < int(s.out_w);
        to[e] = (place.image * s.filters + first + f0) * area + y * s.out_w + x;
      }
      T* output = static_cast<T*>(a.output);
#pragma unroll
      for (int m = 0; m < kTiles; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int f = 16 * m + 8 * h;
          const float by = multiplier[f0 + f + lane / 4], plus = addend[f0 + f + lane / 4];
          __syncwarp();
#pragma unroll
          for (int n = 0; n < kPixelTiles; ++n) {
            float v[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              v[e] = fmaf(sum[m][n][2 * h + e] * unscale, by, plus);
              if (a.relu && v[e] < 0.0f) v[e] = 0.0f;  // NaN stays
            }
            *reinterpret_cast<float2*>(stage + lane / 4 * kStagePitch + 8 * n + lane % 4 * 2) = make_float2(v[0], v[1]);
          }
          __syncwarp();
#pragma unroll
          for (int r = 0; r < 8; ++r) {
            if (first + f0 + f + r >= int(s.filters)) break;
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              if (there[e]) output[to[e] + (f + r) * area] = narrow<T>(stage[r * kStagePitch + kWarp * e + lane]);
            }
          }
        }
    }
  }
}

// Bytes of a block's shared memory but for the patch and the table of pixels.
template <class M>
int64_t forward_bytes(int64_t filters, int64_t steps) {
  return filters * (4 * M::kPieces * weight_pitch(int(steps)) + 8) + kForwardWarps<M> * 32 * kStagePitch + 32 * steps;
}

// Half of a multiprocessor's shared memory if that leaves tiles whose halo is at most as large as themselves; else all.
template <class M>
bool plan_forward(const Sizes& s, Tiling* t) {
  constexpr int kRows = 16 * kForwardTiles<M>;
  const int64_t all = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - 1024, half = all / 2 - 1024;
  const int64_t steps = ceil_div(s.kernel_h * s.kernel_w, 8), groups = ceil_div(s.filters, kRows);
  if (!small(s) || steps * 32 > all) return false;
  for (int64_t blocks = 1;; blocks *= 2) {
    const int64_t filters = ceil_div(groups, blocks) * kRows, fixed = forward_bytes<M>(filters, steps);
    for (const int64_t budget : {kForwardBlocks<M> == 2 ? half : all, all}) {
      if (!fit(s, M::kPieces, budget - fixed, t)) continue;
      if (budget == half && 2 * t->rows * s.stride_h < t->patch_rows) continue;
      t->block_filters = int(filters);
      t->filter_blocks = int(ceil_div(s.filters, filters));
      const int64_t pixels = ceil_div(t->rows * t->columns, kPixels) * kPixels;
      t->shared_bytes = size_t(fixed + 4 * pixels + int64_t(t->patch_rows) * t->pitch * 4 * M::kPieces);
      return true;
    }
    if (filters == kRows) return false;
  }
}

// A thread per pixel and 8 filters.
__global__ void __launch_bounds__(kPlainThreads, 4) sobel_conv2d_plain_forward(const Plain a) {
  const Sizes& s = a.s;
  const int64_t area = s.out_h * s.out_w, taps = s.kernel_h * s.kernel_w, pixels = s.images * area;
  const int64_t groups = (s.filters + kPlainFilters - 1) / kPlainFilters;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < pixels * groups; i += step) {
    const int64_t pixel = i % pixels, first = i / pixels * kPlainFilters, n = pixel / area, at = pixel % area;
    const int64_t y = at / s.out_w * s.stride_h - s.padding_h, x = at % s.out_w * s.stride_w - s.padding_w;
    double sum[kPlainFilters] = {};
    for (int64_t tap = 0; tap < taps; ++tap) {
      const double2 sobel = sobel_at(a, n, y + tap / s.kernel_w, x + tap % s.kernel_w);
#pragma unroll
      for (int f = 0; f < kPlainFilters; ++f) {
        const int64_t filter = first + f < s.filters ? first + f : first;
        sum[f] = fma(element(a.weight, a.dtype, 2 * filter * taps + tap), sobel.x, sum[f]);
        sum[f] = fma(element(a.weight, a.dtype, (2 * filter + 1) * taps + tap), sobel.y, sum[f]);
      }
    }
#pragma unroll
    for (int f = 0; f < kPlainFilters; ++f) {
      if (first + f >= s.filters) break;
      double v = sum[f];
      if (a.scale != nullptr) v *= element(a.scale, a.sum_dtype, first + f);
      if (a.bias != nullptr) v += element(a.bias, a.sum_dtype, first + f);
      put(a.out, a.dtype, (n * s.filters + first + f) * area + at, a.relu && v < 0.0 ? 0.0 : v);
    }
  }
}

}  // namespace

int sobel_conv2d(int dtype, int image_dtype, bool allow_tf32, const Sizes* sizes, const void* image, const double* fold,
                 const void* weight, const void* scale, const void* bias, bool relu, void* output, void* stream) {
  if (!known(dtype, image_dtype)) return DCFAST_INVALID_DTYPE;
  const Sizes& s = *sizes;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const bool served = with_arithmetic(dtype, allow_tf32, [&](auto arithmetic) {
    typedef decltype(arithmetic) M;
    constexpr int kWarps = kForwardWarps<M>;
    Tiling t;
    if (!plan_forward<M>(s, &t)) return false;
    const Forward a = {s,    t,      image_dtype == DCFAST_UINT8,      image,
                       fold, weight, static_cast<const float*>(scale), static_cast<const float*>(bias),
                       relu, output};
    const int64_t resident = int64_t(attribute(cudaDevAttrMultiProcessorCount)) * kForwardBlocks<M>;
    const int64_t shares = max(int64_t(1), min(t.tiles, resident / t.filter_blocks));
    launch(sobel_conv2d_forward<M>, unsigned(shares * t.filter_blocks), kWarps * kWarp, t.shared_bytes, on, a);
    return true;
  });
  if (!served) {
    const Plain a = {s,    dtype, image_dtype, sum_dtype(dtype), image, fold, weight, nullptr, scale, bias,
                     relu, 0,     output};
    launch_plain(sobel_conv2d_plain_forward, a, s.images * s.out_h * s.out_w * ceil_div(s.filters, kPlainFilters), on);
  }
  return launch_status();
}

}  // namespace cuda
}  // namespace dcfast
