// A thread's block of rows in the wide pass: which centroids each row has to be compared with, and what its label is.
//
// Without labels for earlier centroids that is all of them. With those (`previous`), most rows need a few:
//   * Per row and group of centroids `bounds` holds a length that no centroid of the group but the row's own is nearer
//     than. A step of the centroids takes at most the longest step of the group from it (Hamerly 2010 with one group,
//     Ding et al. 2015, "Yinyang k-means", with several). Where it still exceeds the distance to the own centroid, none
//     of the group can be nearest. What that distance was, plus the own centroid's step, decides most rows late in a
//     run, without a look at them; for the others it is taken afresh.
//   * A centroid that did not change cannot beat a row's own one if that did not move away from the row: of the other
//     groups such rows need only the centroids that did change.
// The own distance is taken in the data's precision, with an error of at most epsilon; the group's next bound follows
// from the two lowest scores that the scan found in it, by |x - c|^2 = |x|^2 + 2 s. Groups are those of the indices, so
// with duplicates or centroids that are not finite (which have no position) nothing is known of any group.
#pragma once

#include "assign_prepare.h"
#include "assign_wide.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr int64_t kSample = 16;        // one of so many chunks keeps its bounds even where they do not pay
constexpr int64_t kBlocks = 4;         // blocks of rows from which a block of rows that need a scan is gathered
constexpr float kFarthest = 0x1p120f;  // the largest bound: float32 holds its sums

// The rows of a call.
template <class T>
struct Rows {
  const T* x;
  int64_t stride, n, d;
  const T* centroids;
  int64_t k;
  const T* previous;      // null, or with bounds
  const int64_t* before;  // [n] labels for `previous`, -1 where they are not known; or null
  float* bounds;          // [n][kKept]
  int64_t* labels;        // [n]

  const T* row(int64_t at) const { return x + at * stride; }
  // Up to `count` rows from `first` on; rows with gaps between them are left alone.
  Ahead ahead(int64_t first, int64_t count) const {
    const bool some = stride == d && first < n;
    const T* at = some ? row(first) : x;
    const int64_t rows = some ? (n - first < count ? n - first : count) : 0;
    return Ahead{reinterpret_cast<const char*>(at), reinterpret_cast<const char*>(at + rows * d)};
  }
};

// A block in the making.
struct Block {
  int64_t count;  // slots in use
  float rho;
  Units units;
};

template <class T>
Own find_own(const Rows<T>& r, const Prepared<T>& p, int64_t row) {
  Own own = kUnknown;
  const int64_t label = r.before[row];
  if (label < 0) return own;
  own.group = int32_t(label / p.groups.size);
  const T scale = T(*p.scale);
  const double epsilon = double(epsilon_of(r.d)), tau = 0x1p-100;
  const double now = square_between(r.row(row), r.centroids + label * r.d, r.d, scale);
  if (!(now < 0x1p100)) return own;
  own.most = round_up(now * (1.0 + epsilon) + tau);
  own.least = round_down(now * (1.0 - epsilon) - tau);
  own.least = own.least < 0.0f ? 0.0f : own.least;
  if (r.previous == nullptr) return own;
  own.stayed = !p.differs[label];
  if (!own.stayed && p.fresh[1] != 0) {
    const double before = square_between(r.row(row), r.previous + label * r.d, r.d, scale);
    own.stayed = before < 0x1p100 && double(own.most) <= before * (1.0 - epsilon);
  }
  return own;
}

// Turns lengths into the data's units. Infinite where those, which the bounds are in, are not for float32: then nothing
// is known of any group.
template <class T>
inline float unit_of(const Prepared<T>& p) {
  return abs(ilogb(*p.scale)) <= kMostExponent ? float(1.0 / *p.scale) : INFINITY;
}

// What is kept of a row, a lane each: the bounds of the groups and, last, at least the distance to its own centroid.
typedef float Kept __attribute__((vector_size(4 * kKept), aligned(4), may_alias));
constexpr int64_t kOwnLane = kKept - 1;

// The groups whose bound is at most `reach`, a bit each.
template <class T>
inline uint32_t groups_at_most(const Prepared<T>& p, const Kept& bounds, float reach) {
  const auto open = bounds <= reach;
  uint32_t bits = 0;
#if defined(__AVX2__)
  bits = uint32_t(_mm256_movemask_ps((__m256)open));
#else
  for (int g = 0; g < kMaxGroups; ++g) bits |= uint32_t(open[g] != 0) << g;
#endif
  return bits & ((1u << p.groups.count) - 1);
}

// The bounds of a row less the steps of the groups; returns the groups of which one is at most `reach`, a bit each.
template <class T>
inline uint32_t lower_by_steps(const Prepared<T>& p, const float* bounds, float reach, Kept* lowered) {
  const Kept left = *reinterpret_cast<const Kept*>(bounds) - *reinterpret_cast<const Kept*>(p.drift);
  *lowered = left - (left < 0.0f ? -left : left) * 0x1p-22f - 0x1p-126f;
  return groups_at_most(p, *lowered, reach);
}

// Whether what is kept of a row tells that it keeps its label; then it is brought up to date.
template <class T>
inline bool keeps_label(const Prepared<T>& p, int64_t label, float* bounds) {
  if (label < 0) return false;
  const float sum = bounds[kOwnLane] + p.step[label], reach = sum + sum * 0x1p-22f + 0x1p-126f;
  Kept lowered;
  if (lower_by_steps(p, bounds, reach, &lowered) != 0 || !(reach < INFINITY) || p.drift[0] == INFINITY) return false;
  lowered[kOwnLane] = reach;
  *reinterpret_cast<Kept*>(bounds) = lowered;
  return true;
}

// Which groups a row has to be compared with; lowers the bounds of the others by the steps of their centroids. Those of
// a group that is scanned become what the centroids that are left out allow. Where that would be too little to spare
// the row a scan in the next call, none is left out.
template <class T>
inline Needs find_needs(const Prepared<T>& p, const Own& own, float* bounds) {
  // D64 may order distances that differ by less than 2^-32 the other way round.
  const float reach = sqrtf(own.most) * (1.0f + 0x1p-20f) * unit_of(p) + 0x1p-126f;
  const uint32_t few = own.stayed ? p.fresh[1] & ~groups_at_most(p, *reinterpret_cast<const Kept*>(bounds), reach) : 0;
  Kept lowered;
  const uint32_t open = lower_by_steps(p, bounds, reach, &lowered);
  if (p.drift[0] == INFINITY) {
    memset(bounds, 0, sizeof lowered);
  } else if (open == 0) {
    *reinterpret_cast<Kept*>(bounds) = lowered;
  } else {
    for (int g = 0; g < kMaxGroups; ++g) {
      const float scanned = (few >> g & 1) != 0 ? bounds[g] : kFarthest;
      bounds[g] = (open >> g & 1) != 0 ? scanned : lowered[g];
    }
  }
  bounds[kOwnLane] = reach;
  return Needs{uint8_t(open & ~few), uint8_t(open & few & p.fresh[0])};
}

// Whether a row has to be compared, with what, and what is known of its own centroid. If not, it keeps its label.
template <class T>
inline bool needs_scan(const Rows<T>& r, const Prepared<T>& p, int64_t row, Own* own, Needs* needs) {
  float* bounds = r.bounds + row * kKept;
  r.labels[row] = r.before[row];
  if (keeps_label(p, r.before[row], bounds)) return false;
  *own = find_own(r, p, row);
  *needs = find_needs(p, *own, bounds);
  return needs->whole != 0 || needs->changed != 0;
}

// Where the bound in the first lane of a mask comes from.
inline int64_t position_in(const Lowest& low, uint32_t lanes) {
  const int lane = __builtin_ctz(lanes);
  return int64_t(low.vector[lane]) * kFloats + lane;
}

// The score of a row's own centroid: s = (|x~ - c~|^2 - |x~|^2) / 2; the roundings of D64 may add to the distance.
template <class T>
void bound_own(const Prepared<T>& p, int64_t d, float square_up_to_epsilon, Own* own) {
  const double square = double(square_up_to_epsilon), epsilon = double(epsilon_of(d)), d64 = double(d + 4) * 0x1p-52;
  own->high = round_up(0.5 * (double(own->most) * (1.0 + d64) - square * (1.0 - epsilon)) + *p.slack);
  own->low = round_down(0.5 * (double(own->least) * (1.0 - d64) - square * (1.0 + epsilon)) - *p.slack);
}

// Put a row into the next slot.
template <class T>
void pack_slot(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, int64_t row, const Own& own, Needs needs,
               Block* block) {
  const int64_t at = block->count++;
  pack_row(r.row(row), p, r.d, &block->units, s.rows + at * 2 * pairs_of(r.d), s.squares + at, s.rests + at,
           s.inverses + at);
  s.row[at] = row;
  s.needs[at] = needs;
  s.own[at] = own;
  if (s.inverses[at] > 0.0f && own.most < INFINITY) bound_own(p, r.d, s.squares[at], s.own + at);
}

// The norms of the rows in the slots, and the block's rho. Here and not row by row, so that roots and divisions are
// taken of whole vectors.
template <class T>
void close_block(const Rows<T>& r, const Scratch& s, Block* block) {
  const Lengths lengths(r.d);
  float *shares = s.limit, most = 0.0f;
  for (int64_t at = 0; at < block->count; ++at) {
    shares[at] = lengths.share(s.squares[at], s.rests[at], s.inverses[at]);
    s.norms[at] = s.inverses[at] > 0.0f ? lengths.norm(s.squares[at]) : 0.0f;
  }
  for (int64_t at = 0; at < block->count; ++at) most = fmaxf(most, shares[at]);
  block->rho = lengths.rho(most);
}

// Fill the list up to whole tiles with the slot of zeros.
inline void fill_list(const Scratch& s, int64_t d, int64_t count) {
  for (; count % kRows != 0; ++count) s.list[count] = int32_t(block_rows(d));
}

// Copy the rows in the slots list[0, count), in bytes, together. What lies between the columns and the whole words of a
// tile meets zeros of the centroids.
inline void gather_rows(const Scratch& s, int64_t count, int64_t d) {
  const int64_t stride = 4 * quads_of(d);
  for (int64_t i = 0; i < count; ++i) {
    memcpy(s.tile_rows + i * stride, s.rows + s.list[i] * 2 * pairs_of(d), size_t((d + 3) / 4 * 4));
  }
}

// The two lowest bounds of every slot of the list in the panels [first, last), per lane.
template <class T>
void find_lowest(const Prepared<T>& p, const Scratch& s, const Block& block, int64_t count, int64_t d, int64_t first,
                 int64_t last, Lowest* low, Ahead* ahead) {
  for (int64_t at = 0; at < (count + kRows - 1) / kRows * kRows; ++at) {
    low[at] = Lowest{broadcast(INFINITY), broadcast(INFINITY), Ints{}};
  }
  scan(p, s, count, d, first, last, block.rho, ahead, [=](int64_t at, int64_t position, Floats left, Floats right) {
    Lowest own = low[at];
    update(&own, left, int32_t(position / kFloats));
    update(&own, right, int32_t(position / kFloats + 1));
    low[at] = own;
  });
}

// Lists the slots that need a group, or its changed centroids, for every one and calls
// take(group, the first of its panels, how many slots).
template <class T, class Take>
void for_groups(const Prepared<T>& p, const Scratch& s, const Block& block, int64_t d, Take take) {
  for (int64_t part = 0; part < 2 * p.groups.count; ++part) {
    const int64_t g = part % p.groups.count, first = part * p.groups.stride;
    const bool whole = part < p.groups.count;
    int64_t count = 0;
    for (int64_t at = 0; at < block.count; ++at) {
      s.list[count] = int32_t(at);
      count += (whole ? s.needs[at].whole : s.needs[at].changed) >> g & 1;
    }
    if (count == 0) continue;
    fill_list(s, d, count);
    take(g, first, count);
  }
}

// Compare the slots with the groups that they need, and keep the two lowest of every group and of all.
template <class T>
void scan_groups(const Prepared<T>& p, const Scratch& s, const Block& block, int64_t d, Ahead* ahead) {
  for (int64_t at = 0; at < block.count; ++at) {
    s.low[at] = Lowest{broadcast(INFINITY), broadcast(INFINITY), Ints{}};
  }
  for_groups(p, s, block, d, [&](int64_t g, int64_t first, int64_t count) {
    find_lowest(p, s, block, count, d, first, first + p.groups.stride, s.low_in_group, ahead);
    for (int64_t i = 0; i < count; ++i) {
      const Lowest& low = s.low_in_group[i];
      InGroups* in = s.in_groups + s.list[i];
      merge(s.low + s.list[i], low);
      const float lowest = in->first[g] = least(low.first);
      if (g != s.own[s.list[i]].group) continue;
      const uint32_t lanes = mask_at_most(low.first, broadcast(lowest));
      in->second = (lanes & (lanes - 1)) != 0 ? lowest : least(low.first <= lowest ? low.second : low.first);
      in->position = position_in(low, lanes);
    }
  });
}

// Labels of the slots in the list, from D64 of every centroid whose bound is at most the limit.
template <class T>
void rescan(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, const Block& block, int64_t count) {
  if (count == 0) return;
  fill_list(s, r.d, count);
  Ahead none = {nullptr, nullptr};
  scan(p, s, count, r.d, 0, p.groups.panels, block.rho, &none,
       [=](int64_t i, int64_t position, Floats left, Floats right) {
         if (i >= count) return;
         const int64_t slot = s.list[i];
         const Floats limit = broadcast(s.limit[slot]);
         uint32_t mask = mask_at_most(left, limit) | mask_at_most(right, limit) << kFloats;
         if (mask == 0) return;
         const T* x = r.row(s.row[slot]);
         // From four candidates on, all lanes of the panel cost less than one at a time.
         const bool all = __builtin_popcount(mask) >= 4;
         double distances[kPanel];
         if (all) distance_panel(x, p.all.columns + position * r.d, r.d, distances);
         for (; mask != 0; mask &= mask - 1) {
           const int lane = __builtin_ctz(mask);
           const int64_t index = p.all.index[position + lane];
           if (index < 0) continue;  // padding, where the limit is infinite
           consider(&s.best[slot], all ? distances[lane] : d64(x, r.centroids + index * r.d, r.d), index);
         }
       });
  for (int64_t i = 0; i < count; ++i) r.labels[s.row[s.list[i]]] = s.best[s.list[i]].index;
}

// The label of a slot whose candidates are all known; whether they are. If not, `best` and `limit` are what a second
// scan goes on from.
template <class T>
bool settle(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, const Block& block, int64_t slot,
            int64_t* rechecked) {
  const double rho = double(r.d + 4) * 0x1p-53;
  const int64_t row = s.row[slot], before = s.own[slot].group < 0 ? -1 : r.before[row];
  const T* x = r.row(row);
  const Own& own = s.own[slot];
  const Lowest& low = s.low[slot];
  bool holds_own = own.most < INFINITY;
  int64_t* label = r.labels + row;
  // Most rows: no other centroid can have as low a score as the own one may have.
  const uint32_t rivals = mask_at_most(low.first, broadcast(own.high));
  if (s.inverses[slot] > 0.0f && own.high < INFINITY && mask_at_most(low.second, broadcast(own.high)) == 0 &&
      (rivals == 0 || ((rivals & (rivals - 1)) == 0 && p.all.index[position_in(low, rivals)] == before))) {
    *label = before;
    return true;
  }
  s.limit[slot] = INFINITY;
  s.best[slot] = Nearest{0.0, -1};
  if (s.inverses[slot] > 0.0f) {
    const float lowest = least(low.first);
    if (!(lowest < INFINITY)) {
      *label = before;  // there was nothing to compare with
      return true;
    }
    const int64_t one = position_in(low, mask_at_most(low.first, broadcast(lowest)));
    const double b = b_of(p.all.norm[one], p.all.b[one], block.rho);
    float limit = limit_of(lowest, s.norms[slot], p.all.a[one], b, p.all.norm[one], rho, *p.slack);
    limit = own.high < limit ? own.high : limit;
    holds_own = holds_own && own.low <= limit;
    uint32_t mask = mask_at_most(low.first, broadcast(limit));
    // Complete unless a lane hides a second candidate behind its first.
    if (mask_at_most(low.second, broadcast(limit)) == 0) {
      int64_t candidates[kFloats + 1], count = 0;
      if (holds_own) candidates[count++] = before;
      for (; mask != 0; mask &= mask - 1) {
        const int64_t index = p.all.index[position_in(low, mask)];
        if (index >= 0 && !(holds_own && index == before)) candidates[count++] = index;
      }
      if (count > 1) {
        ++*rechecked;
        candidates[0] = nearest_of(x, candidates, count, r.d, r.centroids);
      }
      *label = candidates[0];
      return true;
    }
    s.limit[slot] = limit;
  } else if (!finite_row(x, r.d)) {
    *label = -1;
    return true;
  }
  ++*rechecked;
  if (holds_own) consider(&s.best[slot], d64(x, r.centroids + before * r.d, r.d), before);
  return false;
}

// Labels of the slots list[0, count), once their candidates are in `low`.
template <class T>
void decide(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, const Block& block, int64_t count,
            int64_t* rechecked) {
  int64_t open = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t slot = s.list[i];
    if (!settle(r, p, s, block, slot, rechecked)) s.list[open++] = slot;
  }
  rescan(r, p, s, block, open);
}

// Labels of the slots whose lowest bound is clear of the others by the common limit, which takes no look at the numbers
// of a row's centroid: most. Lists the others and returns how many they are. No slot knows an own centroid.
template <class T>
int64_t settle_clear(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, const Block& block) {
  const double b = b_of(p.all.largest[2], p.all.largest[1], block.rho);
  const CommonLimit common = common_limit_of(p, round_up(b), r.d);
  for (int64_t slot = 0; slot < block.count; ++slot) s.limit[slot] = least(s.low[slot].first);
  for (int64_t at = 0; at < block.count; at += kFloats) {
    store(s.limit + at, common_limit(common, load(s.limit + at), load(s.norms + at)));
  }
  int64_t left = 0;
  for (int64_t slot = 0; slot < block.count; ++slot) {
    const Lowest& low = s.low[slot];
    const Floats limit = broadcast(s.limit[slot]);
    const uint32_t near = mask_at_most(low.first, limit);
    if (near != 0 && (near & (near - 1)) == 0 && mask_at_most(low.second, limit) == 0 && s.inverses[slot] > 0.0f) {
      r.labels[s.row[slot]] = p.all.index[position_in(low, near)];
    } else {
      s.list[left++] = int32_t(slot);
    }
  }
  return left;
}

// The bounds of the groups that the slot was compared with, now that its label is known. The last lane stays: what is
// at least the distance to the centroid that a row left is so all the more to a nearer one.
template <class T>
void renew_bounds(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, int64_t slot) {
  const int64_t row = s.row[slot], before = r.before[row], label = r.labels[row];
  float* bounds = r.bounds + row * kKept;
  const uint32_t scanned = s.needs[slot].whole | s.needs[slot].changed;
  const InGroups& in = s.in_groups[slot];
  float scores[kKept];
  memcpy(scores, in.first, sizeof in.first);
  scores[kOwnLane] = 0.0f;  // no group's
  const int g = s.own[slot].group;
  if (label == before && g >= 0 && (scanned >> g & 1) != 0 && in.position >= 0 && p.all.index[in.position] == label) {
    scores[g] = in.second;
  }
  const float square = s.squares[slot] * (1.0f - 2.0f * epsilon_of(r.d));
  // Every step rounds by less than 2^-22 of its operands. In the data's units; where float32 holds none, the bound is
  // 0.
  const bool has_unit = s.inverses[slot] > 0.0f && unit_of(p) < INFINITY;
  const float unit = has_unit ? unit_of(p) * (1.0f - 0x1p-21f) : 0.0f;
  // One vector, without branches.
  for (int each = 0; each < kKept; ++each) {
    const float twice = 2.0f * (scores[each] < kFarthest ? scores[each] : kFarthest),
                v = square + twice - (square + fabsf(twice)) * 0x1p-21f - 0x1p-100f;
    const float root = sqrtf(v > 0.0f ? v : 0.0f) * unit, bound = (root < kFarthest ? root : kFarthest) - 0x1p-126f;
    const float kept = bounds[each];
    bounds[each] = (scanned >> each & 1) != 0 && !(bound >= kept) ? bound : kept;
  }
  if (label == before || before < 0) return;
  // The centroid that was the row's own is now one of its group.
  float* own = bounds + g;
  const float root = sqrtf(s.own[slot].least) * unit;
  const float bound = (root < kFarthest ? root : kFarthest) - 0x1p-126f;
  *own = bound < *own ? bound : *own;
}

// Forget what is known of the other centroids of the rows [start, stop).
template <class T>
void forget_bounds(const Rows<T>& r, int64_t start, int64_t stop) {
  memset(r.bounds + start * kKept, 0, sizeof(float) * kKept * size_t(stop - start));
}

// The lowest bounds of all slots among all centroids.
template <class T>
void find_lowest_of_all(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, const Block& block, Ahead* ahead) {
  for (int64_t at = 0; at < block.count; ++at) s.list[at] = int32_t(at);
  fill_list(s, r.d, block.count);
  find_lowest(p, s, block, block.count, r.d, 0, p.groups.panels, s.low, ahead);
}

// Labels of all slots by all centroids.
template <class T>
void assign_slots(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, const Block& block, Ahead* ahead,
                  int64_t* rechecked) {
  find_lowest_of_all(r, p, s, block, ahead);
  decide(r, p, s, block, settle_clear(r, p, s, block), rechecked);
}

// Labels and bounds of the rows [start, stop) by the centroids that they need.
template <class T>
void reassign_block(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, int64_t start, int64_t stop,
                    int64_t* rechecked) {
  Block block = {};
  for (int64_t row = start, since = start; row < stop; ++row) {
    Own own;
    Needs needs;
    if (needs_scan(r, p, row, &own, &needs)) pack_slot(r, p, s, row, own, needs, &block);
    if (block.count < block_rows(r.d) && row + 1 < stop) continue;
    // As many rows as the last slots took.
    Ahead ahead = r.ahead(row + 1, row + 1 - since);
    close_block(r, s, &block);
    scan_groups(p, s, block, r.d, &ahead);
    for (int64_t slot = 0; slot < block.count; ++slot) s.list[slot] = int32_t(slot);
    decide(r, p, s, block, block.count, rechecked);
    for (int64_t slot = 0; slot < block.count; ++slot) renew_bounds(r, p, s, slot);
    block.count = 0;
    since = row + 1;
  }
}

// Whether bounds pay in this call, by the panels that a sample of the rows would be compared with. A row that has to be
// looked at costs as much as comparing it with one panel more and 512 elements, the others as much as 64 elements.
// `cost` and `cost_in_group` are what comparing costs without bounds and with them, where int16 costs 1.
template <class T>
bool bounds_pay(const Rows<T>& r, const Prepared<T>& p, int64_t chunk, double cost, double cost_in_group) {
  constexpr int64_t kMost = 512;
  int64_t whole[kMaxGroups], changed[kMaxGroups], all = 0, rows = 0, seen = 0, needed = 0;
  for (int64_t g = 0; g < p.groups.count; ++g) {
    whole[g] = changed[g] = 0;
    for (int64_t panel = g * p.groups.stride; panel < (g + 1) * p.groups.stride; ++panel) {
      whole[g] += p.used[panel] > 0;
      changed[g] += p.used[p.groups.panels + panel] > 0;
    }
    all += whole[g];
  }
  const int64_t chunks = (r.n + chunk - 1) / chunk, samples = (chunks + kSample - 1) / kSample;
  const int64_t share = 1 + kMost / (samples + 1);
  for (int64_t start = 0; start < r.n; start += kSample * chunk) {
    for (int64_t row = start; row < start + share && row < start + chunk && row < r.n; ++row) {
      float bounds[kKept];
      memcpy(bounds, r.bounds + row * kKept, sizeof bounds);
      ++rows;
      if (keeps_label(p, r.before[row], bounds)) continue;
      ++seen;
      const Needs needs = find_needs(p, find_own(r, p, row), bounds);
      for (int64_t g = 0; g < p.groups.count; ++g) {
        needed += (needs.whole >> g & 1) * whole[g] + (needs.changed >> g & 1) * changed[g];
      }
    }
  }
  const double per_pair = 1.0 / double(pairs_of(r.d));
  const double kept = double(seen) * (1.0 + 256.0 * per_pair) + double(rows) * 32.0 * per_pair;
  return double(needed) * cost_in_group + kept < double(rows * all) * cost;
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
