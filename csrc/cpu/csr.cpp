// What k-means does with rows in CSR: the values of the dense ops, from the non-zeros.
//
// Rows are sorted and hold no column twice. D64 of a row and a dense centroid takes all d elements in order, so the row
// is made dense in a thread's scratch, and its non-zeros are taken out again; of two sparse vectors the elements that
// are 0 in both add nothing to it. Zeros add nothing to a sum. Explicit zeros, and -0, are like any other element.
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#include "csr_assign.h"
#include "d64.h"
#include "dtype.h"
#include "float_env.h"
#include "parallel.h"
#include "rows.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

// work(rows) with the types that the caller's numbers name.
template <class Work>
int on_csr(int dtype, bool wide, const int64_t* indptr, const void* indices, const void* values, int64_t n, int64_t d,
           const Work& work) {
  const int64_t* longs = static_cast<const int64_t*>(indices);
  const int32_t* ints = static_cast<const int32_t*>(indices);
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const T* v = static_cast<const T*>(values);
    wide ? work(CsrRows<T, int64_t>{indptr, longs, v, n, d}) : work(CsrRows<T, int32_t>{indptr, ints, v, n, d});
  });
}

// ---- sums -----------------------------------------------------------------------------------------------------------

template <int kWords, bool kJoins, bool kLeaves, class T, class Index>
void move_elements(const CsrRows<T, Index>& r, int64_t row, double w, const double* scale, const Units& u,
                   int64_t* joined, int64_t* left) {
  for (int64_t p = r.indptr[row]; p < r.indptr[row + 1]; ++p) {
    const int64_t i = r.indices[p];
    move_lanes<1, kWords, kJoins, kLeaves>(r.values + p, r.d, w, scale + i, u, joined + i, left + i);
  }
}

template <bool kJoins, bool kLeaves, class T, class Index>
void move_csr_row(const CsrRows<T, Index>& r, int64_t row, double w, const double* scale, const Units& u,
                  int64_t* words, int64_t to, int64_t from) {
  int64_t *joined = words + (kJoins ? to : 0) * u.n_words * r.d, *left = words + (kLeaves ? from : 0) * u.n_words * r.d;
  if (u.n_words == 2) {  // float32 without weights, as a rule
    move_elements<2, kJoins, kLeaves>(r, row, w, scale, u, joined, left);
  } else {
    move_elements<0, kJoins, kLeaves>(r, row, w, scale, u, joined, left);
  }
}

// Threads share the clusters: each looks at all labels, and adds to words that no other touches.
template <class T, class Index>
void csr_accumulate_all(const CsrRows<T, Index>& r, const int64_t* labels, const int64_t* previous, int64_t k,
                        const double* weight, const double* scale, int64_t n_words, int64_t* words, int64_t* counts,
                        int n_threads) {
  const Units units = units_of(n_words);
  on_threads(n_threads, [&](int64_t thread, int64_t threads) {
    for (int64_t row = 0; row < r.n; ++row) {
      int64_t to = labels[row], from = previous[row];
      if (to == from) continue;
      const double w = weight != nullptr ? weight[row] : 1.0;
      if (w == 0.0) continue;
      if (to < 0 || to >= k || to % threads != thread) to = -1;
      if (from < 0 || from >= k || from % threads != thread) from = -1;
      if (to >= 0 && from >= 0) {
        move_csr_row<true, true>(r, row, w, scale, units, words, to, from);
      } else if (to >= 0) {
        move_csr_row<true, false>(r, row, w, scale, units, words, to, from);
      } else if (from >= 0) {
        move_csr_row<false, true>(r, row, w, scale, units, words, to, from);
      }
      if (to >= 0) ++counts[to];
      if (from >= 0) --counts[from];
    }
    for (int64_t cluster = thread; cluster < k; cluster += threads) {
      carry_row(words + cluster * n_words * r.d, n_words, r.d);
    }
  });
}

// Every thread has its own smallest and largest.
template <class T, class Index>
void csr_column_range_all(const CsrRows<T, Index>& r, const double* weight, double* smallest, double* largest,
                          int n_threads) {
  on_threads(n_threads, [&](int64_t thread, int64_t threads) {
    const Part part(r.n, thread, threads);
    double *low = smallest + thread * r.d, *high = largest + thread * r.d;
    for (int64_t row = part.first; row < part.last; ++row) {
      const double w = weight != nullptr ? weight[row] : 1.0;
      for (int64_t p = r.indptr[row]; p < r.indptr[row + 1]; ++p) {
        const int64_t i = r.indices[p];
        const double magnitude = fabs(double(r.values[p]) * w);
        if (!(magnitude > 0.0 && magnitude < INFINITY)) continue;
        low[i] = magnitude < low[i] ? magnitude : low[i];
        high[i] = magnitude > high[i] ? magnitude : high[i];
      }
    }
  });
}

// ---- distances ------------------------------------------------------------------------------------------------------

// D64 of rows with one centroid c: a row in every lane. Where all of them are 0 they have the same term to add, c_i
// c_i, with no element to read; the rows are dense in scratch only in the columns where some are not, one span of them
// at a time. Vectors of accumulators as many as hide the latency of an addition (4 clocks, two begun in each).
constexpr int kGroup = 8;
constexpr int64_t kLanes = kGroup * kDoubles, kSpan = 256;

// scratch: [kSpan][kLanes], zeros before and after.
template <class T, class Index>
void distances_to(const CsrRows<T, Index>& r, const int64_t* rows, int64_t count, const T* c, T* scratch, double* out) {
  typedef T Row __attribute__((vector_size(kDoubles * sizeof(T)), aligned(sizeof(T)), may_alias));
  int64_t at[kLanes], end[kLanes];
  for (int64_t lane = 0; lane < count; ++lane) {
    at[lane] = r.indptr[rows[lane]];
    end[lane] = r.indptr[rows[lane] + 1];
  }
  Doubles acc[kGroup] = {};
  for (int64_t first = 0; first < r.d; first += kSpan) {
    const int64_t last = r.d - first < kSpan ? r.d : first + kSpan;
    uint64_t some[kSpan / 64] = {};  // bit i: a row has an element in column i
    for (int64_t lane = 0; lane < count; ++lane) {
      int64_t p = at[lane];
      for (; p < end[lane] && r.indices[p] < last; ++p) {
        const int64_t i = r.indices[p] - first;
        scratch[i * kLanes + lane] = r.values[p];
        some[i / 64] |= uint64_t(1) << i % 64;
      }
      at[lane] = p;
    }
    for (int64_t start = first; start < last; start += 64) {
      const int64_t stop = last - start < 64 ? last : start + 64;
      uint64_t left = some[(start - first) / 64];
      for (int64_t i = start;;) {
        const int64_t next = left != 0 ? start + __builtin_ctzll(left) : stop;
        for (; i < next; ++i) {
          const Doubles square = broadcast(double(c[i]) * double(c[i]));
#pragma GCC unroll 8
          for (int v = 0; v < kGroup; ++v) acc[v] = acc[v] + square;
        }
        if (i == stop) break;
        const Doubles ci = broadcast(double(c[i]));
        T* x = scratch + (i - first) * kLanes;
#pragma GCC unroll 8
        for (int v = 0; v < kGroup; ++v) {
          Row* here = reinterpret_cast<Row*>(x + v * kDoubles);
          const Doubles t = __builtin_convertvector(*here, Doubles) - ci;
          acc[v] = acc[v] + t * t;
          *here = Row{};
        }
        left &= left - 1;
        ++i;
      }
    }
  }
  for (int64_t lane = 0; lane < count; ++lane) out[rows[lane]] = acc[lane / kDoubles][lane % kDoubles];
}

// The rows order[0, n), which are sorted by label; indptr, labels, weight and out are those of all rows.
template <class T, class Index>
void csr_distances_all(const CsrRows<T, Index>& r, const int64_t* order, const void* centroids, int64_t k,
                       const int64_t* labels, const double* weight, void* scratch, double* out, int n_threads) {
  constexpr int64_t kRowsAtOnce = 8 * kLanes;
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
    T* own = static_cast<T*>(scratch) + omp_get_thread_num() * kSpan * kLanes;
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < r.n; first += kRowsAtOnce) {
      const int64_t last = r.n - first < kRowsAtOnce ? r.n : first + kRowsAtOnce;
      for (int64_t at = first; at < last;) {
        const int64_t label = labels[order[at]];
        int64_t count = 1;
        while (count < kLanes && at + count < last && labels[order[at + count]] == label) ++count;
        if (label >= 0 && label < k) {
          distances_to(r, order + at, count, static_cast<const T*>(centroids) + label * r.d, own, out);
        } else {
          for (int64_t lane = 0; lane < count; ++lane) out[order[at + lane]] = 0.0;
        }
        for (int64_t lane = 0; lane < count && weight != nullptr; ++lane) {
          const int64_t row = order[at + lane];
          out[row] = weight[row] * out[row];
        }
        at += count;
      }
    }
  }
}

// D64 of two sparse vectors, by the union of their columns.
template <class T, class Index>
double d64_union(const T* x, const Index* x_index, int64_t n, const T* c, const int64_t* c_index, int64_t m) {
  double acc = 0.0;
  int64_t p = 0, q = 0;
  while (p < n && q < m) {  // no branch: which vector is next cannot be foreseen
    const int64_t i = x_index[p], j = c_index[q];
    const double t = (i <= j ? double(x[p]) : 0.0) - (j <= i ? double(c[q]) : 0.0);
    acc = acc + t * t;
    p += i <= j;
    q += j <= i;
  }
  for (; p < n; ++p) acc = acc + double(x[p]) * double(x[p]);
  for (; q < m; ++q) acc = acc + double(c[q]) * double(c[q]);
  return acc;
}

typedef double Four __attribute__((vector_size(32), aligned(8), may_alias));

// The candidates as a second CSR, their columns side by side, and their squares.
struct Candidates {
  int64_t count, width;
  const int64_t *indptr, *indices;
  const void* values;
  const double *columns, *squares;  // [d][width], width a multiple of 4; [width]
};

// A row comes no closer to a candidate c than `closest` if w D64 is at least that, which a bound shows for most: with
// n and m non-zeros, v = 2^-53 and S = |x|^2 + |c|^2, computing S - 2 x.c in double costs at most (2 max(n, m) + 16) v
// S, and D64 itself is at most (n + m + 3) v 2 S below the real distance; (n + m + 16) 4 v S and 2^-1070 per element,
// for what underflows, are more than both. Rounding is monotone: RN(w D64) is at least RN(w bound). A NaN shows
// nothing.
template <class T, class Index>
void csr_closer_all(const CsrRows<T, Index>& r, const Candidates& c, const double* weight, const double* closest,
                    double* out, int64_t out_stride, int n_threads) {
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(dynamic, 64)
    for (int64_t row = 0; row < r.n; ++row) {
      const int64_t first = r.indptr[row], n = r.indptr[row + 1] - first;
      const T* x = r.values + first;
      const Index* index = r.indices + first;
      const double w = weight != nullptr ? weight[row] : 1.0;
      for (int64_t at = 0; at < c.count; at += 4) {
        Four dots[2] = {};
        double square = 0.0;
        for (int64_t p = 0; closest != nullptr && p < n; ++p) {
          const double xi = double(x[p]);
          const Four column = *reinterpret_cast<const Four*>(c.columns + int64_t(index[p]) * c.width + at);
          dots[p % 2] = dots[p % 2] + column * xi;
          square = square + xi * xi;
        }
        const Four both = square + *reinterpret_cast<const Four*>(c.squares + at);
        const Four distance = both - 2.0 * (dots[0] + dots[1]);
        for (int64_t lane = 0; lane < 4 && at + lane < c.count; ++lane) {
          const int64_t begin = c.indptr[at + lane], m = c.indptr[at + lane + 1] - begin;
          double* here = out + (at + lane) * out_stride + row;
          const double elements = double(n + m + 16);
          const double bound = distance[lane] - elements * (0x1p-51 * both[lane] + 0x1p-1070);
          if (closest != nullptr && w * bound >= closest[row]) {
            *here = closest[row];
            continue;
          }
          const double own = d64_union(x, index, n, static_cast<const T*>(c.values) + begin, c.indices + begin, m);
          const double value = weight != nullptr ? w * own : own;
          *here = closest != nullptr && closest[row] <= value ? closest[row] : value;
        }
      }
    }
  }
}

}  // namespace

int csr_assign_workspace(int dtype, int64_t k, int64_t d, int64_t* bytes) {
  if (k > INT32_MAX - kFloats) return DCFAST_OUT_OF_RANGE;
  return with_dtype(dtype, [&](auto element) {
    CsrPrepared<decltype(element)> p;
    CsrScratch<decltype(element)> s;
    bytes[0] = csr_layout(k, d, nullptr, &p);
    bytes[1] = csr_scratch(k, d, nullptr, &s);
  });
}

int csr_assign_prepare(int dtype, const void* centroids, int64_t k, int64_t d, void* workspace, int n_threads) {
  char* base = static_cast<char*>(workspace);
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    csr_prepare(static_cast<const T*>(centroids), k, d, base, n_threads);
  });
}

int csr_assign(int dtype, bool wide, const int64_t* indptr, const void* indices, const void* values, int64_t n,
               int64_t d, const void* centroids, int64_t k, const void* workspace, void* scratch, int64_t* labels,
               int64_t* rechecked, int n_threads) {
  char *base = static_cast<char*>(const_cast<void*>(workspace)), *own = static_cast<char*>(scratch);
  return on_csr(dtype, wide, indptr, indices, values, n, d,
                [&](const auto& rows) { csr_assign_all(rows, centroids, k, base, own, labels, rechecked, n_threads); });
}

int csr_accumulate(int dtype, bool wide, const int64_t* indptr, const void* indices, const void* values, int64_t n,
                   int64_t d, const int64_t* labels, const int64_t* previous, int64_t k, const double* weight,
                   const double* scale, int64_t n_words, int64_t* words, int64_t* counts, int n_threads) {
  if (n > (int64_t(1) << 22) || n_words < 1 || n_words > kMaxWords) return DCFAST_OUT_OF_RANGE;
  return on_csr(dtype, wide, indptr, indices, values, n, d, [&](const auto& rows) {
    csr_accumulate_all(rows, labels, previous, k, weight, scale, n_words, words, counts, n_threads);
  });
}

int csr_column_range(int dtype, bool wide, const int64_t* indptr, const void* indices, const void* values, int64_t n,
                     int64_t d, const double* weight, double* smallest, double* largest, int n_threads) {
  return on_csr(dtype, wide, indptr, indices, values, n, d,
                [&](const auto& rows) { csr_column_range_all(rows, weight, smallest, largest, n_threads); });
}

int csr_point_distances(int dtype, bool wide, const int64_t* indptr, const void* indices, const void* values,
                        const int64_t* order, int64_t n, int64_t d, const void* centroids, int64_t k,
                        const int64_t* labels, const double* weight, void* scratch, double* out, int n_threads) {
  return on_csr(dtype, wide, indptr, indices, values, n, d, [&](const auto& rows) {
    csr_distances_all(rows, order, centroids, k, labels, weight, scratch, out, n_threads);
  });
}

int csr_closer(int dtype, bool wide, const int64_t* indptr, const void* indices, const void* values, int64_t n,
               int64_t d, const int64_t* candidate_indptr, const int64_t* candidate_indices,
               const void* candidate_values, int64_t count, int64_t width, const double* columns, const double* squares,
               const double* weight, const double* closest, double* out, int64_t out_stride, int n_threads) {
  const Candidates candidates = {count, width, candidate_indptr, candidate_indices, candidate_values, columns, squares};
  return on_csr(dtype, wide, indptr, indices, values, n, d, [&](const auto& rows) {
    csr_closer_all(rows, candidates, weight, closest, out, out_stride, n_threads);
  });
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
