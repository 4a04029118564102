// The gradient of weight and bias of sobel_conv2d. See sobel_conv2d.cuh for what it shares with the convolution.
//
// The product (filters x pixels) (pixels x taps): a block keeps the sums of its range of tiles in registers (8 warps of
// 48 filters x 32 taps of both planes: all of AlexNet's) and writes them once, as a row of `partial`; the rows are
// added in their order. The gradient is read once, 128 pixels at a time through shared memory; float32 is scaled and
// split per filter and 128 pixels, and every 16 products are added to the sums by an ordinary multiply-add.
#include "sobel_conv2d.cuh"
#include "sobel_conv2d_plain.cuh"

namespace dcfast {
namespace cuda {
namespace {

constexpr int kGradientWarps = 8;
constexpr int kTaps = 4 * kPixelTiles;       // of a warp: both planes of 8 taps are two tiles of columns
constexpr int kChunk = 2 * kPixels;          // pixels of the gradient in shared memory
constexpr int kChunkPitch = kChunk / 2 + 4;  // words: an odd number of 16 bytes

struct Gradient {
  Sizes s;
  Tiling t;
  bool bytes;
  const void* image;
  const double* fold;
  const void* grad;
  float* partial;  // (blocks, filters, 2 taps + 1), the last column for the bias
};

// The warps' products (48 filters x 32 taps each), in order of filters, then taps; 8 to a block.
__host__ __device__ __forceinline__ int tap_tiles(const Tiling& t) { return (t.taps + kTaps - 1) / kTaps; }
__host__ __device__ __forceinline__ int products(const Sizes& s, const Tiling& t) {
  return int((s.filters + kFilters - 1) / kFilters) * tap_tiles(t);
}
// Rows of the gradient that the block `y` needs: whole groups of 48 filters.
__host__ __device__ __forceinline__ int first_group(const Tiling& t, int y) {
  return y * kGradientWarps / tap_tiles(t);
}
__host__ __device__ __forceinline__ int group_count(const Sizes& s, const Tiling& t, int y) {
  const int all = products(s, t), end = (y + 1) * kGradientWarps;
  return ((end < all ? end : all) - 1) / tap_tiles(t) - first_group(t, y) + 1;
}

template <class M>
__global__ void __launch_bounds__(kGradientWarps* kWarp, 1) sobel_conv2d_gradient(const Gradient a) {
  constexpr int kPieces = M::kPieces;
  typedef typename M::T T;
  const Sizes& s = a.s;
  const Tiling& t = a.t;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, width = int(s.kernel_w);
  const int group0 = first_group(t, blockIdx.y), rows = group_count(s, t, blockIdx.y) * kFilters;
  const int product = blockIdx.y * kGradientWarps + warp, tap0 = product % tap_tiles(t) * kTaps;
  const int row0 = (product / tap_tiles(t) - group0) * kFilters;  // of this warp's filters among the block's
  const bool active = product < products(s, t);
  const int chunks = (t.rows * t.columns + kChunk - 1) / kChunk;
  __shared__ uint32_t largest;
  uint32_t* grads = reinterpret_cast<uint32_t*>(dynamic_shared());                    // (piece, row, kChunkPitch)
  float* bias_sums = reinterpret_cast<float*>(grads + kPieces * rows * kChunkPitch);  // (row, lane)
  float* inverse = bias_sums + rows * kWarp;
  int* bases = reinterpret_cast<int*>(inverse + rows);
  Words<kPieces>* planes = reinterpret_cast<Words<kPieces>*>(bases + chunks * kChunk);

  fill_bases(s, t, chunks * kChunk, bases);
  for (int i = threadIdx.x; i < rows * kWarp; i += blockDim.x) bias_sums[i] = 0.0f;
  int offset[kPixelTiles / 2];
  float sum[kFilterTiles][kPixelTiles][4];
#pragma unroll
  for (int g = 0; g < kPixelTiles / 2; ++g) {
    const int tap = tap0 + 8 * g + lane / 4;  // what rounds the taps up is computed, but not written
    offset[g] = tap < t.taps ? tap / width * t.pitch + tap % width : 0;
  }
#pragma unroll
  for (int n = 0; n < kPixelTiles; ++n)
#pragma unroll
    for (int m = 0; m < kFilterTiles; ++m) sum[m][n][0] = sum[m][n][1] = sum[m][n][2] = sum[m][n][3] = 0.0f;
  const int64_t area = s.out_h * s.out_w;

  for (int64_t tile = blockIdx.x; tile < t.tiles; tile += gridDim.x) {
    __syncthreads();
    const Place place = place_of(tile, s, t);
    const float unscale = write_planes<M>(s, t, a.image, a.bytes, a.fold, place, &largest, planes);
    const int pixels = min(t.rows, int(s.out_h) - place.row) * t.columns;  // the last band may be lower
    for (int chunk = 0; chunk < pixels; chunk += kChunk) {
      // Two pairs of neighbouring pixels per lane.
      int64_t from[4];
      bool there[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int p = chunk + e / 2 * kPixels + 2 * lane + e % 2;
        const int y = place.row + p / t.columns, x = place.column + p % t.columns;
        there[e] = p < pixels && x < int(s.out_w);
        from[e] = there[e] ? place.image * s.filters * area + y * s.out_w + x : 0;
      }
      __syncthreads();  // the last chunk was read
#pragma unroll 3
      for (int row = warp; row < rows; row += kGradientWarps) {
        const int filter = group0 * kFilters + row;
        const T* grad = static_cast<const T*>(a.grad) + (filter < int(s.filters) ? filter * area : 0);
        float v[4];
        uint32_t most = 0;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float g = widen(grad[from[e]]);
          v[e] = there[e] && filter < int(s.filters) ? g : 0.0f;
          most = max(most, magnitude_of(v[e]));
        }
        float scale = 1.0f;
        if (M::kScaled) {
          scale = scale_of(__reduce_max_sync(kAllLanes, most));
          if (lane == 0) inverse[row] = inverse_of(scale);
        }
        bias_sums[row * kWarp + lane] += (v[0] + v[1]) + (v[2] + v[3]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const Words<kPieces> w = M::pack(v[2 * e] * scale, v[2 * e + 1] * scale);
#pragma unroll
          for (int i = 0; i < kPieces; ++i) {
            grads[(i * rows + row) * kChunkPitch + e * kPixels / 2 + lane] = w.piece[i];
          }
        }
      }
      __syncthreads();
      for (int step = 0; active && step < kChunk / 16; ++step) {
        uint32_t filters[kFilterTiles][kPieces][4];
#pragma unroll
        for (int m = 0; m < kFilterTiles; ++m)
#pragma unroll
          for (int i = 0; i < kPieces; ++i)
            ldmatrix_x4(filters[m][i],
                        grads + (i * rows + row0 + 16 * m + lane % 16) * kChunkPitch + lane / 16 * 4 + 8 * step);
        const int2 near = *reinterpret_cast<const int2*>(bases + chunk + 16 * step + lane % 4 * 2);
        const int2 far = *reinterpret_cast<const int2*>(bases + chunk + 16 * step + lane % 4 * 2 + 8);
#pragma unroll
        for (int g = 0; g < kPixelTiles / 2; ++g) {
          const Words<kPieces> w[4] = {planes[near.x + offset[g]], planes[near.y + offset[g]],
                                       planes[far.x + offset[g]], planes[far.y + offset[g]]};
#pragma unroll
          for (int plane = 0; plane < 2; ++plane) {
            // Sobel-x lies in the low halves of the words, Sobel-y in the high ones.
            const unsigned halves = plane == 0 ? 0x5410 : 0x7632;
            uint32_t columns[kPieces][2];
#pragma unroll
            for (int i = 0; i < kPieces; ++i) {
              columns[i][0] = __byte_perm(w[0].piece[i], w[1].piece[i], halves);
              columns[i][1] = __byte_perm(w[2].piece[i], w[3].piece[i], halves);
            }
#pragma unroll
            for (int m = 0; m < kFilterTiles; ++m) {
              float (&total)[4] = sum[m][2 * g + plane];
              if (!M::kScaled) {
                M::multiply(total, filters[m], columns);
              } else {
                float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                M::multiply(part, filters[m], columns);
                const float* by = inverse + row0 + 16 * m + lane / 4;
#pragma unroll
                for (int i = 0; i < 4; ++i) total[i] = fmaf(part[i] * unscale, by[i / 2 * 8], total[i]);
              }
            }
          }
        }
      }
    }
  }
  __syncthreads();  // all of bias_sums is written
  const int64_t columns = 2 * int64_t(t.taps) + 1;
  float* partial = a.partial + int64_t(blockIdx.x) * s.filters * columns;
#pragma unroll
  for (int m = 0; m < kFilterTiles; ++m)
#pragma unroll
    for (int n = 0; n < kPixelTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t filter = group0 * kFilters + row0 + 16 * m + i / 2 * 8 + lane / 4;
        const int tap = tap0 + n / 2 * 8 + lane % 4 * 2 + i % 2;
        if (active && filter < s.filters && tap < t.taps)
          partial[filter * columns + n % 2 * t.taps + tap] = sum[m][n][i];
      }
  // Blocks that share filters write the same.
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    const int filter = group0 * kFilters + row;
    if (filter >= int(s.filters)) continue;
    float total = 0.0f;
    for (int i = 0; i < kWarp; ++i) total += bias_sums[row * kWarp + i];
    partial[filter * columns + columns - 1] = total;
  }
}

template <class M>
bool plan_gradient(const Sizes& s, Tiling* t) {
  if (!small(s)) return false;
  const int64_t all = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - 1024;
  t->taps = int(s.kernel_h * s.kernel_w);
  int groups = 0;
  for (int y = 0; y * kGradientWarps < products(s, *t); ++y) groups = max(groups, group_count(s, *t, y));
  const int64_t fixed = int64_t(groups) * kFilters * (4 * M::kPieces * kChunkPitch + 4 * kWarp + 4);
  if (!fit(s, M::kPieces, all - fixed, t)) return false;
  const int64_t pixels = ceil_div(t->rows * t->columns, kChunk) * kChunk;
  t->shared_bytes = size_t(fixed + 4 * pixels + int64_t(t->patch_rows) * t->pitch * 4 * M::kPieces);
  return true;
}

// A thread per range of pixels, tap (or bias) and 8 filters.
__global__ void __launch_bounds__(kPlainThreads, 4) sobel_conv2d_plain_gradient(const Plain a) {
  const Sizes& s = a.s;
  const int64_t area = s.out_h * s.out_w, taps = s.kernel_h * s.kernel_w, pixels = s.images * area;
  const int64_t groups = (s.filters + kPlainFilters - 1) / kPlainFilters, ranges = (pixels + a.range - 1) / a.range;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < ranges * groups * (taps + 1); i += step) {
    const int64_t tap = i % (taps + 1), first = i / (taps + 1) % groups * kPlainFilters, r = i / (taps + 1) / groups;
    double by_x[kPlainFilters] = {}, by_y[kPlainFilters] = {};
    for (int64_t pixel = r * a.range; pixel < pixels && pixel < (r + 1) * a.range; ++pixel) {
      const int64_t n = pixel / area, at = pixel % area;
      const int64_t y = at / s.out_w * s.stride_h - s.padding_h, x = at % s.out_w * s.stride_w - s.padding_w;
      // The gradient of the bias is that of a tap that always sees 1.
      double2 sobel = {1.0, 0.0};
      if (tap < taps) sobel = sobel_at(a, n, y + tap / s.kernel_w, x + tap % s.kernel_w);
#pragma unroll
      for (int f = 0; f < kPlainFilters; ++f) {
        const int64_t filter = first + f < s.filters ? first + f : first;
        const double grad = element(a.grad, a.dtype, (n * s.filters + filter) * area + at);
        by_x[f] = fma(grad, sobel.x, by_x[f]);
        by_y[f] = fma(grad, sobel.y, by_y[f]);
      }
    }
#pragma unroll
    for (int f = 0; f < kPlainFilters; ++f) {
      if (first + f >= s.filters) break;
      const int64_t row = (r * s.filters + first + f) * (2 * taps + 1);
      put(a.out, a.sum_dtype, row + (tap < taps ? tap : 2 * taps), by_x[f]);
      if (tap < taps) put(a.out, a.sum_dtype, row + taps + tap, by_y[f]);
    }
  }
}

}  // namespace

int sobel_conv2d_backward_weight(int dtype, int image_dtype, bool allow_tf32, const Sizes* sizes, const void* image,
                                 const double* fold, const void* grad, int64_t max_rows, void* partial, int64_t* rows,
                                 void* stream) {
  if (!known(dtype, image_dtype)) return DCFAST_INVALID_DTYPE;
  const Sizes& s = *sizes;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const bool served = with_arithmetic(dtype, allow_tf32, [&](auto arithmetic) {
    typedef decltype(arithmetic) M;
    Tiling t;
    if (!plan_gradient<M>(s, &t)) return false;
    const Gradient a = {s, t, image_dtype == DCFAST_UINT8, image, fold, grad, static_cast<float*>(partial)};
    *rows = min(t.tiles, max_rows);
    const dim3 blocks(unsigned(*rows), unsigned(ceil_div(products(s, t), kGradientWarps)));
    launch(sobel_conv2d_gradient<M>, blocks, kGradientWarps * kWarp, t.shared_bytes, on, a);
    return true;
  });
  if (!served) {
    const int64_t pixels = s.images * s.out_h * s.out_w, range = ceil_div(pixels, max_rows);
    const int64_t columns = ceil_div(s.filters, kPlainFilters) * (s.kernel_h * s.kernel_w + 1);
    const Plain a = {s,       dtype, image_dtype, sum_dtype(dtype), image, fold, nullptr, grad, nullptr,
                     nullptr, false, range,       partial};
    *rows = ceil_div(pixels, range);
    launch_plain(sobel_conv2d_plain_gradient, a, *rows * columns, on);
  }
  return launch_status();
}

}  // namespace cuda
}  // namespace dcfast
