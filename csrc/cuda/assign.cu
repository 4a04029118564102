// assign on a GPU: centroids made ready once; then, slice by slice of the rows, operands, the certified pass, and the
// recheck of what it leaves open. Nothing waits for the device; the memory comes from the caller.
#include "assign.cuh"

namespace dcfast {
namespace cuda {
namespace {

// Elements of x' held at a time: 256 MiB. Slices bound the memory; they do not change a label.
constexpr int64_t kSliceElements = int64_t(1) << 27;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct Device {
  int major = 0, multiprocessors = 0, shared_bytes = 0;
};

int device(Device* found) {
  int index = 0;
  if (cudaGetDevice(&index) != cudaSuccess ||
      cudaDeviceGetAttribute(&found->major, cudaDevAttrComputeCapabilityMajor, index) != cudaSuccess ||
      cudaDeviceGetAttribute(&found->multiprocessors, cudaDevAttrMultiProcessorCount, index) != cudaSuccess ||
      cudaDeviceGetAttribute(&found->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index) != cudaSuccess) {
    return launch_status();
  }
  return DCFAST_OK;
}

bool has_sm90(const Device& device) {
#ifdef DCFAST_HAS_SM90
  return device.major == 9;
#else
  (void)device;
  return false;
#endif
}

// How a call is cut, and into what its workspace is.
struct Plan {
  int64_t k_blocks, k_padded, slots;
  int64_t block_rows;                // rows of a block of the pass
  int64_t step_rows, step_problems;  // of a slice
  int64_t slice_items, slice_rows;   // the most rows of a slice, without and with padding

  Plan(const Device& device, int64_t problems, int64_t n, int64_t k, int64_t d) {
    k_blocks = (d + kBlockColumns - 1) / kBlockColumns;
    k_padded = round_up(k, kTile);
    for (slots = 2; slots < 2 * k;) slots *= 2;
    block_rows = 256;
    if (has_sm90(device)) {
      // 128 rows where twice the sums must be kept, where 256 do not fit beside the ring and 128 do, and where there
      // would not be a block for every multiprocessor.
      const bool few = problems * ((n + 255) / 256) < device.multiprocessors && k_blocks <= 8;
      if (k_blocks > kSumBlocks || (k_blocks > 4 && k_blocks <= 8) || few) block_rows = 128;
    }
    const int64_t most = kSliceElements / (k_blocks * kBlockColumns) / block_rows * block_rows;
    const int64_t limit = most > block_rows ? most : block_rows;
    step_rows = n < limit ? n : limit;
    const int64_t padded = round_up(step_rows, block_rows);
    step_problems = limit / padded;
    if (step_problems < 1) step_problems = 1;
    if (step_problems > problems) step_problems = problems;
    slice_items = step_problems * step_rows;
    slice_rows = step_problems * padded;
  }
};

// Takes aligned pieces of the workspace; counts them where there is none yet.
struct Pieces {
  unsigned char* base;
  int64_t bytes = 0;

  template <class T>
  T* take(int64_t count) {
    T* const at = base == nullptr ? nullptr : reinterpret_cast<T*>(base + bytes);
    bytes += round_up(count * int64_t(sizeof(T)), 256);
    return at;
  }
};

template <class T>
struct Workspace {
  AssignCentroids<T> centroids;
  __half* rows;
  float *row_size, *row_norm;
  int32_t *pair, *lists, *counts;
  int64_t bytes;

  Workspace(void* base, const Plan& plan, int64_t problems, int64_t k, int64_t d) {
    Pieces pieces{static_cast<unsigned char*>(base)};
    auto& c = centroids;
    c.keys = pieces.take<unsigned long long>(problems * plan.slots);
    c.lowest = pieces.take<int32_t>(problems * plan.slots);
    c.sums = pieces.take<double>(problems * d);
    c.finite = pieces.take<int32_t>(problems);
    c.largest = pieces.take<unsigned long long>(problems);
    c.zeroed = pieces.bytes;
    c.slots = plan.slots;
    c.slot = pieces.take<int32_t>(problems * k);
    c.live = pieces.take<uint8_t>(problems * k);
    c.shift = pieces.take<double>(problems * d);
    c.scale = pieces.take<double>(problems);
    c.slack = pieces.take<double>(problems);
    c.transposed = pieces.take<T>(problems * d * k);
    c.halves = pieces.take<__half>(problems * plan.k_padded * plan.k_blocks * kBlockColumns);
    c.bounds = pieces.take<float2>(problems * plan.k_padded);
    c.error = pieces.take<float>(problems * plan.k_padded);
    c.norm = pieces.take<float>(problems * plan.k_padded);
    c.k_padded = plan.k_padded;
    rows = pieces.take<__half>(plan.slice_rows * plan.k_blocks * kBlockColumns);
    row_size = pieces.take<float>(plan.slice_rows);
    row_norm = pieces.take<float>(plan.slice_rows);
    pair = pieces.take<int32_t>(2 * plan.slice_items);
    lists = pieces.take<int32_t>(2 * plan.slice_items);
    counts = pieces.take<int32_t>(2);
    bytes = pieces.bytes;
  }
};

// A: what summing the products of d_padded elements can lose, relative to the norms of the operands.
double sum_error(int64_t k_blocks) {
  auto g = [](double n, double u) { return n * u / (1.0 - n * u); };
  if (k_blocks <= kSumBlocks) return g(2.0 * double(k_blocks * kBlockColumns), 0x1p-23);
  const double parts = double((k_blocks + kSumBlocks - 1) / kSumBlocks);
  return g(2.0 * kSumBlocks * kBlockColumns, 0x1p-23) + g(parts, 0x1p-24);
}

template <class T>
int run(const Device& device, const AssignData<T>& data, void* workspace, int64_t* labels, cudaStream_t stream) {
  const Plan plan(device, data.problems, data.n, data.k, data.d);
  const Workspace<T> space(workspace, plan, data.problems, data.k, data.d);
  const double sum = sum_error(plan.k_blocks);
  int status = assign_prepare(data, space.centroids, (sum + kW * (1.0 + sum)) * (1.0 + 0x1p-20), stream);
  for (int64_t p0 = 0; p0 < data.problems; p0 += plan.step_problems) {
    for (int64_t row0 = 0; row0 < data.n; row0 += plan.step_rows) {
      if (status != DCFAST_OK) return status;
      const int64_t problems = data.problems - p0 < plan.step_problems ? data.problems - p0 : plan.step_problems;
      const int64_t n = data.n - row0 < plan.step_rows ? data.n - row0 : plan.step_rows;
      const AssignSlice slice = {p0, problems, row0, n, round_up(n, plan.block_rows)};
      status = assign_rows(data, space.centroids, slice, space.rows, space.row_size, space.row_norm, stream);
      if (status != DCFAST_OK) return status;
      cudaMemsetAsync(space.counts, 0, 2 * sizeof(int32_t), stream);
      const AssignPass pass = {space.rows,
                               space.centroids.halves,
                               space.row_size,
                               space.row_norm,
                               space.centroids.bounds,
                               space.centroids.error,
                               space.centroids.norm,
                               space.centroids.slack,
                               labels,
                               space.pair,
                               space.lists,
                               space.counts,
                               p0,
                               problems,
                               row0,
                               n,
                               slice.n_padded,
                               plan.k_padded,
                               data.n,
                               problems * n,
                               static_cast<int32_t>(plan.k_blocks),
                               ~(kPlaces - 1),
                               (double(data.d) + 4.0) * 0x1p-53};
#ifdef DCFAST_HAS_SM90
      status = has_sm90(device) ? assign_pass_sm90(pass, int(plan.block_rows), device.multiprocessors, stream)
                                : assign_pass(pass, device.shared_bytes, device.multiprocessors, stream);
#else
      status = assign_pass(pass, device.shared_bytes, device.multiprocessors, stream);
#endif
      if (status != DCFAST_OK) return status;
      status = assign_recheck(data, space.centroids, pass, device.multiprocessors, stream);
    }
  }
  return status;
}

}  // namespace

int assign_workspace(int dtype, int64_t problems, int64_t n, int64_t k, int64_t d, int64_t* bytes) {
  Device found;
  const int status = device(&found);
  if (status != DCFAST_OK) return status;
  return with_dtype(dtype, [&](auto element) {
    const Plan plan(found, problems, n, k, d);
    *bytes = Workspace<decltype(element)>(nullptr, plan, problems, k, d).bytes;
    return DCFAST_OK;
  });
}

int assign(int dtype, const void* x, int64_t x_problem, int64_t x_row, int64_t x_column, const void* centroids,
           int64_t c_problem, int64_t c_row, int64_t c_column, int64_t problems, int64_t n, int64_t k, int64_t d,
           void* workspace, int64_t* labels, void* stream) {
  Device found;
  const int status = device(&found);
  if (status != DCFAST_OK) return status;
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const AssignData<T> data = {static_cast<const T*>(x),
                                x_problem,
                                x_row,
                                x_column,
                                static_cast<const T*>(centroids),
                                c_problem,
                                c_row,
                                c_column,
                                problems,
                                n,
                                k,
                                d};
    return run(found, data, workspace, labels, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace cuda
}  // namespace dcfast
