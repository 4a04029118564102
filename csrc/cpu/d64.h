// D64, the squared distance of the definition: in order, in double, each operation rounded on its own.
#pragma once

#include <stdint.h>

namespace dcfast {
namespace DCFAST_ISA {

template <class T>
static inline double d64(const T* x, const T* c, int64_t d) {
  double acc = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    double t = double(x[i]) - double(c[i]);
    acc = acc + t * t;
  }
  return acc;
}

}  // namespace DCFAST_ISA
}  // namespace dcfast
