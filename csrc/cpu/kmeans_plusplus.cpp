// Greedy k-means++: the whole loop over the centroids, its random numbers given.
//
// A step compares a few candidates with every row, and almost no row comes closer to any: after c centroids about one
// in c does. So a step is a filter and a few exact distances. The filter is the product of assign_wide.h with the parts
// exchanged: rows are packed once, side by side in the lanes of panels (2 bytes per element, kept if `cached`), the
// candidates are broadcast. In the units of assign_prepare.h, with both operands rounded to int16, the score
// s = |c~|^2/2 - x~.c~ of candidate c is at least
//
//   L = (h - |x~| b) - x'.c',   h = |c~|^2/2 - a,   a = 8 u |c~|^2/2 + tau,   b = |c~| (2 rho + rho^2 + 16 u)
//
// with rho the largest share that rounding takes of a row. Where 2 L + |x~|^2 exceeds the row's distance so far (and
// what the roundings of D64 may hide), the row stays; else D64 decides.
//
// A candidate's potential is the exact sum of RN64(w D64) over all rows, each with its closest centroid: what the rows
// that come closer change is added to the sum so far, exactly. Memory beside the panels: 36 bytes per row.
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "assign_wide.h"
#include "dtype.h"
#include "exact_sum.h"
#include "float_env.h"
#include "parallel.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr int kTogether = 4;         // candidates that share the loads of a panel
constexpr int64_t kBlock = 1024;     // rows whose potentials have a common total for the draws
constexpr int64_t kAllNoted = 4096;  // changes that a thread has room for in any case

struct Change {
  int64_t row, candidate;
  double distance;
};

template <class T>
struct Seeding {
  Prepared<T> units;      // its scale, slack and shift alone
  float* rho;             // [1]
  double* draw_scale;     // [1] potentials times this are rounded down to the integers that the next draws count in
  int32_t* panels;        // [panels][pairs][kPanel], if cached
  float* norm;            // [padded]
  float* inverse;         // [padded]
  float* square;          // [padded] at most |x~|^2
  float* threshold;       // [padded] scores above cannot come closer
  double* closest;        // [n] D64 to the closest centroid
  int64_t* block_totals;  // [blocks]
  int64_t* total;         // [kSumWords] the potential
  int64_t* gains;         // [threads][trials padded][kSumWords]
  int16_t* candidates;    // [trials padded][2 pairs]
  float* h;               // [trials padded]
  float* b;               // [trials padded]
  float* unit;            // [trials padded]
  int64_t* rows;          // [trials padded] of the candidates
  Change* changes;        // [threads][capacity]
  int64_t* found;         // [threads] changes, of which the first `capacity` are noted
  double* largest;        // [threads]
  float* roundings;       // [threads]
  char* scratch;          // [threads][scratch_bytes]
  int64_t scratch_bytes, capacity;
};

inline int64_t padded_trials(int64_t trials) { return (trials + kTogether - 1) / kTogether * kTogether; }

template <class T>
int64_t seeding_layout(int64_t n, int64_t d, int64_t trials, bool cached, int64_t threads, char* base, Seeding<T>* s) {
  const int64_t padded = panels_of(n) * kPanel, pairs = pairs_of(d), t = padded_trials(trials);
  int64_t at = 0;
  s->units.scale = take<double>(base, &at, 1);
  s->units.slack = take<double>(base, &at, 1);
  s->units.shift = take<T>(base, &at, d);
  s->rho = take<float>(base, &at, 1);
  s->draw_scale = take<double>(base, &at, 1);
  s->panels = take<int32_t>(base, &at, cached ? padded * pairs : 0);
  s->norm = take<float>(base, &at, padded);
  s->inverse = take<float>(base, &at, padded);
  s->square = take<float>(base, &at, padded);
  s->threshold = take<float>(base, &at, padded);
  s->closest = take<double>(base, &at, n);
  s->block_totals = take<int64_t>(base, &at, (n + kBlock - 1) / kBlock);
  s->total = take<int64_t>(base, &at, kSumWords);
  s->gains = take<int64_t>(base, &at, threads * t * kSumWords);
  s->candidates = take<int16_t>(base, &at, t * 2 * pairs);
  s->h = take<float>(base, &at, t);
  s->b = take<float>(base, &at, t);
  s->unit = take<float>(base, &at, t);
  s->rows = take<int64_t>(base, &at, t);
  // All of a few rows, a quarter of many; when more come closer, the chosen candidate is compared once more.
  s->capacity = n * trials <= kAllNoted ? n * trials : n / (4 * threads) + kAllNoted / 4;
  s->changes = take<Change>(base, &at, threads * s->capacity);
  s->found = take<int64_t>(base, &at, threads);
  s->largest = take<double>(base, &at, threads);
  s->roundings = take<float>(base, &at, threads);
  // A row as int16, and a panel.
  s->scratch_bytes = align64(4 * pairs) + align64(4 * pairs * kPanel);
  s->scratch = take<char>(base, &at, threads * s->scratch_bytes);
  return at;
}

template <class T>
struct Points {
  const T* x;
  int64_t row_stride, n, d;
  const double* weight;
  const T* row(int64_t i) const { return x + i * row_stride; }
  double potential(int64_t i, double distance) const { return weight != nullptr ? weight[i] * distance : distance; }
};

// m and the scale, from all rows.
template <class T>
void find_units(const Points<T>& p, const Seeding<T>& s, int n_threads) {
  constexpr int64_t kColumns = 64;
  memset(s.largest, 0, size_t(8 * n_threads));
  on_threads(n_threads, [&](int64_t thread, int64_t threads) {
    for (int64_t first = thread * kColumns; first < p.d; first += threads * kColumns) {
      const int64_t count = p.d - first < kColumns ? p.d - first : kColumns;
      double mean[kColumns] = {};
      for (int64_t row = 0; row < p.n; ++row) {
        for (int64_t i = 0; i < count; ++i) mean[i] += double(p.row(row)[first + i]);
      }
      for (int64_t i = 0; i < count; ++i) {
        mean[i] /= double(p.n);
        s.units.shift[first + i] = fabs(mean[i]) <= 1e300 ? T(mean[i]) : T(0);
      }
    }
  });
  on_threads(n_threads, [&](int64_t thread, int64_t threads) {
    const Part rows(p.n, thread, threads);
    s.largest[thread] = largest_of(p.row(rows.first), p.row_stride, rows.last - rows.first, p.d, s.units.shift);
  });
  double largest = 0.0;
  for (int64_t thread = 0; thread < n_threads; ++thread) largest = fmax(largest, s.largest[thread]);
  const double scale = *s.units.scale = scale_of<T>(largest);
  *s.units.slack = double(p.d) * 0x1p-1073 * scale * scale;  // what D64 may lose to underflow
}

// D64 of kChains rows from `start` on, as far as there are any, to the row `from`.
template <class T>
void distances_from(const Points<T>& p, int64_t start, int64_t from, double* out) {
  const T *x[kChains], *c[kChains];
  double distance[kChains];
  for (int i = 0; i < kChains; ++i) {
    x[i] = p.row(start + i < p.n ? start + i : start);
    c[i] = p.row(from);
  }
  d64_chains(x, c, p.d, distance);
  for (int i = 0; i < kChains && start + i < p.n; ++i) out[start + i] = distance[i];
}

// Where the panel of the rows from `first` on lies: kept, or packed into the thread's scratch.
template <class T>
const int32_t* panel_at(const Points<T>& p, const Seeding<T>& s, int64_t panel, bool cached, char* scratch,
                        float* rho = nullptr) {
  const int64_t pairs = pairs_of(p.d);
  if (cached && rho == nullptr) return s.panels + panel * pairs * kPanel;
  int16_t* q = reinterpret_cast<int16_t*>(scratch);
  int32_t* out = cached ? s.panels + panel * pairs * kPanel : reinterpret_cast<int32_t*>(scratch + align64(4 * pairs));
  const Lengths lengths(p.d);
  Units units = {};
  for (int64_t lane = 0; lane < kPanel; ++lane) {
    const int64_t row = panel * kPanel + lane;
    float square = 0.0f, rest;
    if (row < p.n) {
      pack_row(p.row(row), s.units, p.d, &units, q, &square, &rest, s.inverse + row);
      const bool fits = s.inverse[row] > 0.0f;
      s.norm[row] = fits ? lengths.norm(square) : 0.0f;
      const float own = fits ? lengths.rho(lengths.share(square, rest, s.inverse[row])) : 0.0f;
      if (rho != nullptr && own > *rho) *rho = own;
    } else {
      memset(q, 0, size_t(4 * pairs));
      s.norm[row] = s.inverse[row] = 0.0f;
    }
    s.square[row] = square * (1.0f - epsilon_of(p.d));
    for (int64_t i = 0; i < pairs; ++i) memcpy(out + i * kPanel + lane, q + 2 * i, 4);
  }
  return out;
}

// After the row has come as close as s.closest says.
template <class T>
void set_threshold(const Points<T>& p, const Seeding<T>& s, int64_t row) {
  const bool counts = p.weight == nullptr || p.weight[row] != 0.0;
  const double distance = s.closest[row] * *s.units.scale * *s.units.scale;
  const double score = 0.5 * (distance * (1.0 + 0x1p-20) - double(s.square[row])) + 0x1p-100 + *s.units.slack;
  s.threshold[row] = counts ? round_up(score) : -INFINITY;
}

template <class T>
int64_t draw_units(const Points<T>& p, const Seeding<T>& s, int64_t row, double distance) {
  const double units = floor(p.potential(row, distance) * *s.draw_scale);
  return units < 0x1p62 ? int64_t(units) : 0;  // a potential that no double holds
}

// For potentials of that sum, rounded once: the integers sum to at most 2^61.
inline double draw_scale_of(double total, int64_t n) {
  int exponent = 1024;
  if (total < INFINITY) {
    frexp(total, &exponent);
  } else {
    for (int64_t capacity = 1; capacity < (n < 2 ? 2 : n); capacity *= 2) ++exponent;
  }
  return ldexp(1.0, 61 - exponent < 1023 ? 61 - exponent : 1023);  // a double, however small the sum
}

template <class T>
void count_blocks(const Points<T>& p, const Seeding<T>& s, int n_threads) {
  on_threads(n_threads, [&](int64_t thread, int64_t threads) {
    const Part blocks((p.n + kBlock - 1) / kBlock, thread, threads);
    for (int64_t block = blocks.first; block < blocks.last; ++block) {
      s.block_totals[block] = 0;
      for (int64_t row = block * kBlock; row < p.n && row < (block + 1) * kBlock; ++row) {
        s.block_totals[block] += draw_units(p, s, row, s.closest[row]);
      }
    }
  });
}

// Pairs of a row and a candidate that the filter let through.
struct Pending {
  int64_t row[kChains], candidate[kChains];
  int count;
};

// D64 of the pending pairs, and what they change.
template <class T>
void settle(const Points<T>& p, const Seeding<T>& s, Pending* pending, int64_t thread, int64_t t) {
  const T *x[kChains], *c[kChains];
  double distance[kChains];
  for (int i = 0; i < kChains; ++i) {
    const int from = i < pending->count ? i : 0;  // the last few repeat the first
    x[i] = p.row(pending->row[from]);
    c[i] = p.row(s.rows[pending->candidate[from]]);
  }
  d64_chains(x, c, p.d, distance);
  for (int i = 0; i < pending->count; ++i) {
    const int64_t row = pending->row[i], candidate = pending->candidate[i];
    const double before = s.closest[row];
    if (!(distance[i] < before)) continue;
    int64_t* words = s.gains + (thread * t + candidate) * kSumWords;
    add_exactly(p.potential(row, distance[i]), words);
    add_exactly(-p.potential(row, before), words);
    const int64_t at = s.found[thread]++;
    if (at < s.capacity) s.changes[thread * s.capacity + at] = Change{row, candidate, distance[i]};
  }
  pending->count = 0;
}

// Compare the candidates with every row: fills gains, changes and found.
template <class T>
void compare(const Points<T>& p, const Seeding<T>& s, int64_t trials, bool cached, int n_threads) {
  const int64_t pairs = pairs_of(p.d), t = padded_trials(trials);
  memset(s.found, 0, size_t(8 * n_threads));
  memset(s.gains, 0, size_t(8 * n_threads * t * kSumWords));
  on_threads(n_threads, [&](int64_t thread, int64_t threads) {
    Pending pending = {};
    const Part part(panels_of(p.n), thread, threads);
    for (int64_t panel = part.first; panel < part.last; ++panel) {
      const int32_t* rows = panel_at(p, s, panel, cached, s.scratch + thread * s.scratch_bytes);
      for (int64_t group = 0; group < trials; group += kTogether) {
        const int16_t* candidates[kTogether];
        for (int c = 0; c < kTogether; ++c) candidates[c] = s.candidates + (group + c) * 2 * pairs;
        Ints out[kTogether][2];
        products<kTogether, 2>(candidates, pairs, rows, out);
        for (int64_t c = group; c < trials && c < group + kTogether; ++c) {
          for (int64_t half = 0; half < 2; ++half) {
            const int64_t at = panel * kPanel + half * kFloats;
            Floats score = __builtin_convertvector(out[c - group][half], Floats) * (load(s.inverse + at) * s.unit[c]);
            Floats low = fnmadd(load(s.norm + at), broadcast(s.b[c]), broadcast(s.h[c])) - score;
            uint32_t mask = mask_at_most(low, load(s.threshold + at));
            for (; mask != 0; mask &= mask - 1) {
              pending.row[pending.count] = at + __builtin_ctz(mask);
              pending.candidate[pending.count] = c;
              if (++pending.count == kChains) settle(p, s, &pending, thread, t);
            }
          }
        }
      }
    }
    settle(p, s, &pending, thread, t);
  });
}

// The chosen candidate becomes a centroid, with which the potentials sum to `total`.
template <class T>
void accept(const Points<T>& p, const Seeding<T>& s, int64_t trials, int64_t chosen, double total, int n_threads) {
  const int64_t t = padded_trials(trials);
  bool noted = true;
  for (int64_t thread = 0; thread < n_threads; ++thread) noted = noted && s.found[thread] <= s.capacity;
  const double scale = draw_scale_of(total, p.n);
  // The sum has halved since the last time: now and then.
  const bool anew = !noted || scale != *s.draw_scale;
  *s.draw_scale = scale;
  if (noted) {
    for (int64_t thread = 0; thread < n_threads; ++thread) {
      for (int64_t at = 0; at < s.found[thread]; ++at) {
        const Change& change = s.changes[thread * s.capacity + at];
        if (change.candidate != chosen) continue;
        if (!anew) {
          s.block_totals[change.row / kBlock] +=
              draw_units(p, s, change.row, change.distance) - draw_units(p, s, change.row, s.closest[change.row]);
        }
        s.closest[change.row] = change.distance;
        set_threshold(p, s, change.row);
      }
    }
  } else {
    on_threads(n_threads, [&](int64_t thread, int64_t threads) {
      const Part rows(p.n, thread, threads);
      for (int64_t row = rows.first; row < rows.last; ++row) {
        const double distance = d64(p.row(row), p.row(s.rows[chosen]), p.d);
        if (!(distance < s.closest[row])) continue;
        s.closest[row] = distance;
        set_threshold(p, s, row);
      }
    });
  }
  if (anew) count_blocks(p, s, n_threads);
  for (int64_t thread = 0; thread < n_threads; ++thread) {
    for (int64_t w = 0; w < kSumWords; ++w) s.total[w] += s.gains[(thread * t + chosen) * kSumWords + w];
  }
  carry(s.total, kDigits, 1, kSumDigit);
}

// The first row whose cumulative potential exceeds u times the total.
template <class T>
int64_t draw(const Points<T>& p, const Seeding<T>& s, double u) {
  int64_t total = 0, block = 0, row = 0, sum = 0;
  const int64_t blocks = (p.n + kBlock - 1) / kBlock;
  for (int64_t b = 0; b < blocks; ++b) total += s.block_totals[b];
  const int64_t threshold = int64_t(((unsigned __int128)(uint64_t)(u * 0x1p53) * (uint64_t)total) >> 53);
  while (block < blocks && sum + s.block_totals[block] <= threshold) sum += s.block_totals[block++];
  for (row = block * kBlock; row < p.n; ++row) {
    sum += draw_units(p, s, row, s.closest[row]);
    if (sum > threshold) return row;
  }
  return 0;  // nothing is left to draw
}

template <class T>
void start(const Points<T>& p, const Seeding<T>& s, int64_t first, bool cached, int n_threads) {
  find_units(p, s, n_threads);
  memset(s.roundings, 0, size_t(4 * n_threads));
  on_threads(n_threads, [&](int64_t thread, int64_t threads) {
    char* scratch = s.scratch + thread * s.scratch_bytes;
    const Part part(panels_of(p.n), thread, threads);
    for (int64_t panel = part.first; panel < part.last; ++panel) {
      panel_at(p, s, panel, cached, scratch, s.roundings + thread);
      for (int64_t row = panel * kPanel; row < (panel + 1) * kPanel; ++row) {
        if (row >= p.n) {
          s.threshold[row] = -INFINITY;
          continue;
        }
        if (row % kChains == 0) distances_from(p, row, first, s.closest);
        set_threshold(p, s, row);
      }
    }
  });
  float rho = 0.0f;
  for (int64_t thread = 0; thread < n_threads; ++thread) rho = fmaxf(rho, s.roundings[thread]);
  *s.rho = rho;
  memset(s.total, 0, size_t(8 * kSumWords));
  for (int64_t row = 0; row < p.n; ++row) add_exactly(p.potential(row, s.closest[row]), s.total);
  *s.draw_scale = draw_scale_of(rounded_sum(s.total), p.n);
  count_blocks(p, s, n_threads);
}

template <class T>
int64_t step(const Points<T>& p, const Seeding<T>& s, int64_t trials, const double* uniform, bool cached,
             int n_threads) {
  const int64_t pairs = pairs_of(p.d), t = padded_trials(trials);
  const double rho = double(*s.rho), share = (2.0 * rho + rho * rho + 16.0 * kU) * (1.0 + 0x1p-10);
  memset(s.candidates, 0, size_t(4 * t * pairs));
  for (int64_t c = 0; c < trials; ++c) {
    const int64_t row = s.rows[c] = draw(p, s, uniform[c]);
    int16_t* q = s.candidates + c * 2 * pairs;
    float square, rest;
    Units units = {};
    pack_row(p.row(row), s.units, p.d, &units, q, &square, &rest, s.unit + c);
    const float norm = s.unit[c] > 0.0f ? Lengths(p.d).norm(square) : 0.0f;
    const double half = 0.5 * double(square) * (1.0 - double(epsilon_of(p.d)));
    s.h[c] = round_down(half - 8.0 * kU * half - double(p.d + 2) * 0x1p-120);
    s.b[c] = round_up(double(norm) * share);
  }
  compare(p, s, trials, cached, n_threads);
  int64_t chosen = 0;
  double least = INFINITY;
  for (int64_t c = 0; c < trials; ++c) {
    int64_t words[kSumWords];
    memcpy(words, s.total, sizeof words);
    for (int64_t thread = 0; thread < n_threads; ++thread) {
      for (int64_t w = 0; w < kSumWords; ++w) words[w] += s.gains[(thread * t + c) * kSumWords + w];
    }
    const double potential = rounded_sum(words);
    if (potential < least) {
      least = potential;
      chosen = c;
    }
  }
  accept(p, s, trials, chosen, least, n_threads);
  return s.rows[chosen];
}

template <class T>
void seed(const Points<T>& p, int64_t trials, bool cached, int64_t first, const double* uniform, int64_t steps,
          char* workspace, int64_t* chosen, int n_threads) {
  IeeeMode ieee;
  Seeding<T> s = {};
  seeding_layout(p.n, p.d, trials, cached, n_threads, workspace, &s);
  if (first >= 0) start(p, s, first, cached, n_threads);
  for (int64_t i = 0; i < steps; ++i) chosen[i] = step(p, s, trials, uniform + i * trials, cached, n_threads);
}

// Whole seedings of many problems, each by one thread.
template <class T>
void seed_all(const T* x, int64_t row_stride, const int64_t* offsets, int64_t problems, int64_t d, const double* weight,
              int64_t trials, const int64_t* first, const double* uniform, int64_t steps, char* workspace,
              int64_t bytes, int64_t* chosen, int n_threads) {
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < problems; ++b) {
      const int64_t start = offsets[b];
      const Points<T> p = {x + start * row_stride, row_stride, offsets[b + 1] - start, d,
                           weight != nullptr ? weight + start : nullptr};
      seed(p, trials, true, first[b], uniform + b * steps * trials, steps, workspace + omp_get_thread_num() * bytes,
           chosen + b * steps, 1);
    }
  }
}

}  // namespace

int kmeans_plusplus_workspace(int dtype, int64_t n, int64_t d, int64_t trials, bool cached, int n_threads,
                              int64_t* bytes) {
  if (d > (int64_t(1) << 20)) return DCFAST_OUT_OF_RANGE;
  return with_dtype(dtype, [&](auto element) {
    Seeding<decltype(element)> s = {};
    *bytes = seeding_layout(n, d, trials, cached, n_threads, nullptr, &s);
  });
}

int kmeans_plusplus(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d, const double* weight,
                    int64_t trials, bool cached, int64_t first, const double* uniform, int64_t steps, void* workspace,
                    int64_t* chosen, int n_threads) {
  char* base = static_cast<char*>(workspace);
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    seed(Points<T>{static_cast<const T*>(x), row_stride, n, d, weight}, trials, cached, first, uniform, steps, base,
         chosen, n_threads);
  });
}

int kmeans_plusplus_batch(int dtype, const void* x, int64_t row_stride, const int64_t* offsets, int64_t problems,
                          int64_t d, const double* weight, int64_t trials, const int64_t* first, const double* uniform,
                          int64_t steps, void* workspace, int64_t bytes, int64_t* chosen, int n_threads) {
  char* base = static_cast<char*>(workspace);
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    seed_all(static_cast<const T*>(x), row_stride, offsets, problems, d, weight, trials, first, uniform, steps, base,
             bytes, chosen, n_threads);
  });
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
