// The wide pass in bytes, for rows that have a label: twice the elements of int16 per instruction, for a bound some
// hundred times as wide. The distance to a row's own centroid limits the score T of its nearest one from above, so that
// few centroids have to be looked at again (about 1 of 1,000 at d = 64 or 256), and finding that a tile of rows and
// centroids has none of them costs one comparison.
//
// Rows are rounded to x' = v q with |q| <= 127, stored as q + 128, which is unsigned; centroids to c' = u_j q'_j. One
// instruction multiplies unsigned by signed bytes and adds the products of neighbours, to sums that begin with -128
// times those of q' (`starts`) and so end as q.q'. With VNNI, and in the tiles of AMX, they are int32, which no sum
// fills: 255 * 127 * kMostOfBytes < 2^29. Without, they are int16:
//   * That must not saturate: two neighbours of a centroid have |q'_i| + |q'_i+1| <= 128, and 255 * 128 < 2^15.
//   * Sums of int16 wrap around, which does no harm as long as the last one fits. Over the columns that one lane of a
//     span takes, half of its kByteSpan, both q and q' have a length of at most kLength + sqrt(kByteSpan / 2) / 2, so
//     that it is at most 180.9^2 < 2^15 by Cauchy and Schwarz. After every span the two lanes of a word are added up in
//     int32.
//
// The bound, with a_j and b_j as in assign_wide.h: here b_j <= g u_j, where g takes the largest |c~_j| / u_j and r_c /
// u_j of all centroids; they hardly differ. So with G = |x~| g / v
//
//   L_j = h_j - v u_j (q.q'_j + G) <= T  where  D_j = q.q'_j - (h_j / u_j) / v + (T / v) / u_j >= -G
//
// which costs two multiply-adds. Their roundings and those of their operands are below 3 u |x'||c'| + 4 u H_j + 3 u
// |T|. The last is added to T. |x'||c'| < 2.1 |x~||c~| for d <= kMostOfBytes, since the roundings lose at most sqrt(d)
// / 2 units, and a unit is at most |x~| / 126 or |c~| / 89.
#pragma once

#include "assign_block.h"
#include "assign_tiles.h"

#if defined(__AVX2__)

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr float kLength = 178.0f;

// Where sums are long only g asks for units of about the same length: that of a centroid's largest element, or of three
// times the mean one (in the root of the mean square) if that is longer.
constexpr double kPeak = 3.0;

// Rows of a tile.
constexpr int kByteRows = kHasTiles ? kTileRows : kRows;

// What looking at a row or at a rival costs, in products of int16.
inline double cost_of_look(int64_t d) { return double(12 * d + 4000); }

// Element i of c~, 0 behind the last.
template <class T>
inline double shifted_element(const T* row, const Prepared<T>& p, int64_t d, int64_t i) {
  return i < d ? (double(row[i]) - double(p.shift[i])) * *p.scale : 0.0;
}

// The least unit that a centroid may have.
template <class T>
float unit_in_bytes(const T* row, int64_t d, const Prepared<T>& p) {
  double longest = 0.0, neighbours = 0.0;
  for (int64_t first = 0; first < d; first += kByteSpan) {
    double squares[2] = {};
    for (int64_t i = first; i < d && i < first + kByteSpan; i += 2) {
      const double v = fabs(shifted_element(row, p, d, i)), w = fabs(shifted_element(row, p, d, i + 1));
      squares[kLongSums ? 0 : i / 2 % 2] += v * v + w * w;
      neighbours = fmax(neighbours, kLongSums ? fmax(v, w) : v + w);
    }
    longest = fmax(longest, fmax(squares[0], squares[1]));
  }
  const double length = kLongSums ? 126.9 / kPeak * sqrt(double(d)) : double(kLength);
  return float(fmax(fmax(sqrt(longest) * (1.0 + 0x1p-40) / length, neighbours / 126.9), 0x1p-80));
}

// A centroid at position `at`, which pack_wide has filled; returns |c~ - c'| / unit.
template <class T>
double pack_bytes(const T* row, int64_t d, const Prepared<T>& p, int64_t at) {
  const PackedBytes& b = p.bytes;
  b.unit[at] = unit_in_bytes(row, d, p);
  b.h[at] = p.all.h[at] / b.unit[at];
  b.per[at] = 1.0f / b.unit[at];
  const double per = 1.0 / double(b.unit[at]);
  int32_t* words = word_at(b.operands, at, quads_of(d));
  int32_t* starts = word_at(b.starts, at, spans_of(d));
  double residual = 0.0;
  int32_t sums[2] = {};
  for (int64_t i = 0; i < quads_of(d); ++i) {
    int8_t quad[4];
    for (int64_t lane = 0; lane < 4; ++lane) {
      const double v = shifted_element(row, p, d, 4 * i + lane) * per;
      const double q = (v + 6755399441055744.0) - 6755399441055744.0;  // as in pack_wide
      residual += (v - q) * (v - q);
      quad[lane] = int8_t(q);
      sums[lane / 2] += int32_t(q);
    }
    memcpy(words + i * kPanel, quad, 4);
    if ((i + 1) % (kByteSpan / 4) != 0 && i + 1 < quads_of(d)) continue;
    const int16_t shorts[2] = {int16_t(-128 * sums[0]), int16_t(-128 * sums[1])};
    int32_t start = -128 * (sums[0] + sums[1]);
    if (!kLongSums) memcpy(&start, shorts, 4);
    starts[i / (kByteSpan / 4) * kPanel] = start;
    sums[0] = sums[1] = 0;
  }
  return sqrt(residual) * (1.0 + double(d + 16) * 0x1p-50) + double(p.all.norm[at]) * per * 0x1p-50;
}

// |x~|^2, the largest element, and the largest square of the length of a lane of a span; each up to epsilon.
struct Measures {
  float square, largest, longest;
};

template <class T>
Measures measure_row(const T* x, const Prepared<T>& p, int64_t d) {
  const T scale = T(*p.scale);
  Floats squares = {}, largest = {};
  float longest = 0.0f, tail = 0.0f, last = 0.0f;
  const int64_t whole = d / kFloats * kFloats;
  for (int64_t first = 0; first < whole; first += kByteSpan) {
    Floats own = {};
    for (int64_t i = first; i < whole && i < first + kByteSpan; i += kFloats) {
      const Floats v = shifted(x + i, p.shift + i, scale);
      own = fmadd(v, v, own);
      largest = maximum(v < 0.0f ? -v : v, largest);
    }
    squares += own;
    const Quad q = quad_of(own, [](Quad a, Quad b) { return a + b; });
    const float low = q[0] + q[1], high = q[2] + q[3];
    last = low > high ? low : high;
    longest = last > longest ? last : longest;
  }
  float most = -least(-largest);
  for (int64_t i = whole; i < d; ++i) {
    const float v = shifted_one(x + i, p.shift + i, scale);
    tail += v * v;
    most = fmaxf(most, fabsf(v));
  }
  const float end = (whole % kByteSpan != 0 ? last : 0.0f) + tail;  // as if all of the tail were in the longer lane
  return Measures{sum(squares) + tail, most, end > longest ? end : longest};
}

// Round one row to bytes, v = `inverse`; returns rho_x, or a negative number where float32 cannot hold the row.
template <class T>
float pack_row_in_bytes(const T* x, const Prepared<T>& p, int64_t d, uint8_t* q, float* norm, float* inverse,
                        float* square) {
  const T scale = T(*p.scale);
  const Measures of = measure_row(x, p, d);
  const float own = length_from(of.square, d);
  if (!(own < kHugeRow)) return -1.0f;
  const float longest = kLongSums ? 0.0f : length_from(of.longest, d) / kLength;
  const float v = fmaxf(fmaxf(longest, of.largest / 126.4f), 0x1p-80f), per = 1.0f / v;
  Floats rests[2] = {};
  const auto step = [&](int64_t at, int chain) {
    const Floats element = shifted(x + at, p.shift + at, scale);
    const Floats rounded = fmadd(element, broadcast(per), broadcast(kRounder));
    const Floats left = fnmadd(rounded - kRounder, broadcast(v), element);
    rests[chain] = fmadd(left, left, rests[chain]);
    return as_integers(rounded);
  };
  int64_t i = 0;
  for (; i + 4 * kFloats <= d; i += 4 * kFloats) {
    const Ints integers[4] = {step(i, 0), step(i + kFloats, 1), step(i + 2 * kFloats, 0), step(i + 3 * kFloats, 1)};
    store_offset_bytes(q + i, integers);
  }
  float rest = sum(rests[0] + rests[1]);
  for (; i < d; ++i) {
    const float element = shifted_one(x + i, p.shift + i, scale), rounded = rintf(element * per);
    const float left = element - rounded * v;
    rest += left * left;
    q[i] = uint8_t(int(rounded) + 128);
  }
  for (; i % 4 != 0; ++i) q[i] = 128;
  *norm = own;
  *inverse = v;
  *square = of.square;
  // As in close_block.
  const float measured = length_from(rest, d), most = 0.51f * sqrtf(float(d)) * v;
  return (measured < most ? measured : most) / own * (1.0f + epsilon_of(d)) + 8.0f * float(kU);
}

// Put a row whose own centroid is known into the next slot, if float32 can hold it.
template <class T>
bool pack_slot_in_bytes(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, int64_t row, const Own& own,
                        Block* block) {
  const int64_t at = block->count;
  uint8_t* q = reinterpret_cast<uint8_t*>(s.rows + at * 2 * pairs_of(r.d));
  const float rho = pack_row_in_bytes(r.row(row), p, r.d, q, s.norms + at, s.inverses + at, s.squares + at);
  if (rho < 0.0f) return false;
  block->rho = rho > block->rho ? rho : block->rho;
  s.row[at] = row;
  s.own[at] = own;
  bound_own(p, r.d, s.squares[at], s.own + at);
  if (!(s.own[at].high < INFINITY)) return false;
  ++block->count;
  return true;
}

// The sums of the words [first, last) of one span.
template <int R, int V>
inline __attribute__((always_inline)) void sum_span(const int16_t* const* row, int64_t first, int64_t last,
                                                    const int32_t* panel, const int32_t* starts, Ints acc[R][V]) {
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[r][v] = load(starts + v * kFloats);
  }
#pragma GCC unroll 2
  for (int64_t i = first; i < last; ++i) {
    Ints c[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) c[v] = load(panel + i * kPanel + v * kFloats);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      Ints xi = broadcast_pair(row[r] + 2 * i);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] = add_byte_products(acc[r][v], xi, c[v]);
    }
  }
}

// D of a panel for the R rows in some slots, as scores_of_tile. Not inlined, as products. Where there is but one span
// the sums stay in registers to the end.
template <int R, int V, bool kOneSpan>
__attribute__((noinline)) uint32_t scores_in_bytes(const int16_t* rows, const int32_t* slots, const InBytes* in_bytes,
                                                   int64_t d, const PackedBytes& p, int64_t at, Floats scores[R][2]) {
  const int64_t quads = quads_of(d), stride = 2 * pairs_of(d);
  const int32_t *panel = p.operands + at * quads, *starts = p.starts + at * spans_of(d);
  const int16_t* row[R];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) row[r] = rows + slots[r] * stride;
  Ints acc[R][V], before[R][V] = {};
  int64_t first = 0;
  for (; !kOneSpan && first + kByteSpan / 4 < quads; first += kByteSpan / 4, starts += kPanel) {
    sum_span<R, V>(row, first, first + kByteSpan / 4, panel, starts, acc);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) before[r][v] = add_word(before[r][v], acc[r][v]);
    }
  }
  sum_span<R, V>(row, first, quads, panel, starts, acc);
  Ints reached = {};
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    const InBytes& own = in_bytes[slots[r]];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const Ints product = add_word(kOneSpan ? Ints{} : before[r][v], acc[r][v]);
      const Floats score =
          fnmadd(load(p.h + at + v * kFloats), broadcast(own.per), __builtin_convertvector(product, Floats));
      scores[r][v] = fmadd(load(p.per + at + v * kFloats), broadcast(own.limit), score);
    }
    if (V == 1) scores[r][1] = broadcast(-INFINITY);
    reached |= (V == 1 ? scores[r][0] : maximum(scores[r][0], scores[r][1])) >= broadcast(own.least);
  }
  return any(reached) ? ~uint32_t(0) : 0;
}

// D of a panel for a tile of rows, count of the list; returns which of them may reach -G with a centroid.
template <bool kOneSpan>
uint32_t scores_of_tile(const Scratch& s, int64_t tile, int64_t count, int64_t d, const PackedBytes& p, int64_t at,
                        bool half, Floats scores[kByteRows][2]) {
  const int32_t* slots = s.list + tile * kByteRows;
#if defined(__AMX_INT8__)
  const int64_t words = quads_of(d);
  const uint8_t* rows = s.tile_rows + tile * kByteRows * 4 * words;
  const int n = int(count - tile * kByteRows < kByteRows ? count - tile * kByteRows : kByteRows);
  const auto products =
      n <= 16 ? (half ? tile_products<1, 1> : tile_products<1, 2>) : (half ? tile_products<2, 1> : tile_products<2, 2>);
  products(rows, words, p.operands + at * words, p.starts + at, s.sums);
  const Floats h[2] = {load(p.h + at), load(p.h + at + kFloats)},
               per[2] = {load(p.per + at), load(p.per + at + kFloats)};
  uint32_t reached = 0;
  for (int r = 0; r < n; ++r) {
    const InBytes& own = s.in_bytes[slots[r]];
    scores[r][1] = broadcast(-INFINITY);
    uint32_t lanes = 0;
    for (int v = 0; v < (half ? 1 : 2); ++v) {
      const Floats sum = __builtin_convertvector(load(s.sums + r * kPanel + v * kFloats), Floats);
      scores[r][v] = fmadd(per[v], broadcast(own.limit), fnmadd(h[v], broadcast(own.per), sum));
      lanes |= mask_at_most(broadcast(own.least), scores[r][v]);
    }
    reached |= uint32_t(lanes != 0) << r;
  }
  return reached;
#else
  (void)count;
  const auto compare = half ? scores_in_bytes<kRows, 1, kOneSpan> : scores_in_bytes<kRows, 2, kOneSpan>;
  return compare(s.rows, slots, s.in_bytes, d, p, at, scores);
#endif
}

// The limit T of a slot, with room for what D rounds of it.
inline void set_limit(const Scratch& s, int64_t slot, float limit) {
  s.limit[slot] = limit;
  s.in_bytes[slot].limit = round_up((double(limit) + fabs(double(limit)) * 0x1p-21) / double(s.inverses[slot]));
}

// What a tile found for a slot: keeps the centroids other than its own as rivals and lowers the limit. Returns the lane
// of its own, or -1.
template <class T>
__attribute__((noinline)) int offer(const Prepared<T>& p, const Scratch& s, int64_t slot, int64_t own, int64_t d,
                                    int64_t position, uint32_t mask, const Floats* scores, double g) {
  Rivals* rivals = s.rivals + slot;
  const InBytes& in = s.in_bytes[slot];
  const double v = double(s.inverses[slot]), limit = double(in.limit) * v, rho = double(d + 4) * 0x1p-53;
  const double rounded = fabs(limit) * 0x1p-21;  // what D rounds of T, either way
  float lowest = s.limit[slot];
  int own_lane = -1;
  for (; mask != 0; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    const int64_t at = position + lane, index = p.all.index[at];
    if (index == own) own_lane = lane;
    if (index < 0 || index == own) continue;
    // L = T - v u (D + G)
    const double reach = double(scores[lane / kFloats][lane % kFloats]) - double(in.least);
    const double unit = double(p.bytes.unit[at]);
    const double bound = limit - v * unit * reach;
    const float low = round_down(bound - rounded), high = round_up(bound + rounded);
    lowest = fminf(lowest, limit_of(high, s.norms[slot], p.all.a[at], g * unit, p.all.norm[at], rho, *p.slack));
    if (rivals->count < kRivals) {
      rivals->position[rivals->count] = int32_t(at);
      rivals->low[rivals->count] = low;
    }
    ++rivals->count;
  }
  if (lowest < s.limit[slot]) set_limit(s, slot, lowest);
  return own_lane;
}

// L of a panel's centroids but the own one, up to what least_in_group takes off.
template <class T>
inline Floats lower_bounds(const Prepared<T>& p, const Scratch& s, int64_t slot, int64_t position, float limit,
                           const Floats* scores, int own_lane) {
  Floats low[2];
  for (int half = 0; half < 2; ++half) {
    const Floats step = load(p.bytes.unit + position + half * kFloats) * s.inverses[slot];
    low[half] = fnmadd(step, scores[half] - s.in_bytes[slot].least, broadcast(limit * s.inverses[slot]));
    if (own_lane / kFloats == half && own_lane >= 0) low[half][own_lane % kFloats] = INFINITY;
  }
  return minimum(low[0], low[1] == low[1] ? low[1] : broadcast(INFINITY));  // not a number in the padding
}

// Compare the slots list[0, count) with the panels [first, last); with kInGroup, keep the lowest bounds as well.
template <bool kOneSpan, bool kInGroup, class T>
void find_rivals(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, int64_t count, int64_t first, int64_t last,
                 double g, Ahead* ahead) {
  const int64_t tiles = (count + kByteRows - 1) / kByteRows;
  const int64_t share = (ahead->end - ahead->at) / ((last - first) * tiles + 1) + 64;
  if (kHasTiles) gather_rows(s, count, r.d);
  for (int64_t panel = first; panel < last; ++panel) {
    if (p.used[panel] == 0) continue;
    const int64_t position = panel * kPanel;
    const bool half = p.used[panel] <= kFloats;  // the right vector holds padding alone
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int32_t* slots = s.list + tile * kByteRows;
      Floats scores[kByteRows][2];
      const uint32_t some = scores_of_tile<kOneSpan>(s, tile, count, r.d, p.bytes, position, half, scores);
      ahead->step(share);
      for (int i = 0; (some != 0 || kInGroup) && i < kByteRows && tile * kByteRows + i < count; ++i) {
        if (!kInGroup && (some >> i & 1) == 0) continue;
        const int64_t slot = slots[i];
        const Floats least = broadcast(s.in_bytes[slot].least);
        const float limit = s.in_bytes[slot].limit;
        const uint32_t mask = mask_at_most(least, scores[i][0]) | mask_at_most(least, scores[i][1]) << kFloats;
        const int64_t own = r.before[s.row[slot]];
        const int own_lane = mask != 0 ? offer(p, s, slot, own, r.d, position, mask, scores[i], g) : -1;
        if (!kInGroup) continue;
        Floats* lowest = &s.low_in_group[tile * kByteRows + i].first;
        *lowest = minimum(*lowest, lower_bounds(p, s, slot, position, limit, scores[i], own_lane));
      }
    }
  }
}

// Sets up the slots of a block, once its rho is known. Returns g.
template <class T>
double start_block(const Prepared<T>& p, const Scratch& s, const Block& block, int64_t d) {
  const double g = b_of(double(p.bytes.largest[0]), double(p.bytes.largest[1]), double(block.rho));
  for (int64_t slot = 0; slot < block.count; ++slot) {
    const double per = 1.0 / double(s.inverses[slot]);
    s.in_bytes[slot] = InBytes{float(per), 0.0f, -round_up(double(s.norms[slot]) * per * g)};
    s.rivals[slot].count = 0;
    set_limit(s, slot, s.own[slot].high);
  }
  s.in_bytes[block_rows(d)] = InBytes{1.0f, 0.0f, INFINITY};  // of the slot of zeros
  return g;
}

// All slots of a block with all centroids.
template <class T>
void find_all_rivals(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, const Block& block, Ahead* ahead) {
  const Tiles in_use;
  const double g = start_block(p, s, block, r.d);
  for (int64_t slot = 0; slot < block.count; ++slot) s.list[slot] = int32_t(slot);
  fill_list(s, r.d, block.count);
  const auto find = r.d <= kByteSpan ? find_rivals<true, false, T> : find_rivals<false, false, T>;
  find(r, p, s, block.count, 0, p.groups.panels, g, ahead);
}

// As scan_groups; the lowest bounds leave out the own centroid.
template <class T>
void scan_groups_in_bytes(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, const Block& block, Ahead* ahead) {
  const Tiles in_use;
  const double g = start_block(p, s, block, r.d);
  const auto find = r.d <= kByteSpan ? find_rivals<true, true, T> : find_rivals<false, true, T>;
  for_groups(p, s, block, r.d, [&](int64_t group, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) s.low_in_group[i].first = broadcast(INFINITY);
    find(r, p, s, count, first, first + p.groups.stride, g, ahead);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t slot = s.list[i];
      const double low = double(least(s.low_in_group[i].first));
      // What D rounds of T, which sank meanwhile, and what rounding the bound took.
      const double most = fmax(fabs(double(s.own[slot].high)), fabs(double(s.limit[slot])));
      s.in_groups[slot].first[group] = low < INFINITY ? round_down(low - (fabs(low) + most) * 0x1p-20) : INFINITY;
      s.in_groups[slot].position = -1;
    }
  });
}

// The label of a slot, from its own centroid and its rivals; whether these are all known.
template <class T>
bool settle_rivals(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, int64_t slot, int64_t* rechecked) {
  const Rivals& rivals = s.rivals[slot];
  if (rivals.count > kRivals) return false;
  const int64_t row = s.row[slot], before = r.before[row];
  const T* x = r.row(row);
  const Own& own = s.own[slot];
  // The squares in float32 decide between most of them.
  int64_t candidates[kRivals + 1], count = 0;
  double near[kRivals + 1], most = INFINITY;
  const double epsilon = double(epsilon_of(r.d)) + 0x1p-30, tau = 0x1p-100 + 2.0 * *p.slack;  // with room for D64
  const auto add = [&](int64_t index, double low, double high) {
    candidates[count] = index;
    near[count++] = low - tau;
    most = fmin(most, high + tau);
  };
  if (own.low <= s.limit[slot]) add(before, double(own.least) * (1.0 - 0x1p-30), double(own.most) * (1.0 + 0x1p-30));
  for (int i = 0; i < rivals.count; ++i) {
    if (!(rivals.low[i] <= s.limit[slot])) continue;
    const int64_t index = p.all.index[rivals.position[i]];
    const double square = square_between(x, r.centroids + index * r.d, r.d, T(*p.scale));
    add(index, square * (1.0 - epsilon), square * (1.0 + epsilon));
  }
  int64_t close = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!(near[i] > most)) candidates[close++] = candidates[i];
  }
  if (close > 1) {
    ++*rechecked;
    candidates[0] = nearest_of(x, candidates, close, r.d, r.centroids);
  }
  r.labels[row] = candidates[0];
  return true;
}

// Labels of the rows left[0, count) in int16.
template <class T>
void assign_left(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, int64_t count, int64_t* rechecked) {
  const int64_t most = block_rows(r.d);
  Ahead none = {nullptr, nullptr};
  for (int64_t first = 0; first < count; first += most) {
    Block block = {};
    for (int64_t i = first; i < count && i < first + most; ++i) {
      pack_slot(r, p, s, s.left[i], kUnknown, Needs{}, &block);
      if (r.bounds != nullptr) forget_bounds(r, s.left[i], s.left[i] + 1);
    }
    close_block(r, s, &block);
    assign_slots(r, p, s, block, &none, rechecked);
  }
}

// As assign_block, for rows of which most have a label. The others, and those of too many rivals, are left to int16.
template <class T>
void assign_block_in_bytes(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, int64_t start, int64_t stop,
                           int64_t n_threads, int64_t* rechecked) {
  const int64_t most = block_rows(r.d);
  for (int64_t first = start; first < stop; first += most) {
    Block block = {};
    int64_t left = 0;
    const int64_t last = first + most < stop ? first + most : stop;
    for (int64_t row = first; row < last; ++row) {
      const Own own = find_own(r, p, row);
      if (own.group < 0 || !pack_slot_in_bytes(r, p, s, row, own, &block)) s.left[left++] = row;
    }
    Ahead ahead = r.ahead(last < stop ? last : stop + (n_threads - 1) * (stop - start), most);
    find_all_rivals(r, p, s, block, &ahead);
    for (int64_t slot = 0; slot < block.count; ++slot) {
      if (!settle_rivals(r, p, s, slot, rechecked)) s.left[left++] = s.row[slot];
    }
    assign_left(r, p, s, left, rechecked);
  }
}

// As reassign_block.
template <class T>
void reassign_block_in_bytes(const Rows<T>& r, const Prepared<T>& p, const Scratch& s, int64_t start, int64_t stop,
                             int64_t* rechecked) {
  const int64_t most = block_rows(r.d);
  Block block = {};
  int64_t left = 0;
  for (int64_t row = start, since = start; row < stop; ++row) {
    Own own;
    Needs needs;
    if (needs_scan(r, p, row, &own, &needs)) {
      if (own.group >= 0 && pack_slot_in_bytes(r, p, s, row, own, &block)) {
        s.needs[block.count - 1] = needs;
      } else {
        s.left[left++] = row;
      }
    }
    if (block.count < most && left < most && row + 1 < stop) continue;
    Ahead ahead = r.ahead(row + 1, row + 1 - since);
    scan_groups_in_bytes(r, p, s, block, &ahead);
    for (int64_t slot = 0; slot < block.count; ++slot) {
      if (settle_rivals(r, p, s, slot, rechecked)) {
        renew_bounds(r, p, s, slot);
      } else {
        s.left[left++] = s.row[slot];
      }
    }
    assign_left(r, p, s, left, rechecked);
    block = {};
    left = 0;
    since = row + 1;
  }
}

// What looking at rivals costs in bytes, as a share of the products that bytes spare if rows are compared with all
// centroids; from a sample.
template <class T>
double cost_of_rivals(const Rows<T>& r, const Prepared<T>& p, const Scratch& s) {
  constexpr int64_t kShare = 16;
  const int64_t most = block_rows(r.d), share = (r.n + kShare - 1) / kShare, rows = share < most ? share : most;
  const double products = double(*p.all.live * r.d), look = cost_of_look(r.d);
  if (look >= kSpared * products) return INFINITY;
  Block block = {};
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = i * (r.n / rows);
    const Own own = find_own(r, p, row);
    if (own.group >= 0) pack_slot_in_bytes(r, p, s, row, own, &block);
  }
  if (block.count == 0) return INFINITY;
  Ahead none = {nullptr, nullptr};
  find_all_rivals(r, p, s, block, &none);
  double cost = 0.0;
  for (int64_t slot = 0; slot < block.count; ++slot) {
    const int64_t count = s.rivals[slot].count;
    cost += count > kRivals ? products : look * double(1 + count);
  }
  return cost / (kSpared * products * double(block.count));
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
#endif
