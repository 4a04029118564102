// Cross-entropy with the weight 1 / size of each class: one pass over the logits forward and one backward, or
// one for both. See dcfast/ops/weighted_cross_entropy/__init__.py for the definition.
//
// A row is read in chunks that stay in the L1 cache: the chunk's maximum first, then the sum of exp(x - m)
// with m the maximum so far; where m grows, what was summed before is rescaled. Lanes sum a chunk's elements / (4
// lanes) in the data's type, chunks and rows are summed in double. The row's result is kept as m and
// log(sum), for their sum would lose the logarithm's digits where logits are large.
//
// Where the gradient is wanted as well, the exponentials are left in the gradient's row, with the maximum that each
// chunk of them is relative to on the stack, and a last loop scales them: exp, nearly all of the work, is done once.
// That row may be the logits' own: a chunk's exponentials take its place when nothing else is read of it.
//
// exp(x) = 2^n exp(r) with n = round(x / ln 2) and |r| <= ln(2) / 2: ln 2 is subtracted in two parts, exp(r)
// is its Taylor polynomial of degree 7 (float: remainder 5e-9) or 13 (double: 4e-18), 2^n is made from the
// bits of n. Below kLowest, where 2^n would leave the normal numbers, the result is 0; NaN stays NaN.
#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#include "dtype.h"
#include "float_env.h"
#include "simd.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr int64_t kChunk = 1024;  // elements, more where a row would have over kChunks chunks
constexpr int64_t kChunks = 64;

// What the elements of a dtype are made of.
template <class T>
struct Format;

template <>
struct Format<float> {
  typedef float Scalar;
  typedef Floats Vector;
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kLanes = kFloats, kMantissa = 23, kDegree = 7;
  static constexpr uint32_t kOne = 0x3F800000;
  static constexpr float kRound = 0x1.8p23f, kLowest = -87.0f, kSmallest = -FLT_MAX;
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
};

template <>
struct Format<double> {
  typedef double Scalar;
  typedef Doubles Vector;
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kLanes = kDoubles, kMantissa = 52, kDegree = 13;
  static constexpr uint64_t kOne = 0x3FF0000000000000;
  static constexpr double kRound = 0x1.8p52, kLowest = -708.0, kSmallest = -DBL_MAX;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
};

// 1 / n! for n = 0, 1, ...
constexpr double kInverseFactorial[] = {
    1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
    1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};

// exp of lanes that are at most about 0.
template <class F>
inline __attribute__((always_inline)) typename F::Vector exponential(typename F::Vector x) {
  typedef typename F::Scalar T;
  typedef typename F::Vector V;
  typedef typename F::Bits B;
  V shifted = fmadd(x, broadcast(T(1.4426950408889634)), broadcast(F::kRound));
  V n = shifted - F::kRound;
  V r = fmadd(n, broadcast(-F::kLn2High), x);
  r = fmadd(n, broadcast(-F::kLn2Low), r);
  V p = broadcast(T(kInverseFactorial[F::kDegree]));
#pragma GCC unroll 16
  for (int i = F::kDegree - 1; i >= 0; --i) p = fmadd(p, r, broadcast(T(kInverseFactorial[i])));
  // The low bits of `shifted` hold n; the shift drops the others.
  V power = (V)(((B)shifted << F::kMantissa) + F::kOne);
  return x < broadcast(F::kLowest) ? V{} : p * power;
}

template <class F>
inline __attribute__((always_inline)) typename F::Vector larger(typename F::Vector a, typename F::Vector b) {
  return a > b ? a : b;  // b where a is NaN: the maximum ignores it, exp(NaN - m) keeps it
}

template <class F>
inline double sum_of_lanes(typename F::Vector v) {
  double sum = 0.0;
  for (int lane = 0; lane < F::kLanes; ++lane) sum += double(v[lane]);
  return sum;
}

// The first n < kLanes elements, `fill` in the other lanes.
template <class F>
inline typename F::Vector load_some(const typename F::Scalar* p, int64_t n, typename F::Scalar fill) {
  typename F::Vector v = broadcast(fill);
  for (int64_t lane = 0; lane < n; ++lane) v[lane] = p[lane];
  return v;
}

template <class F>
inline void store_some(typename F::Scalar* p, int64_t n, typename F::Vector v) {
  for (int64_t lane = 0; lane < n; ++lane) p[lane] = v[lane];
}

template <class F>
inline typename F::Vector weight_of(typename F::Vector size) {
  typedef typename F::Vector V;
  return size > V{} ? broadcast(typename F::Scalar(1)) / size : V{};
}

template <class T>
inline T weight_of_class(T size) {
  return size > T(0) ? T(1) / size : T(0);
}

// The sum of all classes' weights, in order of index and compensated: for float64 its error would be the largest.
template <class F>
double sum_of_weights(const typename F::Scalar* sizes, int64_t k) {
  double sum = 0.0, lost = 0.0;
  for (int64_t j = 0; j < k; ++j) {
    const double term = double(weight_of_class(sizes[j])) - lost, next = sum + term;
    lost = (next - sum) - term;
    sum = next;
  }
  return sum;
}

// What a row comes to: its maximum m, the sum of exp(x_j - m), and with label smoothing that of w_j (x_j -
// m).
struct Row {
  double maximum, exponentials, weighted, weights;
};

template <class F>
typename F::Scalar largest(const typename F::Scalar* x, int64_t n) {
  typedef typename F::Vector V;
  constexpr int kLanes = F::kLanes;
  V m[4];
  for (int i = 0; i < 4; ++i) m[i] = broadcast(F::kSmallest);
  int64_t j = 0;
  for (; j + 4 * kLanes <= n; j += 4 * kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) m[i] = larger<F>(load(x + j + i * kLanes), m[i]);
  }
  for (; j + kLanes <= n; j += kLanes) m[0] = larger<F>(load(x + j), m[0]);
  if (j < n) m[0] = larger<F>(load_some<F>(x + j, n - j, F::kSmallest), m[0]);
  V all = larger<F>(larger<F>(m[0], m[1]), larger<F>(m[2], m[3]));
  typename F::Scalar result = all[0];
  for (int lane = 1; lane < kLanes; ++lane) result = all[lane] > result ? all[lane] : result;
  return result;
}

// Stores the exponentials too, if `kStore`.
template <class F, bool kStore>
double sum_of_exponentials(const typename F::Scalar* x, int64_t n, typename F::Scalar maximum,
                           typename F::Scalar* exponentials) {
  typedef typename F::Vector V;
  constexpr int kLanes = F::kLanes;
  const V m = broadcast(maximum);
  V sum[4] = {};
  int64_t j = 0;
  for (; j + 4 * kLanes <= n; j += 4 * kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const V e = exponential<F>(load(x + j + i * kLanes) - m);
      if (kStore) store(exponentials + j + i * kLanes, e);
      sum[i] += e;
    }
  }
  for (; j + kLanes <= n; j += kLanes) {
    const V e = exponential<F>(load(x + j) - m);
    if (kStore) store(exponentials + j, e);
    sum[0] += e;
  }
  if (j < n) {
    const V e = exponential<F>(load_some<F>(x + j, n - j, -INFINITY) - m);
    if (kStore) store_some<F>(exponentials + j, n - j, e);
    sum[0] += e;
  }
  return sum_of_lanes<F>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class F>
void add_weighted(const typename F::Scalar* x, const typename F::Scalar* sizes, int64_t n, typename F::Scalar maximum,
                  Row* row) {
  typedef typename F::Vector V;
  constexpr int kLanes = F::kLanes;
  const V m = broadcast(maximum);
  V weighted[2] = {}, weights[2] = {};
  int64_t j = 0;
  for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      V w = weight_of<F>(load(sizes + j + i * kLanes));
      weighted[i] = fmadd(w, load(x + j + i * kLanes) - m, weighted[i]);
      weights[i] += w;
    }
  }
  row->weighted += sum_of_lanes<F>(weighted[0]) + sum_of_lanes<F>(weighted[1]);
  row->weights += sum_of_lanes<F>(weights[0]) + sum_of_lanes<F>(weights[1]);
  for (; j < n; ++j) {
    double w = double(weight_of_class(sizes[j]));
    row->weighted += w * double(x[j] - maximum);
    row->weights += w;
  }
}

inline int64_t chunk_of(int64_t k) {
  const int64_t chunk = (k + kChunks - 1) / kChunks;
  return chunk > kChunk ? chunk : kChunk;
}

// The row's exponentials, each relative to the maximum noted for its chunk, go to `exponentials` if kStore.
template <class F, bool kStore>
Row read_row(const typename F::Scalar* x, const typename F::Scalar* sizes, int64_t k, bool smooth,
             typename F::Scalar* exponentials, typename F::Scalar* maxima) {
  // From the smallest finite number, so that a row's first chunk may be all -inf without an inf - inf.
  typename F::Scalar maximum = F::kSmallest;
  Row row = {0.0, 0.0, 0.0, 0.0};
  const int64_t chunk = chunk_of(k);
  for (int64_t start = 0; start < k; start += chunk) {
    const int64_t n = k - start < chunk ? k - start : chunk;
    const typename F::Scalar here = largest<F>(x + start, n);
    if (here > maximum) {
      if (start > 0) {
        const double change = double(maximum) - double(here);
        row.exponentials *= exp(change);
        row.weighted += row.weights * change;
      }
      maximum = here;
    }
    if (kStore) *maxima++ = maximum;
    if (smooth) add_weighted<F>(x + start, sizes + start, n, maximum, &row);
    row.exponentials += sum_of_exponentials<F, kStore>(x + start, n, maximum, kStore ? exponentials + start : nullptr);
  }
  row.maximum = double(maximum);
  return row;
}

// How the gradient of a row is made: g ((1 - s) w_y (p_j - [j = y]) + s / k (W p_j - w_j)) for the row's g, with p
// the softmax and W the sum of all weights.
struct Share {
  double hit, uniform, softmax;  // g (1 - s) w_y, g s / k, and what multiplies p
};

inline Share share_of(double g, double label_smoothing, double weight, double all, int64_t k) {
  const double hit = g * (1.0 - label_smoothing) * weight, uniform = g * label_smoothing / double(k);
  return {hit, uniform, hit + uniform * all};
}

// exponentials *= scale, and with smoothing -= uniform / size.
template <class F>
void scale_chunk(const typename F::Scalar* sizes, int64_t k, typename F::Scalar scale, typename F::Scalar uniform,
                 bool smooth, typename F::Scalar* exponentials) {
  typedef typename F::Vector V;
  constexpr int kLanes = F::kLanes;
  const V a = broadcast(scale), c = broadcast(uniform);
  int64_t j = 0;
  if (smooth) {
    for (; j + kLanes <= k; j += kLanes) {
      store(exponentials + j, a * load(exponentials + j) - c * weight_of<F>(load(sizes + j)));
    }
    for (; j < k; ++j) exponentials[j] = scale * exponentials[j] - uniform * weight_of_class(sizes[j]);
  } else {
    for (; j + kLanes <= k; j += kLanes) store(exponentials + j, a * load(exponentials + j));
    for (; j < k; ++j) exponentials[j] *= scale;
  }
}

template <class F>
void forward(const typename F::Scalar* logits, int64_t row_stride, const int64_t* target,
             const typename F::Scalar* sizes, int64_t n, int64_t k, int64_t ignore_index, double label_smoothing,
             typename F::Scalar* losses, typename F::Scalar* maxima, typename F::Scalar* log_sums, double* sum,
             const typename F::Scalar* row_gradients, int64_t row_gradient_stride, typename F::Scalar* gradient,
             int n_threads) {
  typedef typename F::Scalar T;
  const bool smooth = label_smoothing > 0.0;
  const double all = smooth && gradient ? sum_of_weights<F>(sizes, k) : 0.0;
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      T* out = gradient ? gradient + i * k : nullptr;
      if (target[i] == ignore_index) {
        losses[i] = maxima[i] = log_sums[i] = T(0);
        if (out) memset(out, 0, size_t(k) * sizeof(T));
        continue;
      }
      const T* x = logits + i * row_stride;
      const double hit = double(x[target[i]]);
      T chunk_maxima[kChunks];
      const Row row = out ? read_row<F, true>(x, sizes, k, smooth, out, chunk_maxima)
                          : read_row<F, false>(x, sizes, k, smooth, nullptr, nullptr);
      const double log_sum = log(row.exponentials);
      const double weight = double(weight_of_class(sizes[target[i]]));
      double loss = weight * ((row.maximum - hit) + log_sum);
      if (smooth) {
        const double all_losses = row.weights * log_sum - row.weighted;
        loss = (1.0 - label_smoothing) * loss + label_smoothing / double(k) * all_losses;
      }
      losses[i] = T(loss);
      maxima[i] = T(row.maximum);
      log_sums[i] = T(log_sum);
      if (out) {
        const double g = double(row_gradients[i * row_gradient_stride]);
        const Share share = share_of(g, label_smoothing, weight, all, k);
        const int64_t chunk = chunk_of(k);
        for (int64_t start = 0, c = 0; start < k; start += chunk, ++c) {
          const double scale = share.softmax / row.exponentials * exp(double(chunk_maxima[c]) - row.maximum);
          scale_chunk<F>(sizes + start, k - start < chunk ? k - start : chunk, T(scale), T(share.uniform), smooth,
                         out + start);
        }
        out[target[i]] -= T(share.hit);
      }
    }
  }
  // In order of row, whatever the threads did.
  for (int64_t i = 0; i < n; ++i) *sum += double(losses[i]);
}

// The sum of the targets' weights, in order of row.
template <class T>
double sum_of_target_weights(const int64_t* target, const T* sizes, int64_t n, int64_t k, int64_t ignore_index) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    if (target[i] == ignore_index) continue;
    sum += target[i] >= 0 && target[i] < k ? double(weight_of_class(sizes[target[i]])) : double(NAN);
  }
  return sum;
}

template <class F>
void write_gradient(const typename F::Scalar* x, const typename F::Scalar* sizes, int64_t k, typename F::Scalar maximum,
                    typename F::Scalar log_sum, typename F::Scalar softmax, typename F::Scalar uniform, bool smooth,
                    typename F::Scalar* gradient) {
  typedef typename F::Scalar T;
  typedef typename F::Vector V;
  constexpr int kLanes = F::kLanes;
  const V m = broadcast(maximum), l = broadcast(log_sum), a = broadcast(softmax), c = broadcast(uniform);
  auto some = [&](V logit, V size) {
    V g = a * exponential<F>((logit - m) - l);
    return smooth ? g - c * weight_of<F>(size) : g;
  };
  int64_t j = 0;
  if (!smooth) {
    for (; j + 4 * kLanes <= k; j += 4 * kLanes) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        store(gradient + j + i * kLanes, a * exponential<F>((load(x + j + i * kLanes) - m) - l));
      }
    }
  }
  for (; j + kLanes <= k; j += kLanes) store(gradient + j, some(load(x + j), load(sizes + j)));
  if (j < k) {
    store_some<F>(gradient + j, k - j, some(load_some<F>(x + j, k - j, T(0)), load_some<F>(sizes + j, k - j, T(1))));
  }
}

template <class F>
void backward(const typename F::Scalar* logits, int64_t row_stride, const int64_t* target,
              const typename F::Scalar* sizes, int64_t n, int64_t k, int64_t ignore_index, double label_smoothing,
              const typename F::Scalar* row_gradients, int64_t row_gradient_stride, const typename F::Scalar* maxima,
              const typename F::Scalar* log_sums, typename F::Scalar* gradient, int n_threads) {
  typedef typename F::Scalar T;
  const bool smooth = label_smoothing > 0.0;
  const double all = smooth ? sum_of_weights<F>(sizes, k) : 0.0;
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      T* out = gradient + i * k;
      if (target[i] == ignore_index) {
        memset(out, 0, size_t(k) * sizeof(T));
        continue;
      }
      const Share share = share_of(double(row_gradients[i * row_gradient_stride]), label_smoothing,
                                   double(weight_of_class(sizes[target[i]])), all, k);
      write_gradient<F>(logits + i * row_stride, sizes, k, maxima[i], log_sums[i], T(share.softmax), T(share.uniform),
                        smooth, out);
      out[target[i]] -= T(share.hit);
    }
  }
}

}  // namespace

int weighted_cross_entropy_total(int dtype, const int64_t* target, const void* sizes, int64_t n, int64_t k,
                                 int64_t ignore_index, double* total) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    *total = sum_of_target_weights(target, static_cast<const T*>(sizes), n, k, ignore_index);
  });
}

int weighted_cross_entropy(int dtype, const void* logits, int64_t row_stride, const int64_t* target, const void* sizes,
                           int64_t n, int64_t k, int64_t ignore_index, double label_smoothing, void* losses,
                           void* maxima, void* log_sums, double* sum, const void* row_gradients,
                           int64_t row_gradient_stride, void* gradient, int n_threads) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    forward<Format<T>>(static_cast<const T*>(logits), row_stride, target, static_cast<const T*>(sizes), n, k,
                       ignore_index, label_smoothing, static_cast<T*>(losses), static_cast<T*>(maxima),
                       static_cast<T*>(log_sums), sum, static_cast<const T*>(row_gradients), row_gradient_stride,
                       static_cast<T*>(gradient), n_threads);
  });
}

int weighted_cross_entropy_backward(int dtype, const void* logits, int64_t row_stride, const int64_t* target,
                                    const void* sizes, int64_t n, int64_t k, int64_t ignore_index,
                                    double label_smoothing, const void* row_gradients, int64_t row_gradient_stride,
                                    const void* maxima, const void* log_sums, void* gradient, int n_threads) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    backward<Format<T>>(static_cast<const T*>(logits), row_stride, target, static_cast<const T*>(sizes), n, k,
                        ignore_index, label_smoothing, static_cast<const T*>(row_gradients), row_gradient_stride,
                        static_cast<const T*>(maxima), static_cast<const T*>(log_sums), static_cast<T*>(gradient),
                        n_threads);
  });
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
