// Products of bytes in the tiles of AMX: 16 rows by 16 centroids by 64 columns in one instruction of 16 cycles, eight
// times the products of VNNI's bytes per cycle.
//
// Four tiles of sums, of 32 rows and the 32 centroids of a panel, two of rows and two of centroids are all eight: each
// that is loaded serves two products, and loading four takes half the time of multiplying them. A panel of centroids
// and the sums stay in L1. The words of a panel lie as the instruction wants them; rows are copied together first.
#pragma once

#include "assign_prepare.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

constexpr int kTileRows = 32;

#if defined(__AMX_INT8__)
constexpr bool kHasTiles = true;

// All eight tiles are of 16 rows of 64 bytes as long as this lives.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette, start, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } config = {};
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) config.row_bytes[tile] = 64, config.rows[tile] = 16;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// starts + rows * panel for 16 A rows and 16 B centroids; starts [kPanel] are those of every row. (The intrinsics do
// not tell the compiler which memory they read.)
template <int A, int B>
void tile_products(const uint8_t* rows, int64_t words, const int32_t* panel, const int32_t* starts, int32_t* sums) {
  const int64_t row_stride = 4 * words, panel_stride = 4 * kPanel;
  __asm__ volatile("" ::: "memory");
  _tile_loadd(0, starts, 0);
  if (B == 2) _tile_loadd(1, starts + 16, 0);
  if (A == 2) _tile_loadd(2, starts, 0);
  if (A == 2 && B == 2) _tile_loadd(3, starts + 16, 0);
  for (int64_t word = 0; word < words; word += 16) {
    const uint8_t* x = rows + 4 * word;
    const int32_t* c = panel + word * kPanel;
    _tile_loadd(4, x, row_stride);
    _tile_loadd(6, c, panel_stride);
    _tile_dpbusd(0, 4, 6);
    if (B == 2) _tile_loadd(7, c + 16, panel_stride);
    if (B == 2) _tile_dpbusd(1, 4, 7);
    if (A == 2) _tile_loadd(5, x + 16 * row_stride, row_stride);
    if (A == 2) _tile_dpbusd(2, 5, 6);
    if (A == 2 && B == 2) _tile_dpbusd(3, 5, 7);
  }
  _tile_stored(0, sums, panel_stride);
  if (B == 2) _tile_stored(1, sums + 16, panel_stride);
  if (A == 2) _tile_stored(2, sums + 16 * kPanel, panel_stride);
  if (A == 2 && B == 2) _tile_stored(3, sums + 16 * kPanel + 16, panel_stride);
}
#else
constexpr bool kHasTiles = false;

struct Tiles {
  Tiles() {}
};
#endif

// What bytes spare of the time that products of int16 take.
constexpr double kSpared = kHasTiles ? 0.9 : 0.5;

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
