// See split_empty.h.
#include "split_empty.h"

#include "dtype.h"

namespace dcfast {
namespace DCFAST_ISA {

int split_empty(int dtype, void* centroids, int64_t* counts, int64_t k, int64_t d, int64_t seed, int64_t iteration) {
  return with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    split_all(static_cast<T*>(centroids), counts, k, d, seed, iteration);
  });
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
