// The certified pass of assign on any GPU from sm_80 on: cp.async and mma.sync.
//
// A block of 8 warps takes 256 rows, 32 per warp, and walks over the centroids in tiles of 128, a k-block at a time
// through a ring in shared memory. The rows stay in shared memory where they fit beside two slots (d <= 256 in the 163
// KiB of sm_80); else they come with every tile. Per k-step of 16 a warp reads 1 KiB of rows and 4 KiB of centroids for
// 32 products of 16 x 8 x 16, which take 64 clocks of the multiprocessor (1024 multiply-adds each): 80 bytes per clock,
// of 128.
#include <ptx.cuh>

#include "assign.cuh"

namespace dcfast {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 256;
constexpr int kRowsBytes = kRows * kRowBytes;
constexpr int kMaxStages = 4;

// Copies `rows` rows of a k-block, adjacent and swizzled in both memories.
template <int kRowCount>
__device__ __forceinline__ void copy_rows(unsigned char* to, const __half* from) {
  constexpr int kPieces = kRowCount * kRowBytes / 16;
  static_assert(kPieces % kThreads == 0, "every thread copies as many pieces");
#pragma unroll
  for (int i = 0; i < kPieces / kThreads; ++i) {
    const int piece = i * kThreads + threadIdx.x;
    cp_async_16(to + piece * 16, reinterpret_cast<const unsigned char*>(from) + piece * 16);
  }
}

// The address of 16-byte piece `piece` of a row.
__device__ __forceinline__ const unsigned char* swizzled(const unsigned char* rows, int row, int piece) {
  return rows + row * kRowBytes + ((piece ^ (row & 7)) << 4);
}

template <bool kResident, bool kPromote>
__global__ void __launch_bounds__(kThreads, 1) certify_sm80(const AssignPass pass, int stages) {
  // Half of the rows at a time where a second set of sums must be kept.
  constexpr int kSlabs = kPromote ? 1 : 2, kBlockRows = kRows / (3 - kSlabs), kBlockRowsBytes = kBlockRows * kRowBytes;
  constexpr int kStageBytes = kTileBytes + (kResident ? 0 : kBlockRowsBytes);
  const int k_blocks = pass.k_blocks;
  unsigned char* const resident = dynamic_shared();
  unsigned char* const ring = resident + (kResident ? k_blocks * kBlockRowsBytes : 0);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row_blocks = pass.n_padded / kBlockRows, work = pass.problems * row_blocks;
  const int tiles = static_cast<int>(pass.k_padded / kTile), steps = tiles * k_blocks;
  for (int64_t item = blockIdx.x; item < work; item += gridDim.x) {
    const int64_t p = item / row_blocks, row0 = item % row_blocks * kBlockRows;
    const __half* const rows = pass.rows + (p * k_blocks * pass.n_padded + row0) * kBlockColumns;
    const __half* const centroids = pass.centroids + (pass.problem0 + p) * k_blocks * pass.k_padded * kBlockColumns;
    const float2* const bounds = pass.bounds + (pass.problem0 + p) * pass.k_padded;
    const int64_t slab_row = warp * 16 * kSlabs, first_row = row0 + slab_row + lane / 4;
    float size[kSlabs][2];
    Nearest nearest[2 * kSlabs];
#pragma unroll
    for (int i = 0; i < 2 * kSlabs; ++i) {
      size[i / 2][i % 2] = pass.row_size[p * pass.n_padded + first_row + i / 2 * 16 + i % 2 * 8];
    }
    // What is copied next: the k-block of a tile.
    int next_tile = 0, next_block = 0, next_slot = 0;
    auto fetch = [&] {
      if (next_tile < tiles) {
        unsigned char* const to = ring + next_slot * kStageBytes;
        copy_rows<kTile>(to, centroids + (next_block * pass.k_padded + next_tile * kTile) * kBlockColumns);
        if (!kResident) copy_rows<kBlockRows>(to + kTileBytes, rows + next_block * pass.n_padded * kBlockColumns);
        if (++next_block == k_blocks) {
          next_block = 0;
          ++next_tile;
        }
        next_slot = next_slot + 1 == stages ? 0 : next_slot + 1;
      }
      cp_async_commit();  // empty at the end, so that the count of groups goes on
    };
    __syncthreads();  // the last rows have been read
    if (kResident) {
      for (int block = 0; block < k_blocks; ++block) {
        copy_rows<kBlockRows>(resident + block * kBlockRowsBytes, rows + block * pass.n_padded * kBlockColumns);
      }
    }
    for (int i = 0; i < stages - 1; ++i) fetch();

    float sums[kSlabs][64], total[kPromote ? 64 : 1];
    int tile = 0, block = 0, slot = 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      // The slot of this step has come, for every thread; that of the step before is free.
      if (stages == 2) {
        cp_async_wait<0>();
      } else if (stages == 3) {
        cp_async_wait<1>();
      } else {
        cp_async_wait<2>();
      }
      __syncthreads();
      fetch();
      const unsigned char* const columns = ring + slot * kStageBytes;
      const unsigned char* const own =
          (kResident ? resident + block * kBlockRowsBytes : columns + kTileBytes) + slab_row * kRowBytes;
      slot = slot + 1 == stages ? 0 : slot + 1;
      if (kPromote ? block % kSumBlocks == 0 : block == 0) {
#pragma unroll
        for (int i = 0; i < 64 * kSlabs; ++i) sums[i / 64][i % 64] = 0.0f;
      }
      if (kPromote && block == 0) {
#pragma unroll
        for (int i = 0; i < 64; ++i) total[kPromote ? i : 0] = 0.0f;
      }
#pragma unroll
      for (int part = 0; part < kBlockColumns / 16; ++part) {
        // Matrices of rows 0-7 and 8-15 at 8 columns, then the same at the next 8.
        uint32_t a[kSlabs][4];
#pragma unroll
        for (int slab = 0; slab < kSlabs; ++slab) {
          ldmatrix_x4(a[slab], swizzled(own, slab * 16 + lane % 16, 2 * part + lane / 16));
        }
#pragma unroll
        for (int g = 0; g < kTile / 8; g += 2) {
          // Matrices of centroids 8 g to 8 g + 7 at 8 elements and at the next 8, then the same of the next 8.
          uint32_t four[4];
          ldmatrix_x4(four, swizzled(columns, 8 * g + lane / 16 * 8 + lane % 8, 2 * part + lane / 8 % 2));
          const uint32_t b0[2] = {four[0], four[1]}, b1[2] = {four[2], four[3]};
#pragma unroll
          for (int slab = 0; slab < kSlabs; ++slab) {
            mma_m16n8k16(&sums[slab][4 * g], a[slab], b0);
            mma_m16n8k16(&sums[slab][4 * g + 4], a[slab], b1);
          }
        }
      }
      if (kPromote && (block % kSumBlocks == kSumBlocks - 1 || block == k_blocks - 1)) {
#pragma unroll
        for (int i = 0; i < 64; ++i) total[kPromote ? i : 0] += sums[0][i];
      }
      if (++block < k_blocks) continue;
      block = 0;
#pragma unroll
      for (int slab = 0; slab < kSlabs; ++slab) {
        if constexpr (kPromote) {
          score_tile(total, bounds + tile * kTile, size[slab], pass.clear_place, tile, lane, nearest + 2 * slab);
        } else {
          score_tile(sums[slab], bounds + tile * kTile, size[slab], pass.clear_place, tile, lane, nearest + 2 * slab);
        }
      }
      ++tile;
    }
    settle<2 * kSlabs>(pass, p, first_row, 16, lane, nearest);
  }
}

template <bool kResident, bool kPromote>
int run(const AssignPass& pass, int shared_bytes, int multiprocessors, cudaStream_t stream) {
  constexpr int kBlockRows = kPromote ? kRows / 2 : kRows;
  constexpr int kStageBytes = kTileBytes + (kResident ? 0 : kBlockRows * kRowBytes);
  const int rows_bytes = kResident ? pass.k_blocks * kRowsBytes : 0;
  const int room = (shared_bytes - rows_bytes) / kStageBytes;
  const int stages = room < kMaxStages ? room : kMaxStages;
  const int64_t work = pass.problems * (pass.n_padded / kBlockRows);
  launch(certify_sm80<kResident, kPromote>, unsigned(work < multiprocessors ? work : multiprocessors), kThreads,
         rows_bytes + stages * kStageBytes, stream, pass, stages);
  return launch_status();
}

}  // namespace

int assign_pass(const AssignPass& pass, int shared_bytes, int multiprocessors, cudaStream_t stream) {
  if (pass.k_blocks > kSumBlocks) return run<false, true>(pass, shared_bytes, multiprocessors, stream);
  if (pass.k_blocks * kRowsBytes + 2 * kTileBytes <= shared_bytes) {
    return run<true, false>(pass, shared_bytes, multiprocessors, stream);
  }
  return run<false, false>(pass, shared_bytes, multiprocessors, stream);
}

}  // namespace cuda
}  // namespace dcfast
