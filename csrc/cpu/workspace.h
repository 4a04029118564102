// Buffers one after the other in memory of the caller's, each on a cache line of its own.
#pragma once

#include <stdint.h>

namespace dcfast {
namespace DCFAST_ISA {
namespace {

inline int64_t align64(int64_t bytes) { return (bytes + 63) & ~int64_t(63); }

// The next `count` elements. Without a base only their sizes add up: numbers, since a null pointer has no offsets.
template <class P>
P* take(char* base, int64_t* at, int64_t count) {
  const uintptr_t here = reinterpret_cast<uintptr_t>(base) + uintptr_t(*at);
  *at += align64(count * int64_t(sizeof(P)));
  return reinterpret_cast<P*>(here);
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
