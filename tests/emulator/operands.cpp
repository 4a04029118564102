// For tests: the operands of the certified pass of assign, which it keeps in its workspace.
#include <vector>

#include "assign.cuh"

using namespace dcfast::cuda;

extern "C" __attribute__((visibility("default"))) int emulated_assign_operands(
    const double* x, int64_t n, const double* centroids, int64_t k, int64_t d, double spread, double* shift,
    double* scale, __half* centroid_halves, float2* bounds, float* error, __half* row_halves, float* size) {
  const int64_t slots = 4 * k, k_padded = kTile;
  std::vector<unsigned long long> zeroed(2 * slots + d + 2);
  std::vector<int32_t> slot(k);
  std::vector<uint8_t> live(k);
  std::vector<double> transposed(k * d);
  std::vector<float> centroid_norm(k_padded), row_norm(256);
  double slack;
  AssignCentroids<double> made = {};
  made.keys = zeroed.data();
  made.lowest = reinterpret_cast<int32_t*>(zeroed.data() + slots);
  made.sums = reinterpret_cast<double*>(zeroed.data() + 2 * slots);
  made.finite = reinterpret_cast<int32_t*>(zeroed.data() + 2 * slots + d);
  made.largest = zeroed.data() + 2 * slots + d + 1;
  made.zeroed = int64_t(zeroed.size() * sizeof(unsigned long long));
  made.slots = slots;
  made.slot = slot.data();
  made.live = live.data();
  made.shift = shift;
  made.scale = scale;
  made.slack = &slack;
  made.transposed = transposed.data();
  made.halves = centroid_halves;
  made.bounds = bounds;
  made.error = error;
  made.norm = centroid_norm.data();
  made.k_padded = k_padded;
  const AssignData<double> data = {x, 0, d, 1, centroids, 0, d, 1, 1, n, k, d};
  const int status = assign_prepare(data, made, spread, nullptr);
  return status != 0
             ? status
             : assign_rows(data, made, AssignSlice{0, 1, 0, n, 256}, row_halves, size, row_norm.data(), nullptr);
}
