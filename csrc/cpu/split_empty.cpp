// See split_empty.h.
#include "split_empty.h"

#include "dcfast/core.h"

namespace dcfast {
namespace DCFAST_ISA {

int split_empty(int dtype, void* centroids, int64_t* counts, int64_t k, int64_t d, int64_t seed, int64_t iteration) {
  if (dtype == DCFAST_FLOAT32) {
    split_all(static_cast<float*>(centroids), counts, k, d, seed, iteration);
  } else if (dtype == DCFAST_FLOAT64) {
    split_all(static_cast<double*>(centroids), counts, k, d, seed, iteration);
  } else {
    return DCFAST_INVALID_DTYPE;
  }
  return DCFAST_OK;
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
