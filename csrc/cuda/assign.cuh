// What the kernels of assign share: the layout of their operands, the bound on a score, a row's nearest centroids.
//
// Units, operands and the bound are derived at the top of dcfast/ops/assign/triton.py: rows and centroids are shifted
// by m and scaled by a power of two into float16 x' and c', and
//   v_j = ((H_j - a_j) - n b_j) - x'.c'_j
// is a lower bound of the score of centroid j. Here a place of 5 bits (and not 7) takes the low bits of v_j, so that
// the three float32 operations and the place are below w = 1.05 2^-18: 31 2^-23 + 3 2^-24 = 3.88e-6 < 4.00e-6.
//
// Operands lie in global memory as the tensor cores want them in shared memory: (problem, k-block, row, 64 elements),
// a row's 16-byte piece c at c ^ (row % 8). A run of rows of one k-block is one piece of memory, and a copy of it
// needs no description.
#pragma once

#include "common.cuh"

namespace dcfast {
namespace cuda {

constexpr int kBlockColumns = 64;   // elements of a k-block: 128 bytes, what the swizzle repeats over
constexpr int kTile = 128;          // centroids that are scored together
constexpr int kPlaces = kTile / 4;  // of a tile's columns in one lane
constexpr int kRowBytes = 2 * kBlockColumns;
constexpr int kTileBytes = kTile * kRowBytes;
constexpr int kBoundBytes = kTile * 8;  // H - a and b of a tile's centroids
// k-blocks that the tensor cores sum before a float32 addition takes over: bounds A for large d.
constexpr int kSumBlocks = 1024 / kBlockColumns;

constexpr double kW = 1.05 / (1 << 18);
constexpr double kE = 0.8 / (1 << 12);
// Scores of centroids that are none (padding, duplicates, not finite), and of nothing: finite, because the low bits of
// an infinity make a NaN.
constexpr float kDead = 8.507059173023462e37f;   // 2^126
constexpr float kNone = 1.7014118346046923e38f;  // 2^127

// A slice of the rows against all centroids of its problems. Problem p of the slice is problem0 + p of the call.
struct AssignPass {
  const __half* rows;           // (problems, k_blocks, n_padded, 64)
  const __half* centroids;      // (all problems, k_blocks, k_padded, 64)
  const float* row_size;        // (problems, n_padded): n of the bound, 0 for rows that float16 cannot hold
  const float* row_norm;        // |x~| rounded up; infinite if only the full recheck can tell, NaN if nothing can
  const float2* bounds;         // (all problems, k_padded): H - a and b
  const float* centroid_error;  // a
  const float* centroid_norm;   // |c~| rounded up
  const double* slack;          // (all problems,): what underflow can do to D64
  int64_t* labels;              // (all problems, label_stride), those that are proved
  int32_t* pair;                // (2, items): the two candidates
  int32_t* lists;               // (2, items): rows left with two candidates, and with more
  int32_t* counts;              // (2,): lengths of the lists
  int64_t problem0, problems, row0, n, n_padded, k_padded, label_stride, items;
  int32_t k_blocks;
  // Clears a score's place. It comes at run time so that it lies in a register: an instruction has room for one
  // immediate, and that is the new place.
  int32_t clear_place;
  double rho;  // the error of D64 relative to (|x~| + |c~|)^2
};

// The three lowest scores of a row seen so far, and where the two lowest are: the tile, beside the place in the low
// bits of the score.
struct Nearest {
  float v1 = kNone, v2 = kNone, v3 = kNone;
  int32_t tile1 = 0, tile2 = 0;

  // t1 <= t2 <= t3 of the tiles u1, u2: the loser of the two heads competes with the winner's second.
  __device__ __forceinline__ void merge(float t1, float t2, float t3, int32_t u1, int32_t u2) {
    const bool wins = t1 < v1;
    const float loser = fmaxf(t1, v1), runner = wins ? t2 : v2;
    const int32_t loser_tile = wins ? tile1 : u1, runner_tile = wins ? u2 : tile2;
    v3 = fminf(fmaxf(loser, runner), fminf(wins ? t3 : v3, wins ? v2 : t2));
    v1 = fminf(t1, v1);
    tile1 = wins ? u1 : tile1;
    v2 = fminf(loser, runner);
    tile2 = loser < runner ? loser_tile : runner_tile;
  }
};

// The centroid that a score of this lane's columns stands for.
__device__ __forceinline__ int32_t centroid_of(float score, int32_t tile, int lane) {
  const int place = __float_as_int(score) & (kPlaces - 1);
  return tile * kTile + place / 2 * 8 + 2 * (lane % 4) + place % 2;
}

// Scores a tile: sums holds x'.c' of rows lane / 4 (of 8 g + 2 (lane % 4) and the next at 4 g, 4 g + 1) and 8 below (at
// 4 g + 2, 4 g + 3), g < 16, as both wgmma and mma.sync leave it. A lane tells its two lowest from the rest; the third
// is no lower than the second, and that is taken for it: two near centroids among a lane's 32 of a tile are left to
// the full recheck.
__device__ __forceinline__ void score_tile(const float (&sums)[64], const float2* bounds, const float (&size)[2],
                                           int32_t clear_place, int32_t tile, int lane, Nearest* nearest) {
  float first[2] = {kNone, kNone}, second[2] = {kNone, kNone};
#pragma unroll
  for (int g = 0; g < kTile / 8; ++g) {
    const float4 bound = *reinterpret_cast<const float4*>(bounds + 8 * g + 2 * (lane % 4));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float low = __fmaf_rn(-size[h], e ? bound.w : bound.y, e ? bound.z : bound.x);
        const int bits = __float_as_int(low - sums[4 * g + 2 * h + e]);
        const float score = __int_as_float((bits & clear_place) | (2 * g + e));
        second[h] = fminf(second[h], fmaxf(first[h], score));
        first[h] = fminf(first[h], score);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) nearest[h].merge(first[h], second[h], second[h], tile, tile);
}

// Adds this lane's item to a list if it is chosen: one atomic operation per warp.
__device__ __forceinline__ void append(int32_t* list, int32_t* count, int32_t item, bool chosen, int lane) {
  const unsigned lanes = __ballot_sync(0xFFFFFFFFu, chosen);
  if (lanes == 0) return;
  int32_t base = 0;
  if (lane == 0) base = atomicAdd(count, __popc(lanes));
  base = __shfl_sync(0xFFFFFFFFu, base, 0);
  if (chosen) list[base + __popc(lanes & ((1u << lane) - 1))] = item;
}

// Decides kRows (2 or 4) rows of every 4 lanes: nearest[i] is what this lane saw of row first_row + i / 2 * stride +
// i % 2 * 8 of problem p. Every lane of the warp comes here.
template <int kRows>
__device__ __forceinline__ void settle(const AssignPass& pass, int64_t p, int64_t first_row, int stride, int lane,
                                       const Nearest (&nearest)[kRows]) {
  // Of the row that this lane decides: scores and centroids.
  float v1 = kNone, v2 = kNone, v3 = kNone;
  int32_t at1 = 0, at2 = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    Nearest own = nearest[i];
    own.tile1 = centroid_of(own.v1, own.tile1, lane);
    own.tile2 = centroid_of(own.v2, own.tile2, lane);
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      const float t1 = __shfl_xor_sync(0xFFFFFFFFu, own.v1, step), t2 = __shfl_xor_sync(0xFFFFFFFFu, own.v2, step),
                  t3 = __shfl_xor_sync(0xFFFFFFFFu, own.v3, step);
      const int32_t u1 = __shfl_xor_sync(0xFFFFFFFFu, own.tile1, step),
                    u2 = __shfl_xor_sync(0xFFFFFFFFu, own.tile2, step);
      own.merge(t1, t2, t3, u1, u2);
    }
    const bool mine = lane % 4 == i;
    v1 = mine ? own.v1 : v1;
    v2 = mine ? own.v2 : v2;
    v3 = mine ? own.v3 : v3;
    at1 = mine ? own.tile1 : at1;
    at2 = mine ? own.tile2 : at2;
  }
  const int i = lane % 4;
  const int64_t row = first_row + i / 2 * stride + i % 2 * 8;
  const bool inside = i < kRows && row < pass.n;
  bool pair = false, full = false;
  const int32_t item = static_cast<int32_t>(p * pass.n + row);
  if (inside) {
    const int64_t at = (pass.problem0 + p) * pass.k_padded + at1;
    const float norm = pass.row_norm[p * pass.n_padded + row];
    const double size = pass.row_size[p * pass.n_padded + row];
    const double reach = double(norm) + double(pass.centroid_norm[at]);
    const double margin =
        2.0 * (double(pass.centroid_error[at]) + size * double(pass.bounds[at].y)) + pass.rho * reach * reach;
    double limit = double(v1) + margin * (1.0 + 1.0 / (1 << 20)) + pass.slack[pass.problem0 + p];
    limit += fabs(limit) * 0x1p-50;
    const bool unlabelled = norm != norm || v1 >= kDead * 0.5f;
    const bool proved = double(v2) > limit;
    pair = !unlabelled && !proved && double(v3) > limit;
    full = !unlabelled && !proved && !pair;
    if (unlabelled || proved) {
      pass.labels[(pass.problem0 + p) * pass.label_stride + pass.row0 + row] = unlabelled ? -1 : int64_t(at1);
    }
    if (pair) {
      pass.pair[item] = at1;
      pass.pair[pass.items + item] = at2;
    }
  }
  append(pass.lists, pass.counts, item, pair, lane);
  append(pass.lists + pass.items, pass.counts + 1, item, full, lane);
}

// The rows and the centroids as the caller has them: any strides, in elements.
template <class T>
struct AssignData {
  const T* x;
  int64_t x_problem, x_row, x_column;
  const T* centroids;
  int64_t c_problem, c_row, c_column;
  int64_t problems, n, k, d;
};

// What is made of the centroids, each for all problems.
template <class T>
struct AssignCentroids {
  unsigned long long* keys;     // (problems, slots): a hash table of the centroids; 0 where nobody is
  int32_t* lowest;              // (problems, slots): k less the lowest centroid of that hash
  double* sums;                 // (problems, d): of the finite centroids
  int32_t* finite;              // (problems,): how many
  unsigned long long* largest;  // (problems,): the bits of the largest |c - m|
  int64_t zeroed;               // bytes from keys on that are 0 at first
  int64_t slots;                // a power of two, at least 2 k
  int32_t* slot;                // (problems, k): of a finite centroid; -1
  uint8_t* live;                // (problems, k): finite, and the first of equal ones
  double* shift;                // (problems, d): m
  double* scale;                // (problems,)
  double* slack;                // (problems,)
  T* transposed;                // (problems, d, k)
  __half* halves;               // (problems, k_blocks, k_padded, 64)
  float2* bounds;               // (problems, k_padded)
  float* error;
  float* norm;
  int64_t k_padded;
};

// A slice of rows: problems [problem0, problem0 + problems), rows [row0, row0 + n) of each.
struct AssignSlice {
  int64_t problem0, problems, row0, n, n_padded;
};

template <class T>
int assign_prepare(const AssignData<T>& data, const AssignCentroids<T>& made, double spread, cudaStream_t stream);
template <class T>
int assign_rows(const AssignData<T>& data, const AssignCentroids<T>& made, const AssignSlice& slice, __half* halves,
                float* size, float* norm, cudaStream_t stream);
// Decides the rows on the lists of the pass; labels as there.
template <class T>
int assign_recheck(const AssignData<T>& data, const AssignCentroids<T>& made, const AssignPass& pass,
                   int multiprocessors, cudaStream_t stream);

// The pass over a slice, for any GPU from sm_80 on, and on sm_90 in blocks of 128 or 256 rows.
int assign_pass(const AssignPass& pass, int shared_bytes, int multiprocessors, cudaStream_t stream);
int assign_pass_sm90(const AssignPass& pass, int rows, int multiprocessors, cudaStream_t stream);

}  // namespace cuda
}  // namespace dcfast
