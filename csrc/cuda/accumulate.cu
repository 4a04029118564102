// Exact sums per cluster: rows are grouped by cluster, then each group is summed in registers.
//
// x is to be read once at the speed of memory, so nothing may be added to memory row by row: a row of 256 float32 makes
// 512 digits of 8 bytes, 4 times its own size, and atomics on them would cost several times the read. Instead:
//   count    every row's place among those of its bin (its cluster; of rows that move, those that join and those that
//            leave it), by an atomic on the bin's counter, one per warp and bin;
//   plan     where a bin begins among all rows, and its parts of at most part_rows rows. The order of the bins does not
//            matter, so a cursor serves where a prefix sum would;
//   scatter  the numbers of the rows in that order (4 bytes a row), the parts, and zeros for what is added to;
//   sum      a warp per part and tile of columns: 16-byte loads, digits added in registers, and at the end one
//            carry and one store (the cluster's only part) or one atomic per column and word;
//   carry    the clusters of several parts.
// With 256 float32 the numbers move 3 % of the bytes of x (labels twice, places and order written and read: 32 a row),
// the words of 10,000 clusters 3 % of those of 1.28 million rows. Warps take parts from a queue, so that the last ones
// end together; the sizes that they need are read on the device, and nothing waits for the host.
//
// An element costs a conversion and five operations in double for two words: at 4.3 TB/s of float32, by the rates that
// NVIDIA documents for an H200 (16 and 64 per clock and multiprocessor), 29 % of the one unit and 36 % of the other.
//
// Digits are as in csrc/cpu/rows.h: adding 1.5 2^52 rounds what is left of a number to a multiple of a word's unit. The
// digit is the difference of the sum's bits and those of 1.5 2^52, so the bits are added as they are, modulo 2^64, and
// their surplus is taken off at the end. Fused multiply-adds give the same digits: they round
// once, and a product by a power of two would not round anyway.
#include <math.h>

#include "fixed.cuh"
#include "rows.cuh"

namespace dcfast {
namespace cuda {
namespace {

constexpr int kThreads = 256, kBlocks = 4;     // per multiprocessor at least: with more, ptxas spills
constexpr int kSumThreads = 128;               // a few warps, so that a block that ends early leaves little idle
constexpr int kSumBlocks = 4;                  // per multiprocessor: what fits of the usual kernel
constexpr double kMagic = 6755399441055744.0;  // 1.5 2^52
constexpr uint64_t kMagicBits = uint64_t(0x4338) << 48;     // those of kMagic
constexpr double kUp = 1099511627776.0, kDown = 1.0 / kUp;  // 2^kDigit and its inverse
constexpr int64_t kMaxWords = 26;                           // as in csrc/cpu/rows.h

// Rows of one call. Their entries (2 per row that moves) are numbered by 32 bits, and a word gains at most 2^22 parts
// of a carried digit each.
constexpr int64_t kMaxItems = int64_t(1) << 29;
// Parts are as short as makes about so many units of work, some ten for every warp of the largest GPUs, but not shorter
// than the rows whose numbers a warp reads at once; and at most kMaxPart, where what a part adds costs little already.
constexpr int64_t kUnits = 1 << 15;
constexpr int64_t kMinPart = kWarp, kMaxPart = 256;

// Rows of one bin, which one warp sums.
struct Part {
  int64_t bin;
  uint32_t first, rows;  // among the ordered rows
};
struct Place {
  uint32_t first_entry, first_part;
};
struct Cursors {
  unsigned long long entries, parts, queue;
};

struct Arguments {
  const void* x;
  int64_t problem_stride, row_stride, d, k, items, clusters;
  uint32_t n;
  const int64_t *labels, *previous;  // (items); previous: where rows are counted already, or null
  const double* weight;              // (items) or null
  const int64_t* low;
  int64_t n_words;
  bool fresh;
  unsigned long long* words;  // (clusters, n_words, d)
  int64_t* counts;

  int sides;  // 2 with previous: bin 2 c holds rows that join cluster c, bin 2 c + 1 those that leave it
  uint32_t part_rows;
  int lanes;
  int64_t tiles, groups;  // of columns, and of words that are summed at once
  Cursors* cursors;
  uint32_t *histogram, *ranks, *order;
  Place* places;
  Part* parts;

  // -1 for a row that is in no cluster or stays in its own.
  __device__ __forceinline__ int64_t bin_of(int64_t item, int side) const {
    const int64_t label = side == 0 ? labels[item] : previous[item];
    if (label < 0 || label >= k) return -1;
    if (previous != nullptr && labels[item] == previous[item]) return -1;
    if (weight != nullptr && weight[item] == 0.0) return -1;
    return (item / n * k + label) * sides + side;
  }
  __device__ __forceinline__ uint32_t parts_of(int64_t bin) const {
    return (histogram[bin] + part_rows - 1) / part_rows;
  }
  __device__ __forceinline__ uint32_t parts_of_cluster(int64_t cluster) const {
    return parts_of(cluster * sides) + (sides == 2 ? parts_of(cluster * 2 + 1) : 0);
  }
  // Whether one warp sees all that is added to a column of the cluster's words: it stores them, carried.
  __device__ __forceinline__ bool stored_whole(int64_t cluster) const {
    return groups == 1 && parts_of_cluster(cluster) == 1;
  }
};

__global__ void __launch_bounds__(kThreads, kBlocks) accumulate_count(const Arguments a) {
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const unsigned lane = threadIdx.x % kWarp;
  for (int side = 0; side < a.sides; ++side) {
    const int64_t bin = item < a.items ? a.bin_of(item, side) : -1;
    const unsigned same = __match_any_sync(kAllLanes, (unsigned long long)bin);
    const int leader = __ffs(int(same)) - 1;
    uint32_t before = 0;
    if (int(lane) == leader && bin >= 0) before = atomicAdd(a.histogram + bin, uint32_t(__popc(same)));
    before = __shfl_sync(kAllLanes, before, leader);
    if (bin >= 0) a.ranks[item * a.sides + side] = before + uint32_t(__popc(same & ((1u << lane) - 1)));
  }
}

__global__ void __launch_bounds__(kThreads, kBlocks) accumulate_plan(const Arguments a) {
  const int64_t bins = a.clusters * a.sides, bin = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int lane = threadIdx.x % kWarp;
  const bool inside = bin < bins;
  const uint32_t entries = inside ? a.histogram[bin] : 0, parts = inside ? a.parts_of(bin) : 0;
  uint32_t last_entry = entries, last_part = parts;  // sums up to this lane
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const uint32_t more_entries = __shfl_up_sync(kAllLanes, last_entry, offset);
    const uint32_t more_parts = __shfl_up_sync(kAllLanes, last_part, offset);
    if (lane >= offset) {
      last_entry += more_entries;
      last_part += more_parts;
    }
  }
  uint32_t first_entry = 0, first_part = 0;
  if (lane == kWarp - 1) {
    first_entry = uint32_t(atomicAdd(&a.cursors->entries, (unsigned long long)last_entry));
    first_part = uint32_t(atomicAdd(&a.cursors->parts, (unsigned long long)last_part));
  }
  first_entry = __shfl_sync(kAllLanes, first_entry, kWarp - 1) + last_entry - entries;
  first_part = __shfl_sync(kAllLanes, first_part, kWarp - 1) + last_part - parts;
  if (!inside) return;
  a.places[bin] = Place{first_entry, first_part};
  if (bin % a.sides == 0) {
    const int64_t more = int64_t(entries) - (a.sides == 2 ? int64_t(a.histogram[bin + 1]) : 0);
    a.counts[bin / a.sides] = more + (a.fresh ? 0 : a.counts[bin / a.sides]);
  }
}

__global__ void __launch_bounds__(kThreads, kBlocks) accumulate_scatter(const Arguments a) {
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  for (int side = 0; side < a.sides; ++side) {
    const int64_t bin = item < a.items ? a.bin_of(item, side) : -1;
    if (bin < 0) continue;
    const Place place = a.places[bin];
    const uint32_t rank = a.ranks[item * a.sides + side], at = place.first_entry + rank;
    a.order[at] = uint32_t(item);
    if (rank % a.part_rows == 0) {
      const uint32_t rest = a.histogram[bin] - rank;
      a.parts[place.first_part + rank / a.part_rows] = Part{bin, at, rest < a.part_rows ? rest : a.part_rows};
    }
  }
  if (!a.fresh) return;
  const int64_t warps = int64_t(gridDim.x) * (kThreads / kWarp), size = a.n_words * a.d;
  for (int64_t cluster = item / kWarp; cluster < a.clusters; cluster += warps) {
    if (a.stored_whole(cluster)) continue;
    for (int64_t i = threadIdx.x % kWarp; i < size; i += kWarp) a.words[cluster * size + i] = 0;
  }
}

// Adds the digits of the columns of a row (zeros unless it is inside) to the sums: words [first, first + kWords) of
// n_words.
template <class T, int kWords>
__device__ __forceinline__ void add_digits(const Pack<T>& pack, bool inside, const double (&scale)[Pack<T>::kCount],
                                           bool weighted, double weight, int64_t first, int64_t n_words,
                                           uint64_t (&sums)[kWords][Pack<T>::kCount]) {
  constexpr int kCount = Pack<T>::kCount;
  double rest[kCount];
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    double v = inside ? double(widen(pack.elements[e])) : 0.0;
    if (weighted) v = __dmul_rn(v, weight);
    rest[e] = v * scale[e];
  }
  if (kWords > 2 && n_words > kWords) {
    for (int64_t word = n_words - 1; word >= first + kWords; --word) {  // what the groups above take
      const double down = power_of_two(-kDigit * word), up = power_of_two(kDigit * word);
#pragma unroll
      for (int e = 0; e < kCount; ++e) rest[e] = fma((fma(rest[e], down, kMagic) - kMagic), -up, rest[e]);
    }
    const double down = power_of_two(-kDigit * first);
#pragma unroll
    for (int e = 0; e < kCount; ++e) rest[e] *= down;
  }
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    double v = rest[e];
#pragma unroll
    for (int word = kWords - 1; word > 0; --word) {
      const double shifted = fma(v, word == 1 ? kDown : kDown * kDown, kMagic);
      sums[word][e] += uint64_t(__double_as_longlong(shifted));
      v = fma(shifted - kMagic, word == 1 ? -kUp : -kUp * kUp, v);  // exact: what is left has no more bits than before
    }
    sums[0][e] += uint64_t(__double_as_longlong(v + kMagic));
  }
}

template <class T, bool kWide, int kWords>
__global__ void __launch_bounds__(kSumThreads, kWords == 2 ? 4 : 3) accumulate_sum(const Arguments a) {
  static_assert(kWords <= 3, "the units of the words are written out up to the third");
  constexpr int kCount = Pack<T>::kCount, kUnroll = kLoadsInFlight;
  const int lane = threadIdx.x % kWarp, own_row = lane / a.lanes, rows_at_once = kWarp / a.lanes;
  const unsigned long long units = a.cursors->parts * (unsigned long long)(a.tiles * a.groups);
  const bool weighted = a.weight != nullptr;
  for (;;) {
    unsigned long long unit = lane == 0 ? atomicAdd(&a.cursors->queue, 1ull) : 0;
    unit = __shfl_sync(kAllLanes, unit, 0);
    if (unit >= units) return;
    // The tiles of a part follow one another: neighbouring warps read neighbouring pieces of the same rows.
    const int64_t first_word = int64_t(unit % a.groups) * kWords;
    const Columns<T, kWide> columns(int64_t(unit / a.groups % a.tiles), lane % a.lanes, a.lanes, a.d);
    const Part part = a.parts[unit / (a.groups * a.tiles)];
    double scale[kCount];
    uint64_t sums[kWords][kCount];
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      scale[e] = columns.at(e) < a.d ? power_of_two(-a.low[columns.at(e)]) : 0.0;
#pragma unroll
      for (int word = 0; word < kWords; ++word) sums[word][e] = 0;
    }
    uint64_t additions = 0;
    for (uint32_t start = 0; start < part.rows; start += kWarp) {
      const int count = int(part.rows - start < kWarp ? part.rows - start : kWarp);
      // The last rows of a part that is no multiple of what is read at once: some row of it.
      const uint32_t item = a.order[part.first + start + (lane < count ? lane : 0)];
      const int64_t offset = int64_t(item / a.n) * a.problem_stride + int64_t(item % a.n) * a.row_stride;
      const double weight = weighted ? a.weight[item] : 1.0;
      for (int step = 0; step < count; step += kUnroll * rows_at_once) {
        Pack<T> packs[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int from = step + u * rows_at_once + own_row;
          packs[u] = columns.load(static_cast<const T*>(a.x) + __shfl_sync(kAllLanes, offset, from & (kWarp - 1)));
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int from = step + u * rows_at_once + own_row;
          const double w = weighted ? __shfl_sync(kAllLanes, weight, from & (kWarp - 1)) : 1.0;
          add_digits<T, kWords>(packs[u], from < count, scale, weighted, w, first_word, a.n_words, sums);
        }
        additions += kUnroll;
      }
    }
    const int64_t cluster = part.bin / a.sides;
    const bool leaves = part.bin % a.sides == 1, whole = a.stored_whole(cluster);
    const int64_t left = a.n_words - first_word;
    const int present = int(left < kWords ? left : kWords);
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        uint64_t sum = sums[word][e] - additions * kMagicBits;
        for (int distance = a.lanes; distance < kWarp; distance *= 2) {
          sum += __shfl_xor_sync(kAllLanes, sum, distance);
        }
        sums[word][e] = leaves ? -sum : sum;
      }
      // A sum of fewer words leaves all above them to the top one, which holds it.
#pragma unroll
      for (int word = kWords - 1; word > 0; --word) {
        if (word >= present) sums[word - 1][e] += sums[word][e] << kDigit;
      }
      if (own_row != 0 || columns.at(e) >= a.d) continue;
      unsigned long long* to = a.words + (cluster * a.n_words + first_word) * a.d + columns.at(e);
      int64_t up = 0;
#pragma unroll
      for (int word = 0; word < kWords; ++word, to += a.d) {
        if (word >= present) break;
        int64_t value = int64_t(sums[word][e]) + up;
        if (whole && !a.fresh) value += int64_t(*to);
        up = word + 1 < left ? value >> kDigit : 0;
        const unsigned long long digit = uint64_t(value) - (uint64_t(up) << kDigit);
        if (whole) {
          *to = digit;
        } else {
          atomicAdd(to, digit);
        }
      }
      if (left > kWords) atomicAdd(to, (unsigned long long)up);
    }
  }
}

__global__ void __launch_bounds__(kThreads, kBlocks) accumulate_carry(const Arguments a) {
  for (int64_t cluster = blockIdx.x; cluster < a.clusters; cluster += gridDim.x) {
    if (a.parts_of_cluster(cluster) == 0 || a.stored_whole(cluster)) continue;
    for (int64_t i = threadIdx.x; i < a.d; i += kThreads) {
      unsigned long long* word = a.words + cluster * a.n_words * a.d + i;
      int64_t up = 0;
      for (int64_t w = 0; w < a.n_words; ++w, word += a.d) {
        const int64_t value = int64_t(*word) + up;
        up = w + 1 < a.n_words ? value >> kDigit : 0;
        *word = uint64_t(value) - (uint64_t(up) << kDigit);
      }
    }
  }
}

// Divides the workspace into aligned arrays; with a null start it only measures.
struct Space {
  unsigned char* start;
  int64_t used;

  template <class A>
  void take(A** array, int64_t count) {
    *array = start == nullptr ? nullptr : reinterpret_cast<A*>(start + used);
    used += ceil_div(count * int64_t(sizeof(A)), 16) * 16;
  }
};

template <class T>
int accumulate_all(const void* x, int64_t problem_stride, int64_t row_stride, int64_t problems, int64_t n, int64_t d,
                   const int64_t* labels, const int64_t* previous, int64_t k, const double* weight, const int64_t* low,
                   int64_t n_words, bool fresh, int64_t* words, int64_t* counts, void* workspace, int64_t* bytes,
                   cudaStream_t stream) {
  Arguments a = {};
  a.x = x;
  a.problem_stride = problem_stride;
  a.row_stride = row_stride;
  a.d = d;
  a.k = k;
  a.items = problems * n;
  a.clusters = problems * k;
  a.n = uint32_t(n);
  a.labels = labels;
  a.previous = previous;
  a.weight = weight;
  a.low = low;
  a.n_words = n_words;
  a.fresh = fresh;
  a.words = reinterpret_cast<unsigned long long*>(words);
  a.counts = counts;
  a.sides = previous == nullptr ? 1 : 2;
  a.lanes = lanes_of_a_row<T>(d);
  a.tiles = ceil_div(d, int64_t(a.lanes) * Pack<T>::kCount);
  a.groups = ceil_div(n_words, 3);
  const int64_t entries = a.items * a.sides, bins = a.clusters * a.sides;
  const int64_t part_rows = ceil_div(a.items * a.tiles / kUnits, kMinPart) * kMinPart;
  a.part_rows = uint32_t(part_rows < kMinPart ? kMinPart : part_rows < kMaxPart ? part_rows : kMaxPart);
  const int64_t parts = entries / a.part_rows + (bins < entries ? bins : entries);
  Space space = {static_cast<unsigned char*>(workspace), 0};
  space.take(&a.cursors, 1);
  space.take(&a.histogram, bins);
  const int64_t zeros = space.used;
  space.take(&a.places, bins);
  space.take(&a.parts, parts);
  space.take(&a.ranks, entries);
  space.take(&a.order, entries);
  if (workspace == nullptr) {
    *bytes = space.used;
    return DCFAST_OK;
  }
  cudaMemsetAsync(workspace, 0, size_t(zeros), stream);
  const unsigned blocks = blocks_for(ceil_div(a.items, kThreads));
  launch(accumulate_count, blocks, kThreads, 0, stream, a);
  launch(accumulate_plan, blocks_for(ceil_div(bins, kThreads)), kThreads, 0, stream, a);
  launch(accumulate_scatter, blocks, kThreads, 0, stream, a);
  const int64_t units = ceil_div(parts * a.tiles * a.groups, kSumThreads / kWarp);
  const unsigned sum_blocks = blocks_for(units, kSumBlocks * multiprocessors());
  if (!packs_fit<T>(x, problem_stride, d) || !packs_fit<T>(x, row_stride, d)) {
    launch(accumulate_sum<T, false, 3>, sum_blocks, kSumThreads, 0, stream, a);
  } else if (n_words <= 2) {
    launch(accumulate_sum<T, true, 2>, sum_blocks, kSumThreads, 0, stream, a);
  } else {
    launch(accumulate_sum<T, true, 3>, sum_blocks, kSumThreads, 0, stream, a);
  }
  launch(accumulate_carry, blocks_for(a.clusters), kThreads, 0, stream, a);
  return launch_status();
}

}  // namespace

int accumulate(int dtype, const void* x, int64_t problem_stride, int64_t row_stride, int64_t problems, int64_t n,
               int64_t d, const int64_t* labels, const int64_t* previous, int64_t k, const double* weight,
               const int64_t* low, int64_t n_words, bool fresh, int64_t* words, int64_t* counts, void* workspace,
               int64_t* bytes, void* stream) {
  if (problems * n > kMaxItems || n_words < 1 || n_words > kMaxWords) return DCFAST_OUT_OF_RANGE;
  return with_dtype(dtype, [&](auto element) {
    return accumulate_all<decltype(element)>(x, problem_stride, row_stride, problems, n, d, labels, previous, k, weight,
                                             low, n_words, fresh, words, counts, workspace, bytes,
                                             static_cast<cudaStream_t>(stream));
  });
}

}  // namespace cuda
}  // namespace dcfast
