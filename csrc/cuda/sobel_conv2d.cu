// Grey image, Sobel and convolution in one kernel, and the gradient of the weights. The definition is in
// dcfast/ops/sobel_conv2d/__init__.py.
//
// The floor. AlexNet's first layer (batch 256, 224 x 224, 96 filters of 11 x 11, stride 4) reads 39 MB of bytes (77 of
// 2-byte, 154 of 4-byte elements) and writes 149 or 297 MB: at the 4.3 TB/s of an H200 39 us (bytes in, bfloat16 out),
// 47 us (bfloat16), 94 us (float32). Its 37 GFLOP are 38 us at that machine's best for dense float16 products;
// mma.sync reaches some two thirds of it, so that float16 is bound by products and memory alike, and float32, with
// three products in place of one, by products.
//
// The plan. Persistent blocks, each with the weights in shared memory for good. A block takes tiles of whole output
// rows: it computes the two Sobel planes that the tile looks at into shared memory, zero outside the image, then
// multiplies them as an implicit matrix (filters x taps) (taps x pixels), then goes on to the next tile. Two blocks per
// multiprocessor, where they fit, overlap one's loads with the other's products.
//
//  * Sobel: a warp holds a row of 32 columns of grey in its lanes and takes the neighbours by shuffles; 8 rows of a
//    strip, 30 loads per lane in flight. Images are read about once: the halo of a tile is in the L2 cache.
//  * A position is one 4-byte word, Sobel-x and Sobel-y side by side, and so is a weight: a pair of adjacent k of the
//    matrix unit's operand is a word for every stride and kernel width, loaded from where it lies. A row of words is as
//    long as the kernel is wide modulo 4, so that the taps of a warp's load keep to different banks where the kernel's
//    rows break.
//  * A warp holds 48 filters x 64 pixels of sums: per 16 k 28 wavefronts of shared memory for 24 products. For float32
//    it holds 32 x 64: 48 wavefronts for 48 products.
//  * Sums leave through shared memory, 8 filters x 64 pixels at a time, as runs of neighbouring pixels of one filter.
//    A channel of 55 x 55 outputs starts at any multiple of an element, so 16-byte stores would be misaligned; a warp
//    stores 32 adjacent elements.
//
// Arithmetic. float16 and bfloat16: Sobel is rounded to the dtype, as the three steps round it; sums are float32.
// float32: each operand is scaled by a power of two (Sobel values per tile, weights per filter, gradients per filter
// and 128 pixels) so that the largest is at least 2^14 and below 2^15 (images of bytes: below it, by a bound known
// beforehand), and split into two float16 pieces, v = hi + lo + r. With v in [2^e, 2^(e+1)) float16 rounds to multiples
// of 2^(e-10), so |lo| <= 2^(e-11), and lo to multiples of 2^(e-22) at most, so |r| <= 2^(e-23) <= 2^-23 |v|, or 2^-25
// where that is larger: 2^-39 of the largest. Of the product, lo hi' + hi lo' + hi hi' are taken; left out are lo lo',
// r v' and v r': at most (4 + 2 + 2) 2^-24 |v v'| and terms of 2^-34. The tensor cores cut off what their adders cannot
// hold, so each 16 products of each kind are summed there from zero, the small kinds first, and added to the sum by an
// ordinary float32 addition: per 16 products the sum is rounded once, where a sum in sequence rounds it 16 times. Where
// torch allows TF32, hi hi' alone is taken, whose operands have TF32's 11 bits.
// An infinite pixel may give NaN where the definition gives an infinity.
//
// float64, and kernels of which a warp's filters do not fit into shared memory (above some 27 x 27 for float32 and
// 31 x 31 for the others), are summed in float64 by a plain loop over taps.
#include "common.cuh"
#include "ptx.cuh"

namespace dcfast {
namespace cuda {
namespace {

typedef dcfast_sobel_conv2d_sizes Sizes;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kStrip = kWarp - 2;  // columns of Sobel values in a warp: its outer lanes only lend their grey
constexpr int kSegment = 8;        // rows of Sobel values that a warp computes at once
constexpr int kFilterTiles = 3;    // of 16 filters, in a warp of the backward pass
constexpr int kPixelTiles = 8;     // of 8 pixels
constexpr int kFilters = 16 * kFilterTiles, kPixels = 8 * kPixelTiles;
constexpr int kStagePitch = kPixels + 8;  // floats: 8 rows of 8-byte stores fall into different banks
constexpr int kMaxTilePixels = 4096;
constexpr int64_t kMaxBlocks = 1 << 30;

// ---- arithmetic: dtype, pieces of an operand, and the matrix unit's product -----------------------------------

template <int kPieces>
struct __align__(4 * kPieces) Words {
  uint32_t piece[kPieces];
};

__device__ __forceinline__ uint32_t word(__half low, __half high) {
  return uint32_t(__half_as_ushort(low)) | uint32_t(__half_as_ushort(high)) << 16;
}

struct Float16 {
  typedef __half T;
  static constexpr int kPieces = 1;
  static constexpr bool kScaled = false;
  static __device__ __forceinline__ Words<1> pack(float low, float high) {
    return {{word(__float2half_rn(low), __float2half_rn(high))}};
  }
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[1][4],
                                                  const uint32_t (&b)[1][2]) {
    mma_m16n8k16(sum, a[0], b[0]);
  }
};

struct Bfloat16 {
  typedef __nv_bfloat16 T;
  static constexpr int kPieces = 1;
  static constexpr bool kScaled = false;
  static __device__ __forceinline__ Words<1> pack(float low, float high) {
    return {{uint32_t(__bfloat16_as_ushort(__float2bfloat16_rn(low))) |
             uint32_t(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16}};
  }
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[1][4],
                                                  const uint32_t (&b)[1][2]) {
    mma_m16n8k16_bf16(sum, a[0], b[0]);
  }
};

struct Tf32 : Float16 {
  typedef float T;
  static constexpr bool kScaled = true;
};

struct Float32 {
  typedef float T;
  static constexpr int kPieces = 2;
  static constexpr bool kScaled = true;
  static __device__ __forceinline__ Words<2> pack(float low, float high) {
    const __half l = __float2half_rn(low), h = __float2half_rn(high);
    return {{word(l, h), word(rest(low, l), rest(high, h))}};
  }
  // What is left of an infinity is nothing, not NaN.
  static __device__ __forceinline__ __half rest(float value, __half first) {
    return __float2half_rn(isinf(value) ? 0.0f : value - __half2float(first));
  }
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[2][4],
                                                  const uint32_t (&b)[2][2]) {
    mma_m16n8k16(sum, a[1], b[0]);
    mma_m16n8k16(sum, a[0], b[1]);
    mma_m16n8k16(sum, a[0], b[0]);
  }
};

// A power of two that takes the magnitude of these bits into [2^14, 2^15), as far as its inverse is a normal number.
__device__ __forceinline__ float scale_of(uint32_t magnitude) {
  const int exponent = int(magnitude >> 23) - 127;
  const int by = magnitude == 0 ? 0 : max(-126, min(126, 14 - exponent));
  return __int_as_float((by + 127) << 23);
}
__device__ __forceinline__ float inverse_of(float power) { return __int_as_float((254 << 23) - __float_as_int(power)); }
// The bits of |x| order as |x| does; those of infinity and NaN count as 0.
__device__ __forceinline__ uint32_t magnitude_of(float x) {
  const uint32_t bits = __float_as_uint(x) & 0x7FFFFFFFu;
  return bits < 0x7F800000u ? bits : 0u;
}

template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// ---- tiles: what a block works on ----------------------------------------------------------------------------

struct Tiling {
  int rows, columns;                 // of the output, in a tile
  int bands, parts;                  // tiles of an image, down and across
  int patch_rows, patch_columns;     // Sobel values that a tile looks at
  int pitch;                         // words (of all pieces) from one row of them to the next
  int taps, steps;                   // of the kernel; of 8 taps each
  int block_filters, filter_blocks;  // filters of a block, whole warps' worth; blocks that share a tile
  int64_t tiles;
  size_t shared_bytes;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t padded(int64_t bytes) { return ceil_div(bytes, 16) * 16; }

// The largest tiles, balanced, whose patch and table of pixels fit into `bytes`, or false.
bool fit(const Sizes& s, int pieces, int64_t bytes, Tiling* t) {
  for (int64_t parts = 1;; parts *= 2) {
    const int64_t columns = ceil_div(s.out_w, parts), wide = (columns - 1) * s.stride_w + s.kernel_w;
    const int64_t pitch = wide + (s.kernel_w - wide % 4 + 4) % 4;
    const auto fits = [&](int64_t rows) {
      const int64_t patch = ((rows - 1) * s.stride_h + s.kernel_h) * pitch * 4 * pieces;
      return padded(patch) + padded(4 * ceil_div(rows * columns, 2 * kPixels) * 2 * kPixels) <= bytes;
    };
    int64_t rows = max(int64_t(1), min(s.out_h, kMaxTilePixels / columns));
    while (rows > 0 && !fits(rows)) --rows;
    if (rows == 0 || columns > kMaxTilePixels) {
      if (columns == 1) return false;
      continue;
    }
    const int64_t bands = ceil_div(s.out_h, rows);
    t->rows = int(ceil_div(s.out_h, bands));
    t->columns = int(columns);
    t->bands = int(bands);
    t->parts = int(ceil_div(s.out_w, columns));
    t->patch_rows = int((t->rows - 1) * s.stride_h + s.kernel_h);
    t->patch_columns = int(wide);
    t->pitch = int(pitch);
    t->taps = int(s.kernel_h * s.kernel_w);
    t->steps = int(ceil_div(t->taps, 8));
    t->tiles = s.images * t->bands * t->parts;
    return true;
  }
}

// Positions and offsets inside a tile and its image are 32-bit.
bool small(const Sizes& s) {
  const int64_t limit = 1 << 28;
  return s.height < limit && s.width < limit && s.filters < limit && s.kernel_h * s.kernel_w < limit &&
         s.padding_h < limit && s.padding_w < limit && s.stride_h < limit && s.stride_w < limit;
}

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, which, device);
  return value;
}

// A tile's image, its first output row and column, and the image's row and column of the patch's first element.
struct Place {
  int64_t image;
  int row, column, top, left;
};
__device__ __forceinline__ Place place_of(int64_t tile, const Sizes& s, const Tiling& t) {
  const int64_t across = tile / t.parts;
  const int row = int(across % t.bands) * t.rows, column = int(tile % t.parts) * t.columns;
  return {across / t.bands, row, column, row * int(s.stride_h) - int(s.padding_h),
          column * int(s.stride_w) - int(s.padding_w)};
}

// Where tap 0 of each of the tile's pixels lies among its patch's words; what rounds the pixels up looks at the first.
__device__ __forceinline__ void fill_bases(const Sizes& s, const Tiling& t, int pixels, int* bases) {
  for (int p = threadIdx.x; p < pixels; p += blockDim.x) {
    const int row = p / t.columns, column = p % t.columns;
    bases[p] = p < t.rows * t.columns ? row * int(s.stride_h) * t.pitch + column * int(s.stride_w) : 0;
  }
}

// ---- Sobel ---------------------------------------------------------------------------------------------------

__device__ __forceinline__ float value(uint8_t x) { return float(x); }
template <class T>
__device__ __forceinline__ float value(T x) {
  return widen(x);
}

// Calls use(index among the patch's words, Sobel-x, Sobel-y) for every element of a tile's patch; grey is fold.x R +
// fold.y G + fold.z B + fold.w.
template <class I, class Use>
__device__ __forceinline__ void for_each_sobel(const Sizes& s, const Tiling& t, const I* images, float4 fold,
                                               const Place& place, Use use) {
  const I* image = images + place.image * s.image_stride[0];
  const int lane = threadIdx.x % kWarp;
  const int strips = (t.patch_columns + kStrip - 1) / kStrip, segments = (t.patch_rows + kSegment - 1) / kSegment;
  for (int item = threadIdx.x / kWarp; item < strips * segments; item += blockDim.x / kWarp) {
    const int row = item / strips * kSegment, column = item % strips * kStrip + lane - 1;
    const int x = place.left + column, y = place.top + row - 1;
    const bool in_width = x >= 0 && x < int(s.width);
    float grey[kSegment + 2];
#pragma unroll
    for (int i = 0; i < kSegment + 2; ++i) {
      const bool inside = in_width && y + i >= 0 && y + i < int(s.height);
      // Outside, the first pixel is loaded and not used: no branch keeps the loads from being in flight together.
      const I* at = image + (inside ? (y + i) * s.image_stride[2] + x * s.image_stride[3] : 0);
      const float red = value(at[0]), green = value(at[s.image_stride[1]]), blue = value(at[2 * s.image_stride[1]]);
      grey[i] = inside ? fmaf(red, fold.x, fmaf(green, fold.y, fmaf(blue, fold.z, fold.w))) : 0.0f;
    }
    float difference[kSegment + 2], total[kSegment + 2];
#pragma unroll
    for (int i = 0; i < kSegment + 2; ++i) {
      const float left = __shfl_up_sync(kAllLanes, grey[i], 1), right = __shfl_down_sync(kAllLanes, grey[i], 1);
      difference[i] = left - right;
      total[i] = left + 2.0f * grey[i] + right;
    }
    if (lane == 0 || lane > kStrip || column >= t.patch_columns) continue;
#pragma unroll
    for (int i = 0; i < kSegment; ++i) {
      if (row + i >= t.patch_rows) break;
      // Outside the image Sobel is not taken: it is the convolution's padding.
      const bool inside = in_width && y + i + 1 >= 0 && y + i + 1 < int(s.height);
      use((row + i) * t.pitch + column, inside ? difference[i] + 2.0f * difference[i + 1] + difference[i + 2] : 0.0f,
          inside ? total[i] - total[i + 2] : 0.0f);
    }
  }
}

// Writes the tile's Sobel values to `planes`, scaled by a power of two, and returns its inverse. Ends with a barrier.
template <class M, class I>
__device__ __forceinline__ float write_planes(const Sizes& s, const Tiling& t, const I* images, float4 fold,
                                              const Place& place, uint32_t* largest, Words<M::kPieces>* planes) {
  float scale = 1.0f;
  if (M::kScaled) {
    if (sizeof(I) == 1) {
      // |Sobel| <= 8 |grey|, and bytes are at most 255.
      const float bound = 255.0f * (fabsf(fold.x) + fabsf(fold.y) + fabsf(fold.z)) + fabsf(fold.w);
      scale = scale_of(magnitude_of(8.0f * bound));
    } else {
      uint32_t most = 0;
      for_each_sobel(s, t, images, fold, place,
                     [&](int, float x, float y) { most = max(most, max(magnitude_of(x), magnitude_of(y))); });
      if (threadIdx.x == 0) *largest = 0;
      __syncthreads();
      if (most > 0) atomicMax(largest, most);
      __syncthreads();
      scale = scale_of(*largest);
    }
  }
  for_each_sobel(s, t, images, fold, place,
                 [&](int at, float x, float y) { planes[at] = M::pack(x * scale, y * scale); });
  __syncthreads();
  return inverse_of(scale);
}

// With images of bytes or of the weights' dtype.
template <class M>
__device__ __forceinline__ float write_planes(const Sizes& s, const Tiling& t, const void* images, bool bytes,
                                              const double* fold, const Place& place, uint32_t* largest,
                                              Words<M::kPieces>* planes) {
  // Read anew for each tile: four registers less while the products are summed.
  const float4 grey = make_float4(float(fold[0]), float(fold[1]), float(fold[2]), float(fold[3]));
  return bytes ? write_planes<M>(s, t, static_cast<const uint8_t*>(images), grey, place, largest, planes)
               : write_planes<M>(s, t, static_cast<const typename M::T*>(images), grey, place, largest, planes);
}

// ---- forward -------------------------------------------------------------------------------------------------

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

// ---- backward: weight and bias -------------------------------------------------------------------------------
//
// The product (filters x pixels) (pixels x taps): a block keeps the sums of its range of tiles in registers (8 warps of
// 48 filters x 32 taps of both planes: all of AlexNet's) and writes them once, as a row of `partial`; the rows are
// added in their order. The gradient is read once, 128 pixels at a time through shared memory; float32 is scaled and
// split per filter and 128 pixels, and every 16 products are added to the sums by an ordinary multiply-add.

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

// ---- the plain loops, in float64 -----------------------------------------------------------------------------

constexpr int kPlainThreads = 128;
constexpr int kPlainFilters = 8;  // of a thread, so that a Sobel value serves several

struct Plain {
  Sizes s;
  int dtype, image_dtype, sum_dtype;  // of weight, grad and output; of the image; of scale, bias and partial
  const void* image;
  const double* fold;
  const void* weight;
  const void* grad;
  const void* scale;
  const void* bias;
  bool relu;
  int64_t range;  // pixels of a row of partial
  void* out;      // output, or partial (ranges, filters, 2 taps + 1)
};

__device__ __forceinline__ double element(const void* at, int dtype, int64_t i) {
  switch (dtype) {
    case DCFAST_FLOAT32:
      return static_cast<const float*>(at)[i];
    case DCFAST_FLOAT64:
      return static_cast<const double*>(at)[i];
    case DCFAST_FLOAT16:
      return widen(static_cast<const __half*>(at)[i]);
    case DCFAST_BFLOAT16:
      return widen(static_cast<const __nv_bfloat16*>(at)[i]);
    default:
      return static_cast<const uint8_t*>(at)[i];
  }
}
__device__ __forceinline__ void put(void* at, int dtype, int64_t i, double v) {
  switch (dtype) {
    case DCFAST_FLOAT32:
      static_cast<float*>(at)[i] = float(v);
      break;
    case DCFAST_FLOAT64:
      static_cast<double*>(at)[i] = v;
      break;
    case DCFAST_FLOAT16:
      static_cast<__half*>(at)[i] = narrow<__half>(float(v));
      break;
    default:
      static_cast<__nv_bfloat16*>(at)[i] = narrow<__nv_bfloat16>(float(v));
  }
}

// Sobel-x and Sobel-y of image n at (y, x), zero outside.
__device__ __forceinline__ double2 sobel_at(const Plain& a, int64_t n, int64_t y, int64_t x) {
  const Sizes& s = a.s;
  double2 sobel = {0.0, 0.0};
  if (y < 0 || y >= s.height || x < 0 || x >= s.width) return sobel;
  for (int k = 0; k < 9; ++k) {
    const int dy = k / 3 - 1, dx = k % 3 - 1;
    if (y + dy < 0 || y + dy >= s.height || x + dx < 0 || x + dx >= s.width) continue;
    const int64_t at = n * s.image_stride[0] + (y + dy) * s.image_stride[2] + (x + dx) * s.image_stride[3];
    double grey = a.fold[3];
    for (int c = 0; c < 3; ++c) grey += a.fold[c] * element(a.image, a.image_dtype, at + c * s.image_stride[1]);
    sobel.x -= dx * (2 - dy * dy) * grey;
    sobel.y -= dy * (2 - dx * dx) * grey;
  }
  return sobel;
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

template <class Kernel>
void launch_plain(Kernel kernel, const Plain& a, int64_t threads, cudaStream_t stream) {
  const int64_t blocks = min(ceil_div(threads, kPlainThreads), kMaxBlocks);
  launch(kernel, unsigned(blocks), kPlainThreads, 0, stream, a);
}

// ---- both ----------------------------------------------------------------------------------------------------

bool known(int dtype, int image_dtype) {
  const bool floating =
      dtype == DCFAST_FLOAT32 || dtype == DCFAST_FLOAT64 || dtype == DCFAST_FLOAT16 || dtype == DCFAST_BFLOAT16;
  return floating && (image_dtype == dtype || image_dtype == DCFAST_UINT8);
}
int sum_dtype(int dtype) { return dtype == DCFAST_FLOAT64 ? DCFAST_FLOAT64 : DCFAST_FLOAT32; }

// run(M()) for the arithmetic M of the dtype: whether it served the call. float64 has none.
template <class Run>
bool with_arithmetic(int dtype, bool allow_tf32, Run run) {
  switch (dtype) {
    case DCFAST_FLOAT16:
      return run(Float16());
    case DCFAST_BFLOAT16:
      return run(Bfloat16());
    case DCFAST_FLOAT32:
      return allow_tf32 ? run(Tf32()) : run(Float32());
    default:
      return false;
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
