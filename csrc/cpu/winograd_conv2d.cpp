// 3 x 3 convolutions of stride 1 and padding 1 by Winograd's algorithm F(4 x 4, 3 x 3). See
// dcfast/ops/winograd_conv2d/__init__.py for the definition.
//
// A tile of 4 x 4 outputs is A^T [(G g G^T) * (B^T d B)] A of a filter g and the 6 x 6 inputs d, where * multiplies
// element by element: 36 products in place of 144. Summed over the channels, each of the 36 is a product of matrices,
// (tiles x channels) by (channels x filters), and these take nearly all the time. The gradient of the input is such a
// convolution too, of the output's gradient by the filters turned round; that of the filters is the transposed map,
// G^T [(B^T d B) * (A e A^T)] G summed over the tiles e of the output's gradient.
//
// The points are 0, 5/8, -5/8, 3/2, -3/2 and infinity: their powers are exact in float32, and the error measured on
// normal numbers is a third of that of the usual 0, 1, -1, 2, -2, and twice that of adding up in order.
//
// Tiles are worked off in chunks that stay in the caches: their transforms, in L2 and L3, never reach memory.
#include <stdint.h>
#include <string.h>

#include "dtype.h"
#include "parallel.h"
#include "simd.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

typedef dcfast_winograd_sizes Sizes;

constexpr int kTile = 4;   // outputs along a side
constexpr int kPatch = 6;  // inputs along a side
constexpr int kPlanes = 36;

// a^2 and b^2 of the points +-a and +-b.
constexpr double kA = 0.625, kB = 1.5, kA2 = kA * kA, kB2 = kB * kB;

template <class T>
struct Simd;
template <>
struct Simd<float> {
  typedef Floats Reals;
};
template <>
struct Simd<double> {
  typedef Doubles Reals;
};

// Columns of a panel of filters, a cache line; with the rows of a tile of the product they fill 12 registers.
template <class T>
constexpr int64_t kPanel = 64 / int64_t(sizeof(T));
constexpr int kVectors = 64 / kVectorBytes;
constexpr int kRows = 12 / kVectors;

template <class T>
int64_t panels(int64_t columns) {
  return (columns + kPanel<T> - 1) / kPanel<T>;
}

// Elements from row to row of a matrix: an odd number of cache lines, so that a column does not fall into few sets.
template <class T>
int64_t pitch(int64_t columns) {
  return (panels<T>(columns) | 1) * kPanel<T>;
}

// From one of the 36 matrices to the next, for the same reason.
template <class T>
int64_t plane(int64_t rows, int64_t columns) {
  return rows * pitch<T>(columns) + kPanel<T>;
}

// Where the tiles lie.
struct Tiles {
  int64_t high, wide, count;
  explicit Tiles(const Sizes& z)
      : high((z.height + kTile - 1) / kTile), wide((z.width + kTile - 1) / kTile), count(z.images * high * wide) {}
  // The first output of a tile.
  void place(int64_t tile, int64_t* image, int64_t* row, int64_t* column) const {
    *column = tile % wide * kTile;
    *row = tile / wide % high * kTile;
    *image = tile / wide / high;
  }
};

template <class T>
typename Simd<T>::Reals load_some(const T* p, int64_t n) {
  typename Simd<T>::Reals v = {};
  memcpy(&v, p, size_t(n) * sizeof(T));
  return v;
}
template <class T>
void store_some(T* p, typename Simd<T>::Reals v, int64_t n) {
  memcpy(p, &v, size_t(n) * sizeof(T));
}

// work(load, store, c) for all channels, a vector at a time; of the last as many lanes as there are channels.
template <class T, class Work>
inline __attribute__((always_inline)) void over_channels(int64_t channels, const Work& work) {
  typedef typename Simd<T>::Reals Reals;
  constexpr int64_t kLanes = kVectorBytes / int64_t(sizeof(T));
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    work([](const T* p) { return load(p); }, [](T* p, Reals v) { store(p, v); }, c);
  }
  if (const int64_t left = channels - c) {
    work([left](const T* p) { return load_some(p, left); }, [left](T* p, Reals v) { store_some(p, v, left); }, c);
  }
}

// B^T d, along one side.
template <class T, class Reals>
inline __attribute__((always_inline)) void transform_input(const Reals d[6], Reals v[6]) {
  const Reals minus_a2 = broadcast(T(-kA2)), minus_b2 = broadcast(T(-kB2)), minus_sum = broadcast(T(-kA2 - kB2));
  const Reals even_a = fmadd(minus_b2, d[2], d[4]), odd_a = fmadd(minus_b2, d[1], d[3]);
  const Reals even_b = fmadd(minus_a2, d[2], d[4]), odd_b = fmadd(minus_a2, d[1], d[3]);
  v[0] = fmadd(broadcast(T(kA2 * kB2)), d[0], fmadd(minus_sum, d[2], d[4]));
  v[1] = fmadd(broadcast(T(kA)), odd_a, even_a);
  v[2] = fmadd(broadcast(T(-kA)), odd_a, even_a);
  v[3] = fmadd(broadcast(T(kB)), odd_b, even_b);
  v[4] = fmadd(broadcast(T(-kB)), odd_b, even_b);
  v[5] = fmadd(broadcast(T(kA2 * kB2)), d[1], fmadd(minus_sum, d[3], d[5]));
}

// A^T m.
template <class T, class Reals>
inline __attribute__((always_inline)) void transform_output(const Reals m[6], Reals y[4]) {
  const Reals even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + (even_a + even_b);
  y[1] = fmadd(broadcast(T(kB)), odd_b, broadcast(T(kA)) * odd_a);
  y[2] = fmadd(broadcast(T(kB2)), even_b, broadcast(T(kA2)) * even_a);
  y[3] = fmadd(broadcast(T(kB2 * kB)), odd_b, fmadd(broadcast(T(kA2 * kA)), odd_a, m[5]));
}

// A e.
template <class T, class Reals>
inline __attribute__((always_inline)) void transform_gradient(const Reals e[4], Reals m[6]) {
  const Reals even_a = fmadd(broadcast(T(kA2)), e[2], e[0]), even_b = fmadd(broadcast(T(kB2)), e[2], e[0]);
  const Reals odd_a = fmadd(broadcast(T(kA2)), e[3], e[1]), odd_b = fmadd(broadcast(T(kB2)), e[3], e[1]);
  m[0] = e[0];
  m[1] = fmadd(broadcast(T(kA)), odd_a, even_a);
  m[2] = fmadd(broadcast(T(-kA)), odd_a, even_a);
  m[3] = fmadd(broadcast(T(kB)), odd_b, even_b);
  m[4] = fmadd(broadcast(T(-kB)), odd_b, even_b);
  m[5] = e[3];
}

// G: the rows but the last are 1, p, p^2 over the product of p - q for the other points q.
struct Powers {
  double of[kPatch][3] = {};
  Powers() {
    const double points[5] = {0.0, kA, -kA, kB, -kB};
    for (int i = 0; i < 5; ++i) {
      double divisor = 1.0, power = 1.0;
      for (int j = 0; j < 5; ++j) divisor *= i == j ? 1.0 : points[i] - points[j];
      for (int k = 0; k < 3; ++k, power *= points[i]) of[i][k] = power / divisor;
    }
    of[5][2] = 1.0;
  }
};

// filters (36, panels, in, kPanel): G g G^T of weight (out, in, 3, 3), in double and rounded once.
template <class T>
void transform_filters(const Sizes& z, const T* weight, T* filters, int n_threads) {
  const int64_t n_in = z.in_channels, n_out = z.out_channels, n_panels = panels<T>(n_out);
  const Powers g;
  on_threads(n_threads, [&](int64_t thread, int64_t threads) {
    const Part part(n_panels * n_in, thread, threads);
    for (int64_t unit = part.first; unit < part.last; ++unit) {
      const int64_t panel = unit / n_in, c = unit % n_in;
      double taps[3][3][kPanel<T>] = {}, half[kPatch][3][kPanel<T>];
      for (int64_t o = 0; o < kPanel<T> && panel * kPanel<T> + o < n_out; ++o) {
        const T* from = weight + ((panel * kPanel<T> + o) * n_in + c) * 9;
        for (int k = 0; k < 9; ++k) taps[k / 3][k % 3][o] = double(from[k]);
      }
      for (int i = 0; i < kPatch; ++i) {
        for (int j = 0; j < 3; ++j) {
          for (int o = 0; o < kPanel<T>; ++o) {
            half[i][j][o] = g.of[i][0] * taps[0][j][o] + g.of[i][1] * taps[1][j][o] + g.of[i][2] * taps[2][j][o];
          }
        }
      }
      for (int i = 0; i < kPatch; ++i) {
        for (int j = 0; j < kPatch; ++j) {
          T* to = filters + (((i * kPatch + j) * n_panels + panel) * n_in + c) * kPanel<T>;
          for (int o = 0; o < kPanel<T>; ++o) {
            to[o] = T(g.of[j][0] * half[i][0][o] + g.of[j][1] * half[i][1][o] + g.of[j][2] * half[i][2][o]);
          }
        }
      }
    }
  });
}

// planes (36, tiles, pitch(channels)) of the tiles [first, last) of maps (images, height, width, channels): what
// `along` makes of the kSide x kSide pixels around each tile, along either side. `zeros` holds a pixel of the padding.
template <class T, int kSide, class Along>
void transform_patches(const Sizes& z, int64_t channels, const T* maps, int64_t first, int64_t last, const T* zeros,
                       T* planes, const Along& along) {
  typedef typename Simd<T>::Reals Reals;
  constexpr int64_t kMargin = (kSide - kTile) / 2;
  const Tiles tiles(z);
  const int64_t size = plane<T>(z.chunk, channels);
  for (int64_t tile = first; tile < last; ++tile) {
    int64_t image, row, column;
    tiles.place(tile, &image, &row, &column);
    const T* pixels[kSide][kSide];
    for (int i = 0; i < kSide; ++i) {
      for (int j = 0; j < kSide; ++j) {
        const int64_t y = row + i - kMargin, x = column + j - kMargin;
        const bool inside = y >= 0 && y < z.height && x >= 0 && x < z.width;
        pixels[i][j] = inside ? maps + ((image * z.height + y) * z.width + x) * channels : zeros;
      }
    }
    T* to = planes + tile % z.chunk * pitch<T>(channels);
    over_channels<T>(channels, [&](auto take, auto, int64_t c) {
      // What the next tile adds: pixels of many channels are too far apart for the processor to see it coming.
      for (int i = 0; i < kSide; ++i) {
        for (int j = kSide - kTile; j < kSide; ++j) __builtin_prefetch(pixels[i][j] + kTile * channels + c);
      }
      Reals half[kSide][kPatch];  // [column][row]
#pragma GCC unroll 6
      for (int j = 0; j < kSide; ++j) {
        Reals d[kSide];
#pragma GCC unroll 6
        for (int i = 0; i < kSide; ++i) d[i] = take(pixels[i][j] + c);
        along(d, half[j]);
      }
#pragma GCC unroll 6
      for (int i = 0; i < kPatch; ++i) {
        Reals d[kSide], v[kPatch];
#pragma GCC unroll 6
        for (int j = 0; j < kSide; ++j) d[j] = half[j][i];
        along(d, v);
#pragma GCC unroll 6
        for (int j = 0; j < kPatch; ++j) store(to + (i * kPatch + j) * size + c, v[j]);
      }
    });
  }
}

// B^T d B of the inputs d of each tile.
template <class T>
void transform_inputs(const Sizes& z, const T* x, int64_t first, int64_t last, const T* zeros, T* inputs) {
  typedef typename Simd<T>::Reals Reals;
  transform_patches<T, kPatch>(z, z.in_channels, x, first, last, zeros, inputs,
                               [](const Reals* d, Reals* v) { transform_input<T>(d, v); });
}

// A e A^T of the gradients e of each tile's outputs.
template <class T>
void transform_gradients(const Sizes& z, const T* grad, int64_t first, int64_t last, const T* zeros, T* gradients) {
  typedef typename Simd<T>::Reals Reals;
  transform_patches<T, kTile>(z, z.out_channels, grad, first, last, zeros, gradients,
                              [](const Reals* e, Reals* m) { transform_gradient<T>(e, m); });
}

// The tiles [first, last) of out (images, height, width, filters) = A^T m A + bias.
template <class T>
void transform_outputs(const Sizes& z, const T* sums, int64_t first, int64_t last, const T* bias, T* out) {
  typedef typename Simd<T>::Reals Reals;
  const Tiles tiles(z);
  const int64_t filters = z.out_channels, size = plane<T>(z.chunk, filters);
  for (int64_t tile = first; tile < last; ++tile) {
    int64_t image, row, column;
    tiles.place(tile, &image, &row, &column);
    const int64_t high = z.height - row < kTile ? z.height - row : kTile;
    const int64_t wide = z.width - column < kTile ? z.width - column : kTile;
    const T* from = sums + tile % z.chunk * pitch<T>(filters);
    T* to = out + ((image * z.height + row) * z.width + column) * filters;
    over_channels<T>(filters, [&](auto take, auto put, int64_t c) {
      Reals half[kPatch][kTile];
#pragma GCC unroll 6
      for (int i = 0; i < kPatch; ++i) {
        Reals m[kPatch];
#pragma GCC unroll 6
        for (int j = 0; j < kPatch; ++j) m[j] = load(from + (i * kPatch + j) * size + c);
        transform_output<T>(m, half[i]);
      }
      const Reals plus = bias == nullptr ? Reals{} : take(bias + c);
#pragma GCC unroll 4
      for (int j = 0; j < kTile; ++j) {
        Reals m[kPatch], y[kTile];
#pragma GCC unroll 6
        for (int i = 0; i < kPatch; ++i) m[i] = half[i][j];
        transform_output<T>(m, y);
        if (j >= wide) continue;
#pragma GCC unroll 4
        for (int i = 0; i < kTile; ++i) {
          if (i < high) put(to + (i * z.width + j) * filters + c, y[i] + plus);
        }
      }
    });
  }
}

// c (R, kPanel) = the sum over k < depth of a[r][k] b[k][:], or what it was and the sum.
template <class T, int R, bool Add>
void product(int64_t depth, const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_step, T* c,
             int64_t c_row) {
  typedef typename Simd<T>::Reals Reals;
  constexpr int64_t kLanes = kVectorBytes / int64_t(sizeof(T));
  // Every loop over these is unrolled, or they would go through memory.
  Reals sums[R][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Reals row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = load(b + v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const Reals factor = broadcast(a[r * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = fmadd(factor, row[v], sums[r][v]);
    }
    a += a_step;
    b += b_step;
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      T* to = c + r * c_row + v * kLanes;
      store(to, Add ? load(to) + sums[r][v] : sums[r][v]);
    }
  }
}

// The same for n rows.
template <class T, bool Add, int R = kRows>
void products(int64_t n, int64_t depth, const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_step, T* c,
              int64_t c_row) {
  int64_t first = 0;
  for (; first + R <= n; first += R) {
    product<T, R, Add>(depth, a + first * a_row, a_row, a_step, b, b_step, c + first * c_row, c_row);
  }
  if constexpr (R > 1) {
    if (first < n) {
      products<T, Add, R - 1>(n - first, depth, a + first * a_row, a_row, a_step, b, b_step, c + first * c_row, c_row);
    }
  }
}

template <class T>
int64_t inputs_size(const Sizes& z) {
  return kPlanes * plane<T>(z.chunk, z.in_channels);
}
template <class T>
int64_t outputs_size(const Sizes& z) {
  return kPlanes * plane<T>(z.chunk, z.out_channels);
}
template <class T>
int64_t zeros_size(const Sizes& z) {
  return pitch<T>(z.in_channels > z.out_channels ? z.in_channels : z.out_channels);
}

template <class T>
void convolve(const Sizes& z, const T* x, const T* filters, const T* bias, T* scratch, T* out, int64_t start,
              int64_t stop, int n_threads) {
  const int64_t n_tiles = Tiles(z).count, n_panels = panels<T>(z.out_channels);
  const int64_t from_row = pitch<T>(z.in_channels), to_row = pitch<T>(z.out_channels);
  Turns turns(start, stop);
  on_threads(n_threads, [&](int64_t thread, int64_t) {
    T* inputs = scratch + thread * (inputs_size<T>(z) + outputs_size<T>(z) + zeros_size<T>(z));
    T *sums = inputs + inputs_size<T>(z), *zeros = sums + outputs_size<T>(z);
    memset(zeros, 0, size_t(zeros_size<T>(z)) * sizeof(T));
    for (int64_t chunk; turns.take(&chunk);) {
      const int64_t first = chunk * z.chunk, last = first + z.chunk < n_tiles ? first + z.chunk : n_tiles;
      transform_inputs(z, x, first, last, zeros, inputs);
      for (int64_t i = 0; i < kPlanes; ++i) {
        const T* from = inputs + i * plane<T>(z.chunk, z.in_channels);
        T* to = sums + i * plane<T>(z.chunk, z.out_channels);
        for (int64_t panel = 0; panel < n_panels; ++panel) {
          products<T, false>(last - first, z.in_channels, from, from_row, 1,
                             filters + (i * n_panels + panel) * z.in_channels * kPanel<T>, kPanel<T>,
                             to + panel * kPanel<T>, to_row);
        }
      }
      transform_outputs(z, sums, first, last, bias, out);
    }
  });
}

// totals (36, in, pitch(out)) gain the products of the chunks [start, stop), chunk by chunk.
template <class T>
void add_products(const Sizes& z, const T* x, const T* grad, T* scratch, T* totals, int64_t start, int64_t stop,
                  int n_threads) {
  const int64_t n_tiles = Tiles(z).count, n_panels = panels<T>(z.out_channels);
  const int64_t from_row = pitch<T>(z.in_channels), to_row = pitch<T>(z.out_channels);
  T *inputs = scratch, *gradients = inputs + inputs_size<T>(z), *zeros = gradients + outputs_size<T>(z);
  memset(zeros, 0, size_t(zeros_size<T>(z)) * sizeof(T));
  for (int64_t chunk = start; chunk < stop; ++chunk) {
    const int64_t first = chunk * z.chunk, last = first + z.chunk < n_tiles ? first + z.chunk : n_tiles;
    on_threads(n_threads, [&](int64_t thread, int64_t threads) {
      const Part part(last - first, thread, threads);
      transform_inputs(z, x, first + part.first, first + part.last, zeros, inputs);
      transform_gradients(z, grad, first + part.first, first + part.last, zeros, gradients);
    });
    // No turns here: what a thread adds to is in its L2 from the chunk before.
    on_threads(n_threads, [&](int64_t thread, int64_t threads) {
      const Part part(kPlanes * n_panels, thread, threads);
      for (int64_t unit = part.first; unit < part.last; ++unit) {
        const int64_t i = unit / n_panels, column = unit % n_panels * kPanel<T>;
        products<T, true>(z.in_channels, last - first, inputs + i * plane<T>(z.chunk, z.in_channels), 1, from_row,
                          gradients + i * plane<T>(z.chunk, z.out_channels) + column, to_row,
                          totals + i * z.in_channels * to_row + column, to_row);
      }
    });
  }
}

// weight (out, in, 3, 3) = G^T totals G, in double and rounded once.
template <class T>
void transform_totals(const Sizes& z, const T* totals, T* weight, int n_threads) {
  const int64_t n_in = z.in_channels, n_out = z.out_channels, n_panels = panels<T>(n_out);
  const int64_t row = pitch<T>(n_out), size = n_in * row;
  const Powers g;
  on_threads(n_threads, [&](int64_t thread, int64_t threads) {
    const Part part(n_in * n_panels, thread, threads);
    for (int64_t unit = part.first; unit < part.last; ++unit) {
      const int64_t c = unit / n_panels, first = unit % n_panels * kPanel<T>;
      const int64_t count = n_out - first < kPanel<T> ? n_out - first : kPanel<T>;
      double half[3][kPatch][kPanel<T>] = {}, taps[9][kPanel<T>] = {};
      for (int i = 0; i < kPatch; ++i) {
        for (int j = 0; j < kPatch; ++j) {
          const T* from = totals + (i * kPatch + j) * size + c * row + first;
          for (int k = 0; k < 3; ++k) {
            for (int o = 0; o < kPanel<T>; ++o) half[k][j][o] += g.of[i][k] * double(from[o]);
          }
        }
      }
      for (int k = 0; k < 9; ++k) {
        for (int j = 0; j < kPatch; ++j) {
          for (int o = 0; o < kPanel<T>; ++o) taps[k][o] += g.of[j][k % 3] * half[k / 3][j][o];
        }
      }
      for (int64_t o = 0; o < count; ++o) {
        for (int k = 0; k < 9; ++k) weight[((first + o) * n_in + c) * 9 + k] = T(taps[k][o]);
      }
    }
  });
}

}  // namespace

int winograd_conv2d_plan(int dtype, const Sizes* z, int64_t* plan) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    plan[0] = (Tiles(*z).count + z->chunk - 1) / z->chunk;
    plan[1] = kPlanes * panels<T>(z->out_channels) * z->in_channels * kPanel<T>;
    plan[2] = inputs_size<T>(*z) + outputs_size<T>(*z) + zeros_size<T>(*z);
    plan[3] = kPlanes * z->in_channels * pitch<T>(z->out_channels);
  });
}

int winograd_conv2d_filters(int dtype, const Sizes* z, const void* weight, void* filters, int n_threads) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    transform_filters(*z, static_cast<const T*>(weight), static_cast<T*>(filters), n_threads);
  });
}

int winograd_conv2d(int dtype, const Sizes* z, const void* x, const void* filters, const void* bias, void* scratch,
                    void* out, int64_t start, int64_t stop, int n_threads) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    convolve(*z, static_cast<const T*>(x), static_cast<const T*>(filters), static_cast<const T*>(bias),
             static_cast<T*>(scratch), static_cast<T*>(out), start, stop, n_threads);
  });
}

int winograd_conv2d_products(int dtype, const Sizes* z, const void* x, const void* grad, void* scratch, void* totals,
                             int64_t start, int64_t stop, int n_threads) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    add_products(*z, static_cast<const T*>(x), static_cast<const T*>(grad), static_cast<T*>(scratch),
                 static_cast<T*>(totals), start, stop, n_threads);
  });
}

int winograd_conv2d_weight(int dtype, const Sizes* z, const void* totals, void* weight, int n_threads) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    transform_totals(*z, static_cast<const T*>(totals), static_cast<T*>(weight), n_threads);
  });
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
