// From the dtype of a call to the type of its elements.
#pragma once

#include "dcfast/core.h"

namespace dcfast {
namespace DCFAST_ISA {

// run(an element of the dtype); the element only says its type.
template <class F>
static inline int with_dtype(int dtype, F run) {
  switch (dtype) {
    case DCFAST_FLOAT32:
      run(float());
      return DCFAST_OK;
    case DCFAST_FLOAT64:
      run(double());
      return DCFAST_OK;
    default:
      return DCFAST_INVALID_DTYPE;
  }
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
