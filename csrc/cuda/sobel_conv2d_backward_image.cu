// The gradient of the image of sobel_conv2d, for looking at what filters see: the transposed convolution, the
// transposed Sobel and the scale of each channel in one pass.
//
// The floor. AlexNet's first layer (see sobel_conv2d.cuh) reads 149 MB of 2-byte gradients and writes 77 MB, or twice
// that in float32: 53 or 105 us at the 4.3 TB/s of an H200. Its 37 GFLOP are 0.55 ms at the 67 TFLOP/s of that
// machine's float32 units, which bind it: no training step waits for this pass, so that it leaves the tensor cores, and
// the split of operands that float32 needs there, to the others.
//
// The plan. A block computes a tile of 32 x 64 gradients of the two Sobel values in shared memory, and from them those
// of 30 x 62 pixels; 32 tiles of 224 x 224 pixels are 1.3 times the work, for the borders and what reaches past the
// edges. The filters come in chunks, each added to the tile by itself, which keeps the float32 sums short. A chunk's
// weights and the gradients that they meet lie in shared memory in the precision of the sums, zero outside the output,
// so that no product asks where it is. 48 KiB in all, 96 for float64, let blocks load while others multiply.
//
// A Sobel value is reached by every stride-th tap only, and those a stride apart by the same taps: they are a phase. A
// thread sums a run of 8 values of one phase in one column. From a tap to the next its gradients move by one place, so
// that 16 products take one new gradient and one pair of weights: some 30 instructions, or half of the float32 units'
// rate at best. Lanes hold neighbours of a phase in a row, whose gradients are neighbours too. Strides of 1, 2 and 4
// fill every run and every thread; others leave some empty.
//
// An infinite weight may give NaN at pixels near the border that it does not reach: it meets the zeros outside.
#include "common.cuh"

namespace dcfast {
namespace cuda {
namespace {

typedef dcfast_sobel_conv2d_sizes Sizes;

constexpr int kWarp = 32, kThreads = 256;
constexpr int kRows = 32, kColumns = 64;  // of a tile's Sobel values: its pixels and a border of 1
constexpr int kRun = 8;                   // Sobel values of a thread
constexpr int kPart = 32;                 // taps, down and across, of the part of the kernel that is staged at once
constexpr int kStaged = 8192;             // weights and gradients of a chunk: at least one filter's, see below
constexpr int64_t kMaxBlocks = 1 << 30;

static_assert(2 * kPart * kPart + (kRows + kPart) * (kColumns + kPart) <= kStaged, "one filter fits");

// Of Sobel-x and Sobel-y: gradients or weights.
template <class Wide>
struct __align__(2 * sizeof(Wide)) Pair {
  Wide x, y;
};

template <class T>
using Wide = typename Element<T>::Wide;

// What shared memory and registers hold of either precision.
template <class T>
constexpr int kBlocks = sizeof(Wide<T>) == 4 ? 4 : 2;
template <class T>
constexpr size_t kSharedBytes = (2 * kRows * kColumns + kStaged) * sizeof(Wide<T>);

template <class T>
struct ImageGradient {
  Sizes s;
  int64_t bands, parts;  // tiles of an image, down and across
  const T* grad;
  const double* fold;
  const T* weight;
  T* out;
};

// Along one axis: the taps of a part of the kernel, and the gradients that they meet in a tile.
struct Axis {
  int64_t tap, stride;  // tap: the first of the part
  int64_t low;          // the first gradient
  int64_t reach;        // the tap that reaches the first Sobel value, counted in the part; it may lie past its end
  int taps, extent;     // extent: the number of gradients
  int step;             // the stride, as far as it matters in a tile
  int lag;              // gradients between those that one Sobel value meets by the first and by the last of its taps

  // The Sobel values of the tile start at `start` in the padded image and have `slots` in a phase.
  __device__ __forceinline__ Axis(int64_t tap, int64_t kernel, int64_t stride, int64_t start, int step, int slots)
      : tap(tap), stride(stride), taps(int(min(int64_t(kPart), kernel - tap))), step(step), lag((taps - 1) / step) {
    const int64_t place = start - tap, out = place / stride - (place % stride < 0);
    low = out - lag;
    reach = place - out * stride;
    extent = lag + 1 + slots;
  }
  // Whether a tap before that of the first Sobel value reaches the phase, from one output more.
  __device__ __forceinline__ bool wraps(int phase) const { return reach + phase >= stride; }
  // The first tap of the part that reaches a phase; `step` taps further it is reached from one output less.
  __device__ __forceinline__ int tap_of(int phase) const {
    return int(min(int64_t(kPart), reach + phase - (wraps(phase) ? stride : 0)));
  }
  // The gradient that this tap meets in a slot.
  __device__ __forceinline__ int grad_of(int phase, int slot) const { return lag + wraps(phase) + slot; }
};

// Weights (filter, tap) and gradients (filter, row, column) of `count` filters. A warp takes a row of either, and four
// to have as many loads in flight.
template <class T>
__device__ __forceinline__ void stage(const ImageGradient<T>& a, const Axis& down, const Axis& across, int64_t image,
                                      int64_t first, int count, Pair<Wide<T>>* weights, Wide<T>* grads) {
  const Sizes& s = a.s;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t kernel = s.kernel_h * s.kernel_w, area = s.out_h * s.out_w;
  for (int i = lane; i < across.taps; i += kWarp) {
    const T* from = a.weight + 2 * first * kernel + down.tap * s.kernel_w + across.tap + i;
#pragma unroll 4
    for (int row = warp; row < count * down.taps; row += kThreads / kWarp) {
      const int64_t at = 2 * (row / down.taps) * kernel + row % down.taps * s.kernel_w;
      weights[row * across.taps + i] = {widen(from[at]), widen(from[at + kernel])};
    }
  }
  for (int i = lane; i < across.extent; i += kWarp) {
    const T* from = a.grad + (image * s.filters + first) * area;
    const int64_t x = across.low + i;
#pragma unroll 4
    for (int row = warp; row < count * down.extent; row += kThreads / kWarp) {
      const int64_t y = down.low + row % down.extent;
      const bool inside = x >= 0 && x < s.out_w && y >= 0 && y < s.out_h;
      // Outside, the first is loaded and not used: no branch keeps the loads from being in flight together.
      const Wide<T> grad = widen(from[inside ? row / down.extent * area + y * s.out_w + x : 0]);
      grads[row * across.extent + i] = inside ? grad : Wide<T>(0);
    }
  }
}

// Adds the products of `count` filters to the run of Sobel values that begins at (phase_y, slot_y), (phase_x, slot_x).
template <class T>
__device__ __forceinline__ void add_products(const Axis& down, const Axis& across, int phase_y, int slot_y, int phase_x,
                                             int slot_x, int count, const Pair<T>* weights, const T* grads,
                                             Pair<T>* planes) {
  const int pitch = across.extent, taps = down.taps * across.taps;
  const int tap_y = down.tap_of(phase_y), tap_x = across.tap_of(phase_x);
  grads += down.grad_of(phase_y, slot_y) * pitch + across.grad_of(phase_x, slot_x);
  Pair<T> sum[kRun] = {};
  for (int filter = 0; filter < count; ++filter, weights += taps, grads += down.extent * pitch) {
    const T* column = grads;
    for (int j = tap_x; j < across.taps; j += across.step, --column) {
      const T* next = column;
      T grad[kRun];
#pragma unroll
      for (int r = 1; r < kRun; ++r) grad[r - 1] = column[r * pitch];
      for (int i = tap_y; i < down.taps; i += down.step, next -= pitch) {
#pragma unroll
        for (int r = kRun - 1; r > 0; --r) grad[r] = grad[r - 1];
        grad[0] = *next;
        const Pair<T> weight = weights[i * across.taps + j];
#pragma unroll
        for (int r = 0; r < kRun; ++r) {
          sum[r].x = fma(grad[r], weight.x, sum[r].x);
          sum[r].y = fma(grad[r], weight.y, sum[r].y);
        }
      }
    }
  }
  const int x = slot_x * across.step + phase_x;
#pragma unroll
  for (int r = 0; r < kRun; ++r) {
    const int y = (slot_y + r) * down.step + phase_y;
    if (y >= kRows || x >= kColumns) break;
    planes[y * kColumns + x].x += sum[r].x;
    planes[y * kColumns + x].y += sum[r].y;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) sobel_conv2d_image_gradient(const ImageGradient<T> a) {
  const Sizes& s = a.s;
  const int step_y = int(min(s.stride_h, int64_t(kRows))), step_x = int(min(s.stride_w, int64_t(kColumns)));
  // Of a phase, in whole runs down; what rounds them up is computed, but not kept.
  const int runs = (kRows / kRun + step_y - 1) / step_y, slots = (kColumns + step_x - 1) / step_x;
  Pair<Wide<T>>* planes = reinterpret_cast<Pair<Wide<T>>*>(dynamic_shared());  // (kRows, kColumns)
  Pair<Wide<T>>* weights = planes + kRows * kColumns;

  for (int64_t tile = blockIdx.x; tile < s.images * a.bands * a.parts; tile += gridDim.x) {
    const int64_t image = tile / a.parts / a.bands;
    const int64_t top = tile / a.parts % a.bands * (kRows - 2) - 1, left = tile % a.parts * (kColumns - 2) - 1;
    __syncthreads();  // the last tile's planes were read
    for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) planes[i] = {0, 0};
    for (int64_t tap_y = 0; tap_y < s.kernel_h; tap_y += kPart)
      for (int64_t tap_x = 0; tap_x < s.kernel_w; tap_x += kPart) {
        const Axis down(tap_y, s.kernel_h, s.stride_h, top + s.padding_h, step_y, runs * kRun);
        const Axis across(tap_x, s.kernel_w, s.stride_w, left + s.padding_w, step_x, slots);
        const int taps = down.taps * across.taps, most = kStaged / (2 * taps + down.extent * across.extent);
        Wide<T>* grads = reinterpret_cast<Wide<T>*>(weights + most * taps);
        for (int64_t first = 0; first < s.filters; first += most) {
          const int count = int(min(int64_t(most), s.filters - first));
          __syncthreads();  // the last chunk was read
          stage(a, down, across, image, first, count, weights, grads);
          __syncthreads();
          for (int job = threadIdx.x; job < step_y * runs * step_x * slots; job += kThreads) {
            const int phase_x = job / slots % step_x, line = job / (slots * step_x);
            add_products(down, across, line % step_y, line / step_y * kRun, phase_x, job % slots, count, weights, grads,
                         planes);
          }
        }
      }
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
      const int row = i / kColumns, column = i % kColumns;
      const int64_t y = top + row, x = left + column;
      if (row == 0 || row == kRows - 1 || column == 0 || column == kColumns - 1 || y >= s.height || x >= s.width) {
        continue;
      }
      // Outside the image there is no Sobel value: the convolution's padding has no gradient.
      Wide<T> grey = 0;
#pragma unroll
      for (int dy = -1; dy <= 1; ++dy)
#pragma unroll
        for (int dx = -1; dx <= 1; ++dx) {
          if (y + dy < 0 || y + dy >= s.height || x + dx < 0 || x + dx >= s.width) continue;
          const Pair<Wide<T>> plane = planes[i + dy * kColumns + dx];
          if (dx != 0) grey += Wide<T>(dx * (2 - dy * dy)) * plane.x;
          if (dy != 0) grey += Wide<T>(dy * (2 - dx * dx)) * plane.y;
        }
      T* to = a.out + (3 * image * s.height + y) * s.width + x;
#pragma unroll
      for (int c = 0; c < 3; ++c) to[c * s.height * s.width] = narrow<T>(Wide<T>(a.fold[c]) * grey);
    }
  }
}

}  // namespace

int sobel_conv2d_backward_image(int dtype, const Sizes* sizes, const void* grad, const double* fold, const void* weight,
                                void* grad_image, void* stream) {
  return with_dtype(dtype, [&](auto element) {
    typedef decltype(element) T;
    const Sizes& s = *sizes;
    const int64_t bands = (s.height + kRows - 3) / (kRows - 2), parts = (s.width + kColumns - 3) / (kColumns - 2);
    const ImageGradient<T> a = {
        s, bands, parts, static_cast<const T*>(grad), fold, static_cast<const T*>(weight), static_cast<T*>(grad_image)};
    const int64_t blocks = min(s.images * bands * parts, kMaxBlocks);
    launch(sobel_conv2d_image_gradient<T>, unsigned(blocks), kThreads, kSharedBytes<T>,
           static_cast<cudaStream_t>(stream), a);
    return launch_status();
  });
}

}  // namespace cuda
}  // namespace dcfast
