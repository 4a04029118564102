// Grey image, Sobel and convolution in one kernel (sobel_conv2d.cu), and the gradient of the weights
// (sobel_conv2d_backward.cu). The definition is in dcfast/ops/sobel_conv2d/__init__.py.
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
#pragma once

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
}  // namespace cuda
}  // namespace dcfast
