// Grey, Sobel and convolution in one pass over the image, forward and backward. See
// dcfast/ops/sobel_conv2d/__init__.py for the definition.
//
// A unit of work is a band of rows of one image. A thread computes the band's grey and Sobel planes once into
// its scratch (about 128 KiB, in L2), with the convolution's zero margins, and multiplies from there:
//
//   forward         out[o][p]   = sum_k w[o][k] S[k][p]     vectors of 8 pixels p of one output row
//   weight          gw[o][k]    = sum_p g[o][p] S[p][k]     vectors along k
//   image           D[p][k]     = sum_o g[o][p] w[o][k]     vectors along k; D is added to the planes'
//   gradient
//
// with k = (plane, i, j) and S[k][p] the Sobel value under tap k of output pixel p. Forward needs no packing
// of patches: its planes keep column x at [x % stride][x / stride], so that the 8 pixels under one tap are
// consecutive.
//
// Tile: 2 vectors by kRows rows of accumulators (12 of 16 registers on AVX2, 24 of 32 on AVX-512). With two
// loads and two FMAs per cycle (Zen 2 and later, Haswell and later), 12 FMAs hide the 4 or 5 cycles of
// latency of each and need 8 loads.
//
// Long sums run in blocks of kSumBlock products, which halves their error. The bias is summed in double.
//
// Every sum is taken in an order that depends on the sizes alone: bands are no function of the thread count,
// and the weight pass adds the partial sums of bands in double in the order of the bands.
#include <omp.h>
#include <stdint.h>
#include <string.h>

#include "dtype.h"
#include "float_env.h"
#include "simd.h"
#include "workspace.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

typedef dcfast_sobel_conv2d_sizes Sizes;

#if defined(__AVX512F__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif
constexpr int64_t kPlaneBytes = 128 * 1024;       // Sobel planes of a band, a quarter of a 512 KiB L2
constexpr int64_t kImagePlaneBytes = 512 * 1024;  // wider bands where their halo costs multiplications
constexpr int64_t kBlockGroups = 16;              // vectors of pixels that meet one panel of weights in L1
constexpr int64_t kSumBlock = 128;
constexpr int64_t kBlockPixels = 96;  // pixels whose patches are packed together; a multiple of kRows

template <class T>
struct Simd;
template <>
struct Simd<float> {
  typedef Floats Vector;
  static constexpr int kLanes = kFloats;
};
template <>
struct Simd<double> {
  typedef Doubles Vector;
  static constexpr int kLanes = kDoubles;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// sum[r][v] = sum over q < n of a(r, q) * (the vector at b(q, v)), in registers.
template <class T, class A, class B>
inline __attribute__((always_inline)) void multiply(int64_t n, A a, B b, typename Simd<T>::Vector sum[kRows][2]) {
  int64_t start = 0;
  do {  // n is at least 1
    const int64_t stop = smaller(start + kSumBlock, n);
    typename Simd<T>::Vector acc[kRows][2];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = broadcast(T(0));
    for (int64_t q = start; q < stop; ++q) {
      typename Simd<T>::Vector b0 = load(b(q, 0)), b1 = load(b(q, 1));
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        typename Simd<T>::Vector ar = broadcast(a(r, q));
        acc[r][0] = fmadd(ar, b0, acc[r][0]);
        acc[r][1] = fmadd(ar, b1, acc[r][1]);
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] = start == 0 ? acc[r][0] : sum[r][0] + acc[r][0];
      sum[r][1] = start == 0 ? acc[r][1] : sum[r][1] + acc[r][1];
    }
    start = stop;
  } while (start < n);
}

// Up to 8 consecutive pixels of an output row.
struct Group {
  int64_t source, target, lanes;  // offsets into the planes and into an output channel; valid lanes
};

// What follows from the sizes: the bands and the layout of a thread's scratch.
struct Plan {
  int64_t taps, columns, panels;                    // kernel_h * kernel_w, of both planes, padded panels of k
  int64_t band, bands;                              // rows of a band; bands of an image
  int64_t rows, phases, pitch, margin, row, plane;  // of the Sobel planes; row and plane in elements
  int64_t groups;                                   // vectors of pixels of an output row
  int64_t patch;                                    // elements from one packed patch to the next
  int64_t packed_bytes, scratch_bytes;
};

struct Scratch {
  void *grey, *planes, *lines, *patches;
  int64_t* offsets;
  Group* groups;
};

template <class T>
int64_t panel_width() {
  return 2 * Simd<T>::kLanes;
}

template <class T>
Plan plan_of(int pass, const Sizes& s) {
  constexpr int64_t kLanes = Simd<T>::kLanes, kSize = sizeof(T);
  const bool forward = pass == DCFAST_SOBEL_FORWARD, image = pass == DCFAST_SOBEL_BACKWARD_IMAGE;
  Plan p = {};
  p.taps = s.kernel_h * s.kernel_w;
  p.columns = 2 * p.taps;
  p.panels = ceil_div(p.columns + 1, panel_width<T>());
  p.phases = forward ? s.stride_w : 1;
  p.groups = ceil_div(s.out_w, kLanes);
  p.margin = image ? larger(s.padding_w, 1) : s.padding_w;
  // The last vector of a row reads past its pixels.
  p.pitch = round_up(larger(ceil_div(s.width + 2 * p.margin, p.phases),
                            forward ? p.groups * kLanes + (s.kernel_w - 1) / p.phases : 0) +
                         kLanes,
                     kLanes);
  if (p.pitch * p.phases * kSize % 1024 == 0) p.pitch += kLanes;  // rows in different sets of L1
  p.row = p.pitch * p.phases;
  if (image) {  // bands of rows of the image, and the row above and below that Sobel reaches
    p.band = smaller(s.height, larger(kImagePlaneBytes / (2 * p.row * kSize) - 2, larger(1, s.kernel_h)));
    p.bands = ceil_div(s.height, p.band);
    p.rows = p.band + 2;
  } else {  // bands of rows of the output
    int64_t rows = kPlaneBytes / (2 * p.row * kSize);
    p.band = smaller(s.out_h, larger((rows - s.kernel_h) / s.stride_h + 1, ceil_div(s.kernel_h, s.stride_h)));
    p.bands = ceil_div(s.out_h, p.band);
    p.rows = (p.band - 1) * s.stride_h + s.kernel_h;
  }
  p.plane = p.rows * p.row;
  // Patches start an odd number of cache lines apart, so that a column of them spreads over the sets of L1.
  p.patch = round_up(larger(p.panels * panel_width<T>(), p.columns + kLanes), 64 / kSize);
  if (p.patch * kSize / 64 % 2 == 0) p.patch += 64 / kSize;
  if (forward) p.packed_bytes = round_up(s.filters, kRows) * p.columns * kSize;
  if (image) p.packed_bytes = p.panels * panel_width<T>() * s.filters * kSize;
  return p;
}

template <class T>
int64_t layout(int pass, const Sizes& s, const Plan& p, char* base, Scratch* scratch) {
  constexpr int64_t kSize = sizeof(T);
  int64_t at = 0;
  const bool forward = pass == DCFAST_SOBEL_FORWARD, image = pass == DCFAST_SOBEL_BACKWARD_IMAGE;
  scratch->planes = take<char>(base, &at, (2 * p.plane + Simd<T>::kLanes) * kSize);
  scratch->lines = take<char>(base, &at, 4 * (s.width + 2) * kSize);
  scratch->grey = take<char>(base, &at, image ? 0 : (p.rows + 2) * (s.width + 2) * kSize);
  scratch->patches = take<char>(base, &at, forward ? 0 : kBlockPixels * p.patch * kSize);
  scratch->offsets = take<int64_t>(base, &at, forward ? p.columns : 0);
  scratch->groups = take<Group>(base, &at, forward ? p.band * p.groups : 0);
  return at;
}

// Grey is computed in double and rounded once.
template <class I, class T>
void grey_row(const I* __restrict red, const I* __restrict green, const I* __restrict blue, int64_t stride,
              int64_t width, const double* fold, T* __restrict grey) {
  const double r = fold[0], g = fold[1], b = fold[2], offset = fold[3];
  if (stride == 1) {
    for (int64_t x = 0; x < width; ++x)
      grey[x] = T(double(red[x]) * r + double(green[x]) * g + double(blue[x]) * b + offset);
  } else {
    for (int64_t x = 0; x < width; ++x) {
      int64_t at = x * stride;
      grey[x] = T(double(red[at]) * r + double(green[at]) * g + double(blue[at]) * b + offset);
    }
  }
}

// Sobel planes of padded rows [first, first + rows) of one image; padded row y is row y - padding_h.
template <class I, class T>
void sobel_planes(const Sizes& s, const Plan& p, const I* image, const double* fold, int64_t first, int64_t rows,
                  const Scratch& scratch) {
  const int64_t width = s.width, wide = width + 2;
  T* grey = static_cast<T*>(scratch.grey);
  for (int64_t t = 0; t < rows + 2; ++t) {
    T* row = grey + t * wide;
    int64_t y = first - s.padding_h - 1 + t;
    if (y < 0 || y >= s.height) {
      memset(row, 0, size_t(wide) * sizeof(T));
      continue;
    }
    const I* pixels = image + y * s.image_stride[2];
    row[0] = row[width + 1] = T(0);
    grey_row(pixels, pixels + s.image_stride[1], pixels + 2 * s.image_stride[1], s.image_stride[3], width, fold,
             row + 1);
  }
  T* __restrict sum = static_cast<T*>(scratch.lines);
  T* __restrict difference = sum + wide;
  T* __restrict lines = difference + wide;
  for (int64_t t = 0; t < rows; ++t) {
    T* planes = static_cast<T*>(scratch.planes) + t * p.row;
    for (int plane = 0; plane < 2; ++plane) memset(planes + plane * p.plane, 0, size_t(p.row) * sizeof(T));
    int64_t y = first - s.padding_h + t;
    if (y < 0 || y >= s.height) continue;
    const T *above = grey + t * wide, *here = above + wide, *below = here + wide;
    for (int64_t x = 0; x < wide; ++x) {
      sum[x] = above[x] + T(2) * here[x] + below[x];
      difference[x] = above[x] - below[x];
    }
    T* __restrict x_line = p.phases == 1 ? planes + p.margin : lines;
    T* __restrict y_line = p.phases == 1 ? planes + p.plane + p.margin : lines + wide;
    for (int64_t x = 0; x < width; ++x) {
      x_line[x] = sum[x] - sum[x + 2];
      y_line[x] = difference[x] + T(2) * difference[x + 1] + difference[x + 2];
    }
    if (p.phases == 1) continue;
    for (int64_t phase = 0; phase < p.phases; ++phase) {
      // The first column x of the image whose padded position is in this phase.
      int64_t x = ((phase - p.margin) % p.phases + p.phases) % p.phases;
      T* __restrict x_row = planes + phase * p.pitch + (x + p.margin) / p.phases;
      T* __restrict y_row = x_row + p.plane;
      for (int64_t i = 0; x < width; ++i, x += p.phases) {
        x_row[i] = lines[x];
        y_row[i] = lines[wide + x];
      }
    }
  }
}

// ---- forward ----------------------------------------------------------------------------------------------

template <class T>
void store_lanes(T* to, typename Simd<T>::Vector v, int64_t lanes) {
  if (lanes == Simd<T>::kLanes) {
    store(to, v);
  } else {
    for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = v[lane];
  }
}

// Two groups of pixels and the filters of one panel.
template <class T>
void forward_tile(const Plan& p, const T* panel, const int64_t* offsets, const T* planes, const Group* groups,
                  int64_t n_groups, const T* bias, bool relu, int64_t filters, T* out, int64_t channel) {
  const T *first = planes + groups[0].source, *second = planes + groups[n_groups - 1].source;
  typename Simd<T>::Vector acc[kRows][2];
  multiply<T>(
      p.columns, [&](int r, int64_t q) { return panel[q * kRows + r]; },
      [&](int64_t q, int v) { return (v == 0 ? first : second) + offsets[q]; }, acc);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    if (r >= filters) return;
    const typename Simd<T>::Vector b = broadcast(bias == nullptr ? T(0) : bias[r]), zero = {};
    for (int64_t i = 0; i < n_groups; ++i) {
      typename Simd<T>::Vector v = acc[r][i] + b;
      if (relu) v = v < zero ? zero : v;  // NaN stays
      store_lanes<T>(out + r * channel + groups[i].target, v, groups[i].lanes);
    }
  }
}

template <class I, class T>
void forward_unit(const Sizes& s, const Plan& p, const I* image, const double* fold, const T* packed, const T* bias,
                  bool relu, const Scratch& scratch, T* output, int64_t unit) {
  const int64_t n = unit / p.bands, first = unit % p.bands * p.band;
  const int64_t out_rows = smaller(p.band, s.out_h - first), channel = s.out_h * s.out_w;
  sobel_planes<I, T>(s, p, image + n * s.image_stride[0], fold, first * s.stride_h,
                     (out_rows - 1) * s.stride_h + s.kernel_h, scratch);
  constexpr int64_t kLanes = Simd<T>::kLanes;
  int64_t n_groups = 0;
  for (int64_t y = 0; y < out_rows; ++y) {
    for (int64_t x = 0; x < s.out_w; x += kLanes) {
      scratch.groups[n_groups++] = Group{y * s.stride_h * p.row + x, y * s.out_w + x, smaller(kLanes, s.out_w - x)};
    }
  }
  T* out = output + n * s.filters * channel + first * s.out_w;
  for (int64_t block = 0; block < n_groups; block += kBlockGroups) {
    int64_t stop = smaller(block + kBlockGroups, n_groups);
    for (int64_t o = 0; o < s.filters; o += kRows) {
      for (int64_t group = block; group < stop; group += 2) {
        forward_tile(p, packed + o * p.columns, scratch.offsets, static_cast<const T*>(scratch.planes),
                     scratch.groups + group, smaller(2, stop - group), bias == nullptr ? bias : bias + o, relu,
                     s.filters - o, out + o * channel, channel);
      }
    }
  }
}

template <class I, class T>
void forward(const Sizes& s, const I* image, const double* fold, const T* packed, const T* bias, bool relu, char* base,
             T* output, int64_t start, int64_t stop, int n_threads) {
  const Plan p = plan_of<T>(DCFAST_SOBEL_FORWARD, s);
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
    Scratch scratch;
    int64_t bytes = layout<T>(DCFAST_SOBEL_FORWARD, s, p, nullptr, &scratch);
    layout<T>(DCFAST_SOBEL_FORWARD, s, p, base + omp_get_thread_num() * bytes, &scratch);
    for (int64_t k = 0; k < p.columns; ++k) {
      int64_t plane = k / p.taps, i = k % p.taps / s.kernel_w, j = k % s.kernel_w;
      scratch.offsets[k] = plane * p.plane + i * p.row + j % p.phases * p.pitch + j / p.phases;
    }
#pragma omp for schedule(dynamic)
    for (int64_t unit = start; unit < stop; ++unit) {
      forward_unit(s, p, image, fold, packed, bias, relu, scratch, output, unit);
    }
  }
}

// ---- backward: weight and bias ----------------------------------------------------------------------------

// The patches of output pixels [pixel, pixel + count), counted from the first row of the band.
template <class T>
void pack_patches(const Sizes& s, const Plan& p, const T* planes, int64_t pixel, int64_t count, T* patches) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  int64_t y = pixel / s.out_w, x = pixel % s.out_w;
  for (int64_t n = 0; n < count; ++n) {
    T* to = patches + n * p.patch;
    const T* from = planes + y * s.stride_h * p.row + x * s.stride_w;
    for (int plane = 0; plane < 2; ++plane) {
      for (int64_t i = 0; i < s.kernel_h; ++i) {
        // Whole vectors: what runs over the end of this run is overwritten by the next.
        const T* run = from + plane * p.plane + i * p.row;
        for (int64_t j = 0; j < s.kernel_w; j += kLanes) store(to + j, load(run + j));
        to += s.kernel_w;
      }
    }
    for (T* end = patches + n * p.patch + p.panels * panel_width<T>(); to < end; ++to) *to = T(0);
    if (++x == s.out_w) {
      x = 0;
      ++y;
    }
  }
}

// In 8 interleaved sums, to hide the latency of an addition.
template <class T>
double sum_of(const T* x, int64_t n) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int lane = 0; lane < 8; ++lane) lanes[lane] += double(x[i + lane]);
  }
  for (; i < n; ++i) lanes[0] += double(x[i]);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

template <class I, class T>
void weight_unit(const Sizes& s, const Plan& p, const I* image, const double* fold, const T* grad,
                 const Scratch& scratch, T* partial, int64_t unit) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  const int64_t n = unit / p.bands, first = unit % p.bands * p.band, width = p.panels * panel_width<T>();
  const int64_t out_rows = smaller(p.band, s.out_h - first), channel = s.out_h * s.out_w;
  sobel_planes<I, T>(s, p, image + n * s.image_stride[0], fold, first * s.stride_h,
                     (out_rows - 1) * s.stride_h + s.kernel_h, scratch);
  memset(partial, 0, size_t(round_up(s.filters, kRows) * width) * sizeof(T));
  const T* g = grad + n * s.filters * channel + first * s.out_w;
  T* patches = static_cast<T*>(scratch.patches);
  for (int64_t pixel = 0; pixel < out_rows * s.out_w; pixel += kBlockPixels) {
    int64_t count = smaller(kBlockPixels, out_rows * s.out_w - pixel);
    pack_patches(s, p, static_cast<const T*>(scratch.planes), pixel, count, patches);
    for (int64_t k = 0; k < width; k += panel_width<T>()) {
      for (int64_t o = 0; o < s.filters; o += kRows) {
        const T* rows[kRows];  // the padding repeats the last filter
        for (int r = 0; r < kRows; ++r) rows[r] = g + smaller(o + r, s.filters - 1) * channel + pixel;
        typename Simd<T>::Vector acc[kRows][2];
        multiply<T>(
            count, [&](int r, int64_t q) { return rows[r][q]; },
            [&](int64_t q, int v) { return patches + q * p.patch + k + v * kLanes; }, acc);
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
          T* to = partial + (o + r) * width + k;
          store(to, load(to) + acc[r][0]);
          store(to + kLanes, load(to + kLanes) + acc[r][1]);
        }
      }
    }
  }
  for (int64_t o = 0; o < s.filters; ++o) {
    partial[o * width + p.columns] = T(sum_of(g + o * channel, out_rows * s.out_w));
  }
}

template <class I, class T>
void backward_weight(const Sizes& s, const I* image, const double* fold, const T* grad, char* base, T* partial,
                     double* total, int64_t start, int64_t stop, int n_threads) {
  const Plan p = plan_of<T>(DCFAST_SOBEL_BACKWARD_WEIGHT, s);
  const int64_t size = round_up(s.filters, kRows) * p.panels * panel_width<T>();
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
    Scratch scratch;
    int64_t bytes = layout<T>(DCFAST_SOBEL_BACKWARD_WEIGHT, s, p, nullptr, &scratch);
    layout<T>(DCFAST_SOBEL_BACKWARD_WEIGHT, s, p, base + omp_get_thread_num() * bytes, &scratch);
#pragma omp for schedule(dynamic)
    for (int64_t unit = start; unit < stop; ++unit) {
      weight_unit(s, p, image, fold, grad, scratch, partial + (unit - start) * size, unit);
    }
#pragma omp for schedule(static)
    for (int64_t k = 0; k < size; k += kRows) {
      for (int64_t unit = 0; unit < stop - start; ++unit) {
        for (int64_t i = k; i < smaller(k + kRows, size); ++i) total[i] += double(partial[unit * size + i]);
      }
    }
  }
}

// ---- backward: image --------------------------------------------------------------------------------------

// Adds what output pixels [pixel, pixel + count) give to the planes' gradient; patches is D.
template <class T>
void scatter(const Sizes& s, const Plan& p, const T* patches, int64_t pixel, int64_t count, int64_t top, int64_t low,
             int64_t high, T* planes) {
  int64_t y = pixel / s.out_w, x = pixel % s.out_w;
  for (int64_t n = 0; n < count; ++n) {
    for (int plane = 0; plane < 2; ++plane) {
      for (int64_t i = 0; i < s.kernel_h; ++i) {
        int64_t at = y * s.stride_h + i - s.padding_h;
        if (at < low || at >= high) continue;
        const T* __restrict from = patches + n * p.patch + plane * p.taps + i * s.kernel_w;
        T* __restrict to = planes + plane * p.plane + (at - top) * p.row + x * s.stride_w - s.padding_w + p.margin;
        for (int64_t j = 0; j < s.kernel_w; ++j) to[j] += from[j];
      }
    }
    if (++x == s.out_w) {
      x = 0;
      ++y;
    }
  }
}

template <class T>
void image_unit(const Sizes& s, const Plan& p, const T* grad, const double* fold, const T* packed,
                const Scratch& scratch, T* grad_image, int64_t unit) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  const int64_t n = unit / p.bands, first = unit % p.bands * p.band, channel = s.out_h * s.out_w;
  const int64_t rows = smaller(p.band, s.height - first), top = first - 1;
  const int64_t low = larger(0, top), high = smaller(s.height, first + rows + 1);
  T* planes = static_cast<T*>(scratch.planes);
  memset(planes, 0, size_t(2 * p.plane) * sizeof(T));
  // The output rows whose taps reach rows [low, high) of the planes.
  int64_t reach = low + s.padding_h - s.kernel_h + 1;
  int64_t out_first = reach > 0 ? ceil_div(reach, s.stride_h) : 0;
  int64_t out_stop = smaller(s.out_h, (high - 1 + s.padding_h) / s.stride_h + 1);
  const T* g = grad + n * s.filters * channel;
  T* patches = static_cast<T*>(scratch.patches);
  for (int64_t pixel = out_first * s.out_w; pixel < out_stop * s.out_w; pixel += kBlockPixels) {
    int64_t count = smaller(kBlockPixels, out_stop * s.out_w - pixel);
    for (int64_t k = 0; k < p.panels * panel_width<T>(); k += panel_width<T>()) {
      const T* panel = packed + k * s.filters;
      for (int64_t row = 0; row < count; row += kRows) {
        const T* pixels[kRows];  // the padding repeats the last pixel
        for (int r = 0; r < kRows; ++r) pixels[r] = g + pixel + smaller(row + r, count - 1);
        typename Simd<T>::Vector acc[kRows][2];
        multiply<T>(
            s.filters, [&](int r, int64_t q) { return pixels[r][q * channel]; },
            [&](int64_t q, int v) { return panel + q * panel_width<T>() + v * kLanes; }, acc);
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
          store(patches + (row + r) * p.patch + k, acc[r][0]);
          store(patches + (row + r) * p.patch + k + kLanes, acc[r][1]);
        }
      }
    }
    scatter(s, p, patches, pixel, count, top, low, high, planes);
  }
  // The transpose of Sobel, over the part of the planes that lies in the image.
  const int64_t wide = s.width + 2, left = p.margin - 1;
  for (int64_t t = 0; t < 2 * p.rows; ++t) {
    T* row = planes + t * p.row;
    for (int64_t x = 0; x < p.margin; ++x) row[x] = row[p.margin + s.width + x] = T(0);
  }
  T* __restrict sum = static_cast<T*>(scratch.lines);
  T* __restrict difference = sum + wide;
  for (int64_t y = 0; y < rows; ++y) {
    const T *x_row = planes + y * p.row + left, *y_row = x_row + p.plane;
    for (int64_t x = 0; x < wide; ++x) {
      sum[x] = x_row[x] + T(2) * x_row[p.row + x] + x_row[2 * p.row + x];
      difference[x] = y_row[2 * p.row + x] - y_row[x];
    }
    T* to = grad_image + (3 * n * s.height + first + y) * s.width;
    for (int64_t x = 0; x < s.width; ++x) {
      T grey = (sum[x + 2] - sum[x]) + (difference[x] + T(2) * difference[x + 1] + difference[x + 2]);
      for (int c = 0; c < 3; ++c) to[c * s.height * s.width + x] = T(fold[c]) * grey;
    }
  }
}

template <class T>
void backward_image(const Sizes& s, const T* grad, const double* fold, const T* packed, char* base, T* grad_image,
                    int64_t start, int64_t stop, int n_threads) {
  const Plan p = plan_of<T>(DCFAST_SOBEL_BACKWARD_IMAGE, s);
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
    Scratch scratch;
    int64_t bytes = layout<T>(DCFAST_SOBEL_BACKWARD_IMAGE, s, p, nullptr, &scratch);
    layout<T>(DCFAST_SOBEL_BACKWARD_IMAGE, s, p, base + omp_get_thread_num() * bytes, &scratch);
#pragma omp for schedule(dynamic)
    for (int64_t unit = start; unit < stop; ++unit) {
      image_unit(s, p, grad, fold, packed, scratch, grad_image, unit);
    }
  }
}

// ---- both -------------------------------------------------------------------------------------------------

template <class T>
void plan_all(int pass, const Sizes& s, int64_t* plan) {
  const Plan p = plan_of<T>(pass, s);
  Scratch scratch;
  plan[0] = s.images * p.bands;
  plan[1] = p.packed_bytes;
  plan[2] = layout<T>(pass, s, p, nullptr, &scratch);
  plan[3] = round_up(s.filters, kRows);
  plan[4] = p.panels * panel_width<T>();
}

// Forward: panels of kRows filters, [k][filter]. Image: panels of columns, [filter][k]. Padding is zero.
template <class T>
void pack_all(int pass, const Sizes& s, const T* weight, T* packed) {
  const Plan p = plan_of<T>(pass, s);
  memset(packed, 0, size_t(p.packed_bytes));
  const bool forward = pass == DCFAST_SOBEL_FORWARD;
  for (int64_t o = 0; o < s.filters; ++o) {
    for (int64_t k = 0; k < p.columns; ++k) {
      int64_t at = forward ? (o / kRows * p.columns + k) * kRows + o % kRows
                           : (k / panel_width<T>() * s.filters + o) * panel_width<T>() + k % panel_width<T>();
      packed[at] = weight[o * p.columns + k];
    }
  }
}

}  // namespace

int sobel_conv2d_plan(int pass, int dtype, const Sizes* sizes, int64_t* plan) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    plan_all<T>(pass, *sizes, plan);
  });
}

int sobel_conv2d_pack(int pass, int dtype, const Sizes* sizes, const void* weight, void* packed) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    pack_all(pass, *sizes, static_cast<const T*>(weight), static_cast<T*>(packed));
  });
}

// The dtypes of image and weight that meet: equal, or an image of bytes. CALL sees them as I and T.
#define DCFAST_SOBEL_DISPATCH(CALL)                                      \
  if (dtype == DCFAST_FLOAT32 && image_dtype == DCFAST_FLOAT32) {        \
    typedef float I, T;                                                  \
    CALL;                                                                \
  } else if (dtype == DCFAST_FLOAT32 && image_dtype == DCFAST_UINT8) {   \
    typedef uint8_t I;                                                   \
    typedef float T;                                                     \
    CALL;                                                                \
  } else if (dtype == DCFAST_FLOAT64 && image_dtype == DCFAST_FLOAT64) { \
    typedef double I, T;                                                 \
    CALL;                                                                \
  } else if (dtype == DCFAST_FLOAT64 && image_dtype == DCFAST_UINT8) {   \
    typedef uint8_t I;                                                   \
    typedef double T;                                                    \
    CALL;                                                                \
  } else {                                                               \
    return DCFAST_INVALID_DTYPE;                                         \
  }

int sobel_conv2d(int dtype, int image_dtype, const Sizes* sizes, const void* image, const double* fold,
                 const void* packed, const void* bias, bool relu, void* scratch, void* output, int64_t start,
                 int64_t stop, int n_threads) {
  DCFAST_SOBEL_DISPATCH((forward<I, T>(*sizes, static_cast<const I*>(image), fold, static_cast<const T*>(packed),
                                       static_cast<const T*>(bias), relu, static_cast<char*>(scratch),
                                       static_cast<T*>(output), start, stop, n_threads)))
  return DCFAST_OK;
}

int sobel_conv2d_backward_weight(int dtype, int image_dtype, const Sizes* sizes, const void* image, const double* fold,
                                 const void* grad, void* scratch, void* partial, double* total, int64_t start,
                                 int64_t stop, int n_threads) {
  DCFAST_SOBEL_DISPATCH(
      (backward_weight<I, T>(*sizes, static_cast<const I*>(image), fold, static_cast<const T*>(grad),
                             static_cast<char*>(scratch), static_cast<T*>(partial), total, start, stop, n_threads)))
  return DCFAST_OK;
}

int sobel_conv2d_backward_image(int dtype, const Sizes* sizes, const void* grad, const double* fold, const void* packed,
                                void* scratch, void* grad_image, int64_t start, int64_t stop, int n_threads) {
  char* base = static_cast<char*>(scratch);
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    backward_image(*sizes, static_cast<const T*>(grad), fold, static_cast<const T*>(packed), base,
                   static_cast<T*>(grad_image), start, stop, n_threads);
  });
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
