// The ABI of the native core: one function type per op, plain pointers and sizes, a status as the result.
// Nothing here knows of Python or torch. The caller allocates every output and workspace and has checked
// shapes, dtypes and strides; kernels neither allocate nor synchronise, and index with 64 bits.
#pragma once

#include <stdint.h>

enum dcfast_status {
  DCFAST_OK = 0,
  DCFAST_INVALID_DTYPE = 1,
  DCFAST_OUT_OF_RANGE = 2,
  // A CUDA error e is reported as DCFAST_CUDA_ERROR + e.
  DCFAST_CUDA_ERROR = 1000,
};

enum dcfast_dtype {
  DCFAST_FLOAT32 = 0,
  DCFAST_FLOAT64 = 1,
  DCFAST_FLOAT16 = 2,
  DCFAST_BFLOAT16 = 3,
  DCFAST_UINT8 = 4,
};

// ---- assign: labels of the nearest centroids --------------------------------------------------------------
// Bytes of the workspace that assign_prepare fills from k centroids of d elements.
typedef int dcfast_cpu_assign_workspace_fn(int dtype, int64_t k, int64_t d, int64_t* bytes);
// Shift, scale, deduplicate and pack the centroids (k x d, rows contiguous) into the workspace (64-byte
// aligned).
typedef int dcfast_cpu_assign_prepare_fn(int dtype, const void* centroids, int64_t k, int64_t d,
                                         void* workspace);
// Labels of n rows of x. scratch holds n_threads * scratch_bytes(d) bytes, counts[0] and counts[1] gain the
// number of rows that needed a recheck and of those that needed every candidate.
typedef int dcfast_cpu_assign_scratch_fn(int dtype, int64_t d, int64_t* bytes);
typedef int dcfast_cpu_assign_fn(int dtype, const void* x, int64_t row_stride, int64_t n, int64_t d,
                                 const void* centroids, int64_t k, const void* workspace, void* scratch,
                                 int64_t* labels, int64_t* counts, int n_threads);

// ---- weighted_cross_entropy: cross-entropy with the weight 1 / size of each class
// ----------------------------- logits are n rows of k; sizes (k), losses, maxima and log_sums (n each) are
// float32 for float32, float16 and bfloat16 logits (the CPU functions take the first only) and float64 for
// float64 ones. losses are the weighted losses of the rows, maxima + log_sums their log-sum-exp. sums[0] and
// sums[1] gain the sum of the losses and of the targets' weights.
typedef int dcfast_cpu_weighted_cross_entropy_fn(int dtype, const void* logits, int64_t row_stride,
                                                 const int64_t* target, const void* sizes, int64_t n,
                                                 int64_t k, int64_t ignore_index, double label_smoothing,
                                                 void* losses, void* maxima, void* log_sums, double* sums,
                                                 int n_threads);
// row_gradients (stride 0 if common to all rows) are those of the weighted losses; gradient is n x k.
typedef int dcfast_cpu_weighted_cross_entropy_backward_fn(
    int dtype, const void* logits, int64_t row_stride, const int64_t* target, const void* sizes, int64_t n,
    int64_t k, int64_t ignore_index, double label_smoothing, const void* row_gradients,
    int64_t row_gradient_stride, const void* maxima, const void* log_sums, void* gradient, int n_threads);
// As on the CPU, but sums[0] is divided by sums[1] if `mean`; n x k logits with unit column stride. Both sums
// are written, in the dtype of losses. A target outside [0, k) other than ignore_index makes its loss NaN.
typedef int dcfast_cuda_weighted_cross_entropy_fn(int dtype, const void* logits, int64_t row_stride,
                                                  const int64_t* target, const void* sizes, int64_t n,
                                                  int64_t k, int64_t ignore_index, double label_smoothing,
                                                  bool mean, void* losses, void* maxima, void* log_sums,
                                                  void* sums, void* stream);

// An op is one line here and one function of that name in csrc/cpu (or csrc/cuda): dispatch.cpp and
// bindings.cpp are generated from these lists.
#define DCFAST_CPU_OPS(X)   \
  X(assign_workspace)       \
  X(assign_prepare)         \
  X(assign_scratch)         \
  X(assign)                 \
  X(weighted_cross_entropy) \
  X(weighted_cross_entropy_backward)

#define DCFAST_CUDA_OPS(X) X(weighted_cross_entropy)

#ifdef __cplusplus
namespace dcfast {

#define DCFAST_DECLARE(op) dcfast_cpu_##op##_fn op;
namespace baseline {
DCFAST_CPU_OPS(DCFAST_DECLARE)
}
namespace avx2 {
DCFAST_CPU_OPS(DCFAST_DECLARE)
}
namespace avx512 {
DCFAST_CPU_OPS(DCFAST_DECLARE)
}
#undef DCFAST_DECLARE

#define DCFAST_DECLARE(op) dcfast_cuda_##op##_fn op;
namespace cuda {
DCFAST_CUDA_OPS(DCFAST_DECLARE)
const char* error_string(int error);
}  // namespace cuda
#undef DCFAST_DECLARE

// One instruction set's implementation of every op.
struct CpuOps {
  const char* isa;
#define DCFAST_MEMBER(op) dcfast_cpu_##op##_fn* op;
  DCFAST_CPU_OPS(DCFAST_MEMBER)
#undef DCFAST_MEMBER
};

// The instruction sets that were compiled and that this processor runs, best first; ends with isa == nullptr.
const CpuOps* cpu_ops_available();

}  // namespace dcfast
#endif
