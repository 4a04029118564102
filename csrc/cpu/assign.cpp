// Labels of the nearest centroids: a pass whose error is bounded per score, and a recheck in double of the rows that
// the bound cannot decide. See dcfast/ops/assign/__init__.py for the definition of a label, assign_prepare.h for the
// bound, assign_narrow.h and assign_wide.h for the two passes, assign_block.h for what the wide one leaves out,
// assign_bytes.h for its faster form where labels are known, assign_grid.h for lattices, and assign_few.h for a few
// centroids.
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>

#include "assign_block.h"
#include "assign_bytes.h"
#include "assign_few.h"
#include "assign_grid.h"
#include "assign_narrow.h"
#include "assign_prepare.h"
#include "dtype.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

// m: any common vector is valid; the mean of the centroids makes the norms, and with them the bounds, small.
template <class T>
void find_shift(const T* c, int64_t live, int64_t d, const int64_t* distinct, const Prepared<T>& p, int n_threads) {
  constexpr int64_t kColumns = 64;
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t first = 0; first < d; first += kColumns) {
      const int64_t count = d - first < kColumns ? d - first : kColumns;
      double mean[kColumns] = {};
      for (int64_t j = 0; j < live; ++j) {
        const T* row = c + distinct[j] * d + first;
        for (int64_t i = 0; i < count; ++i) mean[i] += double(row[i]) / double(live);
      }
      for (int64_t i = 0; i < count; ++i) p.shift[first + i] = fabs(mean[i]) <= 1e300 ? T(mean[i]) : T(0);
    }
  }
}

template <class T>
void find_scale(const T* c, int64_t live, int64_t d, const int64_t* distinct, const Prepared<T>& p, int n_threads) {
  double largest = 0.0;
#pragma omp parallel num_threads(n_threads) reduction(max : largest)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t j = 0; j < live; ++j) largest = fmax(largest, largest_of(c + distinct[j] * d, d, 1, d, p.shift));
  }
  set_scale(largest, d, p);
}

// Every position of the wide pass: live centroids in their groups, padding after them.
template <class T>
void pack_all(const T* c, int64_t live, int64_t d, const Prepared<T>& p, int n_threads) {
  const Groups& g = p.groups;
  for (int64_t panel = 0; panel < g.panels; ++panel) {
    const int64_t first = panel % g.stride * kPanel, group = panel / g.stride;
    const int64_t in_group = live - group * g.size < g.size ? live - group * g.size : g.size;
    const int64_t left = in_group - first;
    p.used[panel] = int32_t(left < 0 ? 0 : left < kPanel ? left : kPanel);
  }
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < g.panels; ++panel) {
      const int64_t first = panel / g.stride * g.size + panel % g.stride * kPanel;
      for (int64_t lane = 0; lane < kPanel; ++lane) {
        const int64_t at = panel * kPanel + lane;
        if (lane < p.used[panel]) {
          pack_wide(c, p.distinct[first + lane], d, p, at);
        } else {
          pack_padding(p, at, d);
        }
      }
    }
  }
}

// The centroids of the wide pass in bytes as well.
template <class T>
void pack_all_bytes(const T* c, int64_t d, const Prepared<T>& p, int n_threads) {
  if constexpr (kHasBytes) {
    double norm = 0.0, residual = 0.0;
#pragma omp parallel num_threads(n_threads) reduction(max : norm, residual)
    {
      IeeeMode ieee;
#pragma omp for schedule(static)
      for (int64_t at = 0; at < p.groups.panels * kPanel; ++at) {
        const int64_t j = p.all.index[at];
        if (j < 0) continue;
        residual = fmax(residual, pack_bytes(c + j * d, d, p, at));
        norm = fmax(norm, double(p.all.norm[at]) / double(p.bytes.unit[at]));
      }
    }
    p.bytes.largest[0] = round_up(norm);
    p.bytes.largest[1] = round_up(residual);
  }
}

// What the centroids' step changes: copies of those that differ, and how far those of a group moved at most.
template <class T>
void find_changed(const T* c, const T* previous, int64_t k, int64_t d, const Prepared<T>& p, int n_threads) {
  const Groups& g = p.groups;
  const int64_t live = *p.all.live;
  const double scale = *p.scale, epsilon = double(epsilon_of(d));
  memset(p.drift, 0, sizeof(float) * kKept);
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t group = 0; group < g.count; ++group) {
      double most = 0.0;
      for (int64_t j = group * g.size; j < k && j < (group + 1) * g.size; ++j) {
        p.step[j] = 0.0f;
        p.differs[j] = !equal_rows(c + j * d, previous + j * d, d);
        if (!p.differs[j]) continue;
        const double square = square_between(c + j * d, previous + j * d, d, T(scale));
        const double step = sqrt(square * (1.0 + epsilon) + 0x1p-100) / scale;
        p.step[j] = round_up(step);
        most = fmax(most, step);
      }
      p.drift[group] = live == k && most < 0x1p120 ? round_up(most) : INFINITY;
    }
#pragma omp for schedule(static)
    for (int64_t group = 0; group < g.count; ++group) {
      int64_t count = 0;
      const int64_t base = (g.panels + group * g.stride) * kPanel;
      for (int64_t j = group * g.size; j < live && j < (group + 1) * g.size; ++j) {
        if (p.differs[p.distinct[j]]) copy_position(p, g.position(j), base + count++, d);
      }
      for (int64_t panel = 0; panel < g.stride; ++panel) {
        const int64_t left = count - panel * kPanel;
        p.used[g.panels + group * g.stride + panel] = int32_t(left < 0 ? 0 : left < kPanel ? left : kPanel);
      }
      for (; count % kPanel != 0; ++count) pack_padding(p, base + count, d);
    }
  }
  p.fresh[0] = p.fresh[1] = 0;
  for (int64_t group = 0; group < g.count; ++group) {
    const int32_t* used = p.used + g.panels + group * g.stride;
    p.fresh[0] |= uint32_t(used[0] > 0) << group;
    int64_t panels = 0;
    for (int64_t panel = 0; panel < g.stride; ++panel) panels += used[panel] > 0;
    p.fresh[1] |= uint32_t(4 * panels <= g.stride) << group;
  }
}

template <class T>
void prepare(const T* c, int64_t k, int64_t d, const T* previous, bool labelled, char* workspace, int n_threads) {
  IeeeMode ieee;
  Prepared<T> p;
  const bool narrow = is_narrow<T>(k, d);
  layout(k, d, narrow, previous != nullptr, labelled, workspace, &p);
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(static)
    for (int64_t j = 0; j < k; ++j) p.hash[j] = hash_row(c + j * d, d);
  }
  int64_t* distinct = narrow ? p.all.index : p.distinct;
  const int64_t live = *p.all.live = find_distinct(c, k, d, p, distinct);
  find_shift(c, live, d, distinct, p, n_threads);
  find_grid(c, live, d, distinct, p);
  find_scale(c, live, d, distinct, p, n_threads);
  if (!narrow) {
    pack_all(c, live, d, p, n_threads);
    set_largest(p.all, p.groups.panels * kPanel);
    if (p.in_bytes) pack_all_bytes(c, d, p, n_threads);
    if (previous != nullptr) find_changed(c, previous, k, d, p, n_threads);
    return;
  }
  for (int64_t at = 0; at < whole_tiles(live); ++at) pack_narrow(c, d, p, at);
  set_largest(p.all, live);
}

// How the wide pass goes over the rows of a call.
struct Plan {
  bool few;
  bool with_bounds;
  bool in_bytes[2];  // without bounds, with them
};

template <class T>
Plan plan_wide(const Rows<T>& r, const Prepared<T>& p, int64_t chunk, char* scratch) {
  if (are_few(p, r.d)) return Plan{true, false, {false, false}};
  double rivals = INFINITY;
  if constexpr (kHasBytes) {
    Scratch s = {};
    wide_scratch(r.d, scratch, &s);
    if (p.in_bytes) rivals = cost_of_rivals(r, p, s);
  }
  // With bounds only the products of a group are at stake, and int16 finds better bounds.
  const double in_group = rivals * double(p.groups.count);
  const auto cost = [](double of_rivals) { return of_rivals < 1.0 ? 1.0 - kSpared * (1.0 - of_rivals) : 1.0; };
  const bool with_bounds = r.previous != nullptr && bounds_pay(r, p, chunk, cost(rivals), cost(in_group));
  return Plan{false, with_bounds, {rivals < 1.0, in_group < 1.0}};
}

// The wide pass over the rows [start, stop).
template <class T>
void assign_part(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, int64_t start, int64_t stop,
                 bool with_bounds, const Plan& plan, int64_t n_threads, int64_t* counts) {
  if (!with_bounds && r.bounds != nullptr) forget_bounds(r, start, stop);
  if (plan.few) return assign_few(r, p, start, stop, counts);
  if constexpr (kHasBytes) {
    if (with_bounds && plan.in_bytes[1]) return reassign_block_in_bytes(r, p, s, start, stop, counts);
    if (!with_bounds && plan.in_bytes[0]) return assign_block_in_bytes(r, p, s, start, stop, n_threads, counts);
  }
  if (with_bounds) return reassign_block(r, p, s, start, stop, counts);
  assign_block(r, p, s, start, stop, n_threads, counts);
}

template <class T>
void assign_all(const Rows<T>& r, char* workspace, char* scratch, int64_t* counts, int n_threads) {
  IeeeMode ieee;
  const bool narrow = is_narrow<T>(r.k, r.d), known = !narrow && r.previous != nullptr;
  Prepared<T> p;
  layout(r.k, r.d, narrow, r.previous != nullptr, r.before != nullptr, workspace, &p);
  if (*p.all.live == 0) {
    for (int64_t row = 0; row < r.n; ++row) {
      r.labels[row] = -1;
      counts[1] += r.before != nullptr && r.before[row] != -1;
    }
    return;
  }
  int64_t rows = narrow ? kNarrowBlock : block_rows(r.d);
  if (known) {
    // Rows that need a scan are gathered from several blocks, as long as every thread has its share.
    const int64_t share = r.n / (4 * n_threads);
    rows *= share < 2 * rows ? 1 : share < kBlocks * rows ? share / rows : kBlocks;
  }
  const int64_t blocks = (r.n + rows - 1) / rows;
  const Plan plan = narrow ? Plan{} : plan_wide(r, p, rows, scratch);
  int64_t rechecked = 0, moved = 0;
#pragma omp parallel num_threads(n_threads) reduction(+ : rechecked, moved)
  {
    IeeeMode own_mode;
    Scratch wide = {};
    NarrowScratch slim = {};
    const int thread = omp_get_thread_num();
    if (narrow) {
      narrow_scratch(r.d, scratch + thread * narrow_scratch(r.d, nullptr, &slim), &slim);
    } else {
      wide_scratch(r.d, scratch + thread * wide_scratch(r.d, nullptr, &wide), &wide);
    }
#pragma omp for schedule(dynamic)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t start = block * rows, stop = r.n - start < rows ? r.n : start + rows;
      if (narrow) {
        transpose(r.row(start), r.stride, stop - start, r.d, p, slim);
        // The next block of this thread, if the threads keep in step.
        const Ahead ahead = r.ahead(stop + (n_threads - 1) * rows, rows);
        const bool exact = on_grid(r.row(start), r.stride, stop - start, r.d, p);
        assign_columns(r.row(start), r.stride, stop - start, r.d, r.centroids, p, slim, exact, ahead, r.labels + start,
                       &rechecked);
      } else {
        const bool with_bounds = plan.with_bounds || (known && !plan.few && block % kSample == 0);
        assign_part(r, p, wide, start, stop, with_bounds, plan, n_threads, &rechecked);
      }
      for (int64_t row = start; r.before != nullptr && row < stop; ++row) moved += r.labels[row] != r.before[row];
    }
  }
  counts[0] += rechecked;
  counts[1] += moved;
}

}  // namespace

int assign_workspace(int dtype, int64_t k, int64_t d, bool with_previous, bool labelled, int64_t* bytes) {
  // Beyond a million columns rounding takes more than a hundredth of a length, more than the bounds allow for.
  if (k > INT32_MAX - kPanel || d > (int64_t(1) << 20)) return DCFAST_OUT_OF_RANGE;
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    Prepared<T> p;
    *bytes = layout(k, d, is_narrow<T>(k, d), with_previous, labelled, nullptr, &p);
  });
}

int assign_prepare(int dtype, const void* centroids, int64_t k, int64_t d, const void* previous, bool labelled,
                   void* workspace, int n_threads) {
  char* base = static_cast<char*>(workspace);
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    prepare(static_cast<const T*>(centroids), k, d, static_cast<const T*>(previous), labelled, base, n_threads);
  });
}

int assign_scratch(int dtype, int64_t k, int64_t d, int64_t* bytes) {
  return with_dtype(dtype, [&](auto element) {
    Scratch wide = {};
    NarrowScratch narrow = {};
    const bool is_one = is_narrow<decltype(element)>(k, d);
    *bytes = is_one ? narrow_scratch(d, nullptr, &narrow) : wide_scratch(d, nullptr, &wide);
  });
}

int assign(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d, const void* centroids, int64_t k,
           const void* previous, const void* workspace, void* scratch, const int64_t* before, float* bounds,
           int64_t* labels, int64_t* counts, int n_threads) {
  char* base = static_cast<char*>(const_cast<void*>(workspace));
  char* own = static_cast<char*>(scratch);
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const Rows<T> rows = {
        static_cast<const T*>(x),        row_stride, n,      d,     static_cast<const T*>(centroids), k,
        static_cast<const T*>(previous), before,     bounds, labels};
    assign_all(rows, base, own, counts, n_threads);
  });
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
