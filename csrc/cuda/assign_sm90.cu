// The certified pass of assign on Hopper: bulk copies, wgmma, a producer and two consumers in turn.
//
// A block takes 256 rows (128 where d is large or blocks would be idle) and walks over the centroids in tiles of 128.
// One thread keeps copies under way; each of two warpgroups multiplies its half of the rows with the tile (64 float32
// sums per thread and 64 rows) and picks its nearest centroids. Where a tile's k-blocks all fit into the ring, they
// take turns at the tensor cores: while one scores, the other multiplies. The rows stay in shared memory where they
// fit.
//
// Floors per tile of 256 x 128 scores, d = 256, in clocks of one multiprocessor (4096 float16 operations each):
//   tensor cores   2 256 128 256 / 4096 = 4096
//   scoring        256 128 scores x about 9 issue slots (fma, subtraction, place, three minima at half rate) / 128
//   lanes
//                  = 2304, beside the other warpgroup's products
//   L2 to shared   64 KiB of centroids: 16 bytes per clock, of about 25 that a multiprocessor gets
//   shared memory  a product of 64 x 128 x 16 takes 64 clocks and reads 6 KiB: 96 bytes per clock, of 128
#include <ptx.cuh>

#include "assign.cuh"

namespace dcfast {
namespace cuda {
namespace {

constexpr int kConsumers = 2;
constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kThreads = (1 + kConsumers) * kGroup;
constexpr int kSharedBytes = 227 * 1024;
constexpr int kMaxStages = 12;
constexpr int kBoundSlots = 4;
constexpr int kMaxResident = 8;  // k-blocks of rows that stay

struct Barriers {
  uint64_t full[kMaxStages], empty[kMaxStages];
  uint64_t bounds_full[kBoundSlots], bounds_empty[kBoundSlots];
  uint64_t rows_full[kMaxResident], rows_empty[kMaxResident];
};
constexpr int kFixedBytes = kBoundSlots * kBoundBytes + 1024;
static_assert(sizeof(Barriers) <= 1024, "the barriers have 1 KiB");

// A place in a ring of slots and how often it has come round.
struct Cursor {
  int slot = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance(int slots) {
    if (++slot == slots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// kSlabs: slabs of 64 rows per warpgroup. kResident: the rows stay in shared memory; else they come with every tile.
// kPromote: sums of kSumBlocks k-blocks are added up in float32.
template <int kSlabs, bool kResident, bool kPromote>
__global__ void __launch_bounds__(kThreads, 1) certify_sm90(const AssignPass pass, int stages) {
  constexpr int kRows = kConsumers * kSlabs * 64;
  constexpr int kRowsBytes = kRows * kRowBytes;
  constexpr int kStageBytes = kTileBytes + (kResident ? 0 : kRowsBytes);
  unsigned char* const shared = dynamic_shared();
  const int k_blocks = pass.k_blocks;
  unsigned char* const resident = shared;
  unsigned char* const ring = shared + (kResident ? k_blocks * kRowsBytes : 0);
  auto* const bound_ring = reinterpret_cast<float2*>(ring + stages * kStageBytes);
  auto& barriers = *reinterpret_cast<Barriers*>(ring + stages * kStageBytes + kBoundSlots * kBoundBytes);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    // A slot is free again when every warp of the consumers has said so.
    constexpr int kWarps = kConsumers * kGroup / 32;
    for (int i = 0; i < stages; ++i) {
      mbarrier_init(&barriers.full[i], 1);
      mbarrier_init(&barriers.empty[i], kWarps);
    }
    for (int i = 0; i < kBoundSlots; ++i) {
      mbarrier_init(&barriers.bounds_full[i], 1);
      mbarrier_init(&barriers.bounds_empty[i], kWarps);
    }
    for (int i = 0; i < kMaxResident; ++i) {
      mbarrier_init(&barriers.rows_full[i], 1);
      mbarrier_init(&barriers.rows_empty[i], kWarps);
    }
    fence_mbarrier_init();
  }
  __syncthreads();

  const int64_t row_blocks = pass.n_padded / kRows, work = pass.problems * row_blocks;
  const int tiles = static_cast<int>(pass.k_padded / kTile);
  if (warp < kGroup / 32) {
    // The producer: one thread; the registers of its warpgroup go to the consumers.
    setmaxnreg_dec<40>();
    if (threadIdx.x == 0) {
      Cursor stage, bound;
      uint32_t rows_parity = 0;
      for (int64_t item = blockIdx.x; item < work; item += gridDim.x) {
        const int64_t p = item / row_blocks, row = item % row_blocks * kRows;
        const __half* rows = pass.rows + (p * k_blocks * pass.n_padded + row) * kBlockColumns;
        const __half* centroids = pass.centroids + (pass.problem0 + p) * k_blocks * pass.k_padded * kBlockColumns;
#pragma unroll 1
        for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll 1
          for (int block = 0; block < k_blocks; ++block) {
            // Waiting for parity 1 of a barrier that was never used returns at once.
            if (kResident && tile == 0) {
              mbarrier_wait(&barriers.rows_empty[block], rows_parity ^ 1);
              mbarrier_arrive_expect_tx(&barriers.rows_full[block], kRowsBytes);
              cp_async_bulk(resident + block * kRowsBytes, rows + block * pass.n_padded * kBlockColumns, kRowsBytes,
                            &barriers.rows_full[block]);
            }
            unsigned char* const to = ring + stage.slot * kStageBytes;
            uint64_t* const full = &barriers.full[stage.slot];
            mbarrier_wait(&barriers.empty[stage.slot], stage.parity ^ 1);
            mbarrier_arrive_expect_tx(full, kStageBytes);
            cp_async_bulk(to, centroids + (block * pass.k_padded + tile * kTile) * kBlockColumns, kTileBytes, full);
            if (!kResident) {
              cp_async_bulk(to + kTileBytes, rows + block * pass.n_padded * kBlockColumns, kRowsBytes, full);
            }
            stage.advance(stages);
          }
          mbarrier_wait(&barriers.bounds_empty[bound.slot], bound.parity ^ 1);
          mbarrier_arrive_expect_tx(&barriers.bounds_full[bound.slot], kBoundBytes);
          cp_async_bulk(bound_ring + bound.slot * kTile,
                        pass.bounds + (pass.problem0 + p) * pass.k_padded + tile * kTile, kBoundBytes,
                        &barriers.bounds_full[bound.slot]);
          bound.advance(kBoundSlots);
        }
        rows_parity ^= 1;
      }
    }
  } else {
    setmaxnreg_inc<232>();
    const int group = warp / (kGroup / 32) - 1;
    // Turns need a ring that holds a tile while the next one begins: else the first group would wait for slots that
    // only the second can free.
    const bool in_turns = k_blocks < stages;
    if (in_turns && group == 1) bar_arrive(1, 2 * kGroup);
    Cursor stage, bound;
    uint32_t rows_parity = 0;
    float sums[kSlabs][64];
    for (int64_t item = blockIdx.x; item < work; item += gridDim.x) {
      const int64_t p = item / row_blocks;
      // This lane's rows: first_row, 8 below, and the same in the next slab.
      const int64_t first_row = item % row_blocks * kRows + group * kSlabs * 64 + warp % 4 * 16 + lane / 4;
      float size[kSlabs][2];
      Nearest nearest[2 * kSlabs];
#pragma unroll
      for (int i = 0; i < 2 * kSlabs; ++i) {
        size[i / 2][i % 2] = pass.row_size[p * pass.n_padded + first_row + i / 2 * 64 + i % 2 * 8];
      }
      const bool last_item = item + gridDim.x >= work;
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        if (in_turns) bar_sync(1 + group, 2 * kGroup);
        float total[kPromote ? 64 : 1] = {};
        int last_slot = 0;
#pragma unroll 1
        for (int block = 0; block < k_blocks; ++block) {
          if (kResident && tile == 0) mbarrier_wait(&barriers.rows_full[block], rows_parity);
          mbarrier_wait(&barriers.full[stage.slot], stage.parity);
          const unsigned char* const columns = ring + stage.slot * kStageBytes;
          const unsigned char* const rows =
              (kResident ? resident + block * kRowsBytes : columns + kTileBytes) + group * kSlabs * 64 * kRowBytes;
          const bool begins = kPromote ? block % kSumBlocks == 0 : block == 0;
          const uint64_t a = wgmma_descriptor(rows), b = wgmma_descriptor(columns);
          wgmma_fence();
#pragma unroll
          for (int step = 0; step < kBlockColumns / 16; ++step) {
#pragma unroll
            for (int slab = 0; slab < kSlabs; ++slab) {
              // In units of 16 bytes: a slab is 64 rows of 128 bytes, 16 elements are 32 bytes.
              wgmma_m64n128k16(sums[slab], a + slab * (64 * kRowBytes / 16) + 2 * step, b + 2 * step,
                               !begins || step > 0);
            }
          }
          wgmma_commit();
          if (block > 0) {
            // All but the products just issued are done with their slots.
            wgmma_wait<1>();
            if (lane == 0) {
              mbarrier_arrive(&barriers.empty[last_slot]);
              if (kResident && tile == tiles - 1) mbarrier_arrive(&barriers.rows_empty[block - 1]);
            }
          }
          last_slot = stage.slot;
          stage.advance(stages);
          if (kPromote && (block % kSumBlocks == kSumBlocks - 1 || block == k_blocks - 1)) {
            wgmma_wait<0>();
            wgmma_take(sums[0]);
#pragma unroll
            for (int i = 0; i < 64; ++i) total[kPromote ? i : 0] += sums[0][i];
          }
        }
        // The other group's turn; nobody waits for the second group's last one.
        if (in_turns && !(group == 1 && last_item && tile == tiles - 1)) bar_arrive(2 - group, 2 * kGroup);
        wgmma_wait<0>();
#pragma unroll
        for (int slab = 0; slab < kSlabs; ++slab) wgmma_take(sums[slab]);
        if (lane == 0) {
          mbarrier_arrive(&barriers.empty[last_slot]);
          if (kResident && tile == tiles - 1) mbarrier_arrive(&barriers.rows_empty[k_blocks - 1]);
        }
        mbarrier_wait(&barriers.bounds_full[bound.slot], bound.parity);
        const float2* const bounds = bound_ring + bound.slot * kTile;
#pragma unroll
        for (int slab = 0; slab < kSlabs; ++slab) {
          if constexpr (kPromote) {
            score_tile(total, bounds, size[slab], pass.clear_place, tile, lane, nearest + 2 * slab);
          } else {
            score_tile(sums[slab], bounds, size[slab], pass.clear_place, tile, lane, nearest + 2 * slab);
          }
        }
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&barriers.bounds_empty[bound.slot]);
        bound.advance(kBoundSlots);
      }
      settle<2 * kSlabs>(pass, p, first_row, 64, lane, nearest);
      rows_parity ^= 1;
    }
  }
}

template <int kSlabs, bool kResident, bool kPromote>
int run(const AssignPass& pass, int multiprocessors, cudaStream_t stream) {
  constexpr int kRows = kConsumers * kSlabs * 64;
  constexpr int kStageBytes = kTileBytes + (kResident ? 0 : kRows * kRowBytes);
  const int rows_bytes = kResident ? pass.k_blocks * kRows * kRowBytes : 0;
  const int room = (kSharedBytes - kFixedBytes - rows_bytes) / kStageBytes;
  const int stages = room < kMaxStages ? room : kMaxStages;
  const int64_t work = pass.problems * (pass.n_padded / kRows);
  launch(certify_sm90<kSlabs, kResident, kPromote>, unsigned(work < multiprocessors ? work : multiprocessors), kThreads,
         rows_bytes + stages * kStageBytes + kFixedBytes, stream, pass, stages);
  return launch_status();
}

}  // namespace

int assign_pass_sm90(const AssignPass& pass, int rows, int multiprocessors, cudaStream_t stream) {
  if (pass.k_blocks > kSumBlocks) return run<1, false, true>(pass, multiprocessors, stream);
  if (rows == 256) {
    return pass.k_blocks <= 4 ? run<2, true, false>(pass, multiprocessors, stream)
                              : run<2, false, false>(pass, multiprocessors, stream);
  }
  return run<1, true, false>(pass, multiprocessors, stream);
}

}  // namespace cuda
}  // namespace dcfast
