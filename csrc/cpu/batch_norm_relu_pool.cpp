// Batch normalisation, ReLU and max pooling in two passes over the images forward and two backward. See
// dcfast/ops/batch_norm_relu_pool/__init__.py for the definition.
//
// The floor is memory: one after the other, these ops read and write a map some fifteen times in a training step. Here
// the moments read it once, and so do the pooled output, the sums of the gradient and the gradient, which is written
// too; what passes between forward and backward is a byte per pooled element.
//
// A thread takes whole images, row by row with channels in the lanes: rows of a channels_last map as they lie, of a
// contiguous one through transposed copies of a band of rows in the thread's scratch, in L2.
//
// Sums run over kChunk pixels in the data's type and go on in double, image by image: their order depends on the sizes
// alone.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "dtype.h"
#include "parallel.h"
#include "simd.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

typedef dcfast_pool_sizes Sizes;

constexpr int64_t kChunk = 16;
constexpr int kNone = 255;  // of the positions in a window: no element of it passes the ReLU

// L channels side by side.
template <class T, int L>
struct Lanes {
  typedef T Reals __attribute__((vector_size(L * sizeof(T)), aligned(sizeof(T)), may_alias));
  typedef double Wide __attribute__((vector_size(L * sizeof(double)), aligned(8), may_alias));
  typedef uint8_t Bytes __attribute__((vector_size(L), aligned(1), may_alias));
  typedef decltype(Reals{} < Reals{}) Integers;
  static Reals load(const T* p) { return *reinterpret_cast<const Reals*>(p); }
  static void store(T* p, Reals v) { *reinterpret_cast<Reals*>(p) = v; }
  static void add(double* p, Reals v) { *reinterpret_cast<Wide*>(p) += __builtin_convertvector(v, Wide); }
  // GCC 12 takes conversions from and to bytes apart lane by lane.
  static Integers load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
    if constexpr (L == 16) {
      return (Integers)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
#elif defined(__AVX2__)
    if constexpr (L == 8) {
      return (Integers)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    }
#endif
    return __builtin_convertvector(*reinterpret_cast<const Bytes*>(p), Integers);
  }
  static void store_bytes(uint8_t* p, Integers v) {
#if defined(__AVX512F__)
    if constexpr (L == 16) return _mm512_mask_cvtepi32_storeu_epi8(p, 0xffff, (__m512i)v);
#elif defined(__AVX2__)
    if constexpr (L == 8) {
      const __m256i words = _mm256_packs_epi32((__m256i)v, (__m256i)v);
      const __m256i bytes = _mm256_packus_epi16(words, words);
      const int low = _mm256_extract_epi32(bytes, 0), high = _mm256_extract_epi32(bytes, 4);
      memcpy(p, &low, 4);
      memcpy(p + 4, &high, 4);
      return;
    }
#endif
    *reinterpret_cast<Bytes*>(p) = __builtin_convertvector(v, Bytes);
  }
};

// work(lanes, c) for all channels: whole vectors, then one by one.
template <class T, class Work>
inline __attribute__((always_inline)) void over_channels(int64_t channels, const Work& work) {
  constexpr int kLanes = kVectorBytes / sizeof(T);
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) work(Lanes<T, kLanes>{}, c);
  for (; c < channels; ++c) work(Lanes<T, 1>{}, c);
}

// work(K) for the kernels that networks have, and K = 0 for any other.
template <int K>
struct Kernel {
  static int64_t size(const Sizes& z) { return K > 0 ? K : z.kernel; }
};
template <class Work>
inline __attribute__((always_inline)) void for_kernel(const Sizes& z, const Work& work) {
  if (z.kernel == 1) {
    work(Kernel<1>{});
  } else if (z.kernel == 2) {
    work(Kernel<2>{});
  } else if (z.kernel == 3) {
    work(Kernel<3>{});
  } else {
    work(Kernel<0>{});
  }
}

inline void transpose_block(const float* from, int64_t pitch, float* to, int64_t to_pitch) {
  Quad v[4];
  for (int i = 0; i < 4; ++i) v[i] = *reinterpret_cast<const Quad*>(from + i * pitch);
  transpose_quads(v);
  for (int i = 0; i < 4; ++i) *reinterpret_cast<Quad*>(to + i * to_pitch) = v[i];
}
inline void transpose_block(const double* from, int64_t pitch, double* to, int64_t to_pitch) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) to[j * to_pitch + i] = from[i * pitch + j];
  }
}

// to[j][i] = from[i][j], some columns at a time: what is written of them stays in L1.
template <class T>
void transpose(const T* from, int64_t pitch, int64_t rows, int64_t columns, T* to, int64_t to_pitch) {
  constexpr int64_t kColumns = 64;
  const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (int64_t first = 0; first < whole_columns; first += kColumns) {
    for (int64_t i = 0; i < whole_rows; i += 4) {
      for (int64_t j = first; j < whole_columns && j < first + kColumns; j += 4) {
        transpose_block(from + i * pitch + j, pitch, to + j * to_pitch + i, to_pitch);
      }
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) to[j * to_pitch + i] = from[i * pitch + j];
  }
}

// Rows [first, first + count) of an image, (width, channels) each: where they lie, or copied to `band`.
template <class T>
const T* rows_of(const T* image, const Sizes& z, int64_t first, int64_t count, T* band) {
  if (z.channels_last) return image + first * z.width * z.channels;
  transpose(image + first * z.width, z.height * z.width, z.channels, count * z.width, band, z.channels);
  return band;
}

// Sums take a row channel by channel, in which the processor does not see what comes.
template <class T>
void fetch_row(const Sizes& z, const T* row) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int64_t at = 0; at < z.width * z.channels * int64_t(sizeof(T)); at += 64) __builtin_prefetch(bytes + at);
}

// Of a thread: two bands and a row.
inline int64_t scratch_elements(const Sizes& z) { return ((2 * z.band + 1) * z.width * z.channels + 15) / 16 * 16; }

// Add the sums over j < n of first(j, c) and of first(j, c) second(j, c) to totals (2, channels).
template <class T, class First, class Second>
inline __attribute__((always_inline)) void add_sums(const Sizes& z, int64_t n, double* totals, First first,
                                                    Second second) {
  over_channels<T>(z.channels, [&](auto lanes, int64_t c) {
    typedef decltype(lanes) V;
    for (int64_t start = 0; start < n; start += kChunk) {
      const int64_t stop = n - start < kChunk ? n : start + kChunk;
      typename V::Reals a = {}, b = {};
      for (int64_t j = start; j < stop; ++j) {
        const typename V::Reals value = first(lanes, j, c);
        a += value;
        b += value * second(lanes, j, c);
      }
      V::add(totals + c, a);
      V::add(totals + z.channels + c, b);
    }
  });
}

// totals (2, channels) gain the sums of images [start, stop), whose own are in `partial`, in their order.
inline void add_images(const Sizes& z, const double* partial, int64_t start, int64_t stop, double* totals) {
  for (int64_t image = start; image < stop; ++image) {
    for (int64_t i = 0; i < 2 * z.channels; ++i) totals[i] += partial[image * 2 * z.channels + i];
  }
}

template <class T>
void moments(const Sizes& z, const T* x, const T* pivot, T* scratch, double* partial, double* totals, int64_t start,
             int64_t stop, int n_threads) {
  const int64_t size = z.width * z.channels;
  Turns turns(start, stop);
  on_threads(n_threads, [&](int64_t thread, int64_t) {
    T* band = scratch + thread * scratch_elements(z);
    for (int64_t image; turns.take(&image);) {
      double* sums = partial + image * 2 * z.channels;
      memset(sums, 0, size_t(16 * z.channels));
      for (int64_t first = 0; first < z.height; first += z.band) {
        const int64_t count = z.height - first < z.band ? z.height - first : z.band;
        const T* rows = rows_of(x + image * z.height * size, z, first, count, band);
        for (int64_t i = 0; i < count; ++i) {
          const T* row = rows + i * size;
          fetch_row(z, row + size);
          const auto centred = [&](auto lanes, int64_t j, int64_t c) {
            return lanes.load(row + j * z.channels + c) - lanes.load(pivot + c);
          };
          add_sums<T>(z, z.width, sums, centred, centred);
        }
      }
    }
  });
  add_images(z, partial, start, stop, totals);
}

// One row of the pooled output, whose windows begin with the first of `rows`.
template <class T>
void pool_row(const Sizes& z, const T* rows, const T* scale, const T* shift, T* out, uint8_t* taken) {
  for_kernel(z, [&](auto kernel) {
    const int64_t size = kernel.size(z);
    for (int64_t oj = 0; oj < z.out_w; ++oj) {
      over_channels<T>(z.channels, [&](auto lanes, int64_t c) {
        typedef decltype(lanes) V;
        typedef typename V::Reals Reals;
        typedef typename V::Integers Integers;
        const Reals by = V::load(scale + c), plus = V::load(shift + c);
        Reals best = Reals{} - T(INFINITY);
        Integers position = Integers{} + kNone;
#pragma GCC unroll 3
        for (int64_t a = 0; a < size; ++a) {
#pragma GCC unroll 3
          for (int64_t b = 0; b < size; ++b) {
            const Reals v = V::load(rows + (a * z.width + oj * z.stride + b) * z.channels + c) * by + plus;
            const Integers take = (v > best) | (v != v);  // a NaN stays
            best = take ? v : best;
            position = take ? Integers{} + int(a * size + b) : position;
          }
        }
        const Integers passes = (best > T(0)) | (best != best);
        V::store(out + oj * z.channels + c, passes ? best : Reals{});
        V::store_bytes(taken + oj * z.channels + c, passes ? position : Integers{} + kNone);
      });
    }
  });
}

// For every row of windows of the images [start, stop): work(image, its place in the pooled map, the rows of x that it
// begins with).
template <class T, class Work>
void over_windows(const Sizes& z, const T* x, T* scratch, int64_t start, int64_t stop, int n_threads,
                  const Work& work) {
  const int64_t size = z.width * z.channels, most = (z.band - z.kernel) / z.stride + 1;
  Turns turns(start, stop);
  on_threads(n_threads, [&](int64_t thread, int64_t) {
    T* band = scratch + thread * scratch_elements(z);
    for (int64_t image; turns.take(&image);) {
      for (int64_t first = 0; first < z.out_h; first += most) {
        const int64_t count = z.out_h - first < most ? z.out_h - first : most;
        const T* rows =
            rows_of(x + image * z.height * size, z, first * z.stride, (count - 1) * z.stride + z.kernel, band);
        for (int64_t i = 0; i < count; ++i) {
          work(image, (image * z.out_h + first + i) * z.out_w * z.channels, rows + i * z.stride * size);
        }
      }
    }
  });
}

template <class T>
void pool(const Sizes& z, const T* x, const T* scale, const T* shift, T* scratch, T* out, uint8_t* taken, int64_t start,
          int64_t stop, int n_threads) {
  over_windows(z, x, scratch, start, stop, n_threads,
               [&](int64_t, int64_t at, const T* rows) { pool_row(z, rows, scale, shift, out + at, taken + at); });
}

// Add the sums of a row of windows to totals (2, channels): of the gradients of the elements that were taken, and of
// these times what the elements exceed the mean by.
template <class T>
void add_window_sums(const Sizes& z, const T* grad, const uint8_t* taken, const T* rows, const T* mean,
                     double* totals) {
  for_kernel(z, [&](auto kernel) {
    const int64_t size = kernel.size(z);
    add_sums<T>(
        z, z.out_w, totals,
        [&](auto lanes, int64_t oj, int64_t c) {
          typedef decltype(lanes) V;
          const int64_t at = oj * z.channels + c;
          return V::load_bytes(taken + at) != kNone ? V::load(grad + at) : typename V::Reals{};
        },
        [&](auto lanes, int64_t oj, int64_t c) {
          typedef decltype(lanes) V;
          const typename V::Integers position = V::load_bytes(taken + oj * z.channels + c);
          const T* window = rows + oj * z.stride * z.channels + c;
          typename V::Reals element = V::load(window);
#pragma GCC unroll 3
          for (int64_t a = 0; a < size; ++a) {
#pragma GCC unroll 3
            for (int64_t b = 0; b < size; ++b) {
              const typename V::Reals other = V::load(window + (a * z.width + b) * z.channels);
              element = position == int(a * size + b) ? other : element;
            }
          }
          return element - V::load(mean + c);
        });
  });
}

template <class T>
void gradient_sums(const Sizes& z, const T* grad, const uint8_t* taken, const T* x, const T* mean, T* scratch,
                   double* partial, double* totals, int64_t start, int64_t stop, int n_threads) {
  memset(partial + start * 2 * z.channels, 0, size_t(16 * z.channels * (stop - start)));
  over_windows(z, x, scratch, start, stop, n_threads, [&](int64_t image, int64_t at, const T* rows) {
    for (int64_t a = 0; a < z.kernel; ++a) fetch_row(z, rows + (z.stride + a) * z.width * z.channels);
    add_window_sums(z, grad + at, taken + at, rows, mean, partial + image * 2 * z.channels);
  });
  add_images(z, partial, start, stop, totals);
}

// The gradient of row i of the normalised image: that of every window which took the element. grad and taken are the
// image's.
template <class T>
void gradient_row(const Sizes& z, const T* grad, const uint8_t* taken, int64_t i, T* out) {
  const int64_t first = i < z.kernel ? 0 : (i - z.kernel) / z.stride + 1;
  const int64_t last = i / z.stride < z.out_h ? i / z.stride : z.out_h - 1;
  // Windows side by side write each element once; others add up.
  const bool once = z.stride == z.kernel && z.out_w * z.stride == z.width && first <= last;
  if (!once) memset(out, 0, size_t(z.width * z.channels) * sizeof(T));
  for_kernel(z, [&](auto kernel) {
    const int64_t size = kernel.size(z);
    for (int64_t oi = first; oi <= last; ++oi) {
      for (int64_t oj = 0; oj < z.out_w; ++oj) {
        over_channels<T>(z.channels, [&](auto lanes, int64_t c) {
          typedef decltype(lanes) V;
          const int64_t at = (oi * z.out_w + oj) * z.channels + c;
          const typename V::Integers position = V::load_bytes(taken + at);
          const typename V::Reals gradient = V::load(grad + at);
#pragma GCC unroll 3
          for (int64_t b = 0; b < size; ++b) {
            T* to = out + (oj * z.stride + b) * z.channels + c;
            const typename V::Integers own = position == int((i - oi * z.stride) * size + b);
            const typename V::Reals share = own ? gradient : typename V::Reals{};
            V::store(to, once ? share : V::load(to) + share);
          }
        });
      }
    }
  });
}

template <class T>
void backward(const Sizes& z, const T* grad, const uint8_t* taken, const T* x, const T* mean, const T* factors,
              T* scratch, T* out, int64_t start, int64_t stop, int n_threads) {
  const T *by_gradient = factors, *constant = factors + z.channels, *by_x = factors + 2 * z.channels;
  const int64_t size = z.width * z.channels;
  Turns turns(start, stop);
  on_threads(n_threads, [&](int64_t thread, int64_t) {
    T *band = scratch + thread * scratch_elements(z), *other = band + z.band * size, *gradient = other + z.band * size;
    for (int64_t image; turns.take(&image);) {
      const int64_t pooled = image * z.out_h * z.out_w * z.channels;
      T* own = out + image * z.height * size;
      for (int64_t first = 0; first < z.height; first += z.band) {
        const int64_t count = z.height - first < z.band ? z.height - first : z.band;
        const T* rows = rows_of(x + image * z.height * size, z, first, count, band);
        T* to = z.channels_last ? own + first * size : other;
        for (int64_t i = 0; i < count; ++i) {
          gradient_row(z, grad + pooled, taken + pooled, first + i, gradient);
          for (int64_t j = 0; j < z.width; ++j) {
            over_channels<T>(z.channels, [&](auto lanes, int64_t c) {
              const int64_t at = j * z.channels + c;
              lanes.store(to + i * size + at,
                          lanes.load(by_gradient + c) * lanes.load(gradient + at) - lanes.load(constant + c) -
                              lanes.load(by_x + c) * (lanes.load(rows + i * size + at) - lanes.load(mean + c)));
            });
          }
        }
        if (z.channels_last) continue;
        transpose(other, z.channels, count * z.width, z.channels, own + first * z.width, z.height * z.width);
      }
    }
  });
}

}  // namespace

int batch_moments(int dtype, const Sizes* z, const void* x, const void* pivot, void* scratch, double* partial,
                  double* totals, int64_t start, int64_t stop, int n_threads) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    moments(*z, static_cast<const T*>(x), static_cast<const T*>(pivot), static_cast<T*>(scratch), partial, totals,
            start, stop, n_threads);
  });
}

int batch_norm_relu_pool(int dtype, const Sizes* z, const void* x, const void* scale, const void* shift, void* scratch,
                         void* out, uint8_t* taken, int64_t start, int64_t stop, int n_threads) {
  if (z->kernel * z->kernel > kNone) return DCFAST_OUT_OF_RANGE;
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    pool(*z, static_cast<const T*>(x), static_cast<const T*>(scale), static_cast<const T*>(shift),
         static_cast<T*>(scratch), static_cast<T*>(out), taken, start, stop, n_threads);
  });
}

int batch_norm_relu_pool_sums(int dtype, const Sizes* z, const void* grad, const uint8_t* taken, const void* x,
                              const void* mean, void* scratch, double* partial, double* totals, int64_t start,
                              int64_t stop, int n_threads) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    gradient_sums(*z, static_cast<const T*>(grad), taken, static_cast<const T*>(x), static_cast<const T*>(mean),
                  static_cast<T*>(scratch), partial, totals, start, stop, n_threads);
  });
}

int batch_norm_relu_pool_backward(int dtype, const Sizes* z, const void* grad, const uint8_t* taken, const void* x,
                                  const void* mean, const void* factors, void* scratch, void* out, int64_t start,
                                  int64_t stop, int n_threads) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    backward(*z, static_cast<const T*>(grad), taken, static_cast<const T*>(x), static_cast<const T*>(mean),
             static_cast<const T*>(factors), static_cast<T*>(scratch), static_cast<T*>(out), start, stop, n_threads);
  });
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
