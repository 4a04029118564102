// Each empty cluster, in order, takes half of a donor drawn with probability proportional to its count - 1.
//
// The draw is a pure function of (seed, iteration, cluster): Philox4x32-10 (Salmon et al. 2011, "Parallel random
// numbers: as easy as 1, 2, 3"), key = seed, counter = (iteration, cluster), 64 bits of its output.
#pragma once

#include <stdint.h>

#include "float_env.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

inline uint64_t philox(uint64_t seed, uint64_t iteration, uint64_t cluster) {
  uint32_t c0 = uint32_t(iteration), c1 = uint32_t(iteration >> 32), c2 = uint32_t(cluster),
           c3 = uint32_t(cluster >> 32), k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
    uint32_t n0 = uint32_t(b >> 32) ^ c1 ^ k0, n2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c1 = uint32_t(b);
    c3 = uint32_t(a);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return uint64_t(c1) << 32 | c0;
}

template <class T>
void split_all(T* centroids, int64_t* counts, int64_t k, int64_t d, int64_t seed, int64_t iteration) {
  IeeeMode ieee;
  const T up = T(1) + T(1) / T(1024), down = T(1) - T(1) / T(1024);
  int64_t total = 0;  // of count - 1 over the clusters that hold two or more
  for (int64_t j = 0; j < k; ++j) total += counts[j] > 1 ? counts[j] - 1 : 0;
  for (int64_t empty = 0; empty < k; ++empty) {
    if (counts[empty] != 0) continue;
    if (total == 0) return;  // nothing left to share
    uint64_t word = philox(uint64_t(seed), uint64_t(iteration), uint64_t(empty));
    int64_t draw = int64_t((unsigned __int128)word * uint64_t(total) >> 64), donor = 0;
    for (int64_t prefix = 0;; ++donor) {
      prefix += counts[donor] > 1 ? counts[donor] - 1 : 0;
      if (prefix > draw) break;
    }
    T *to = centroids + empty * d, *from = centroids + donor * d;
    for (int64_t i = 0; i < d; ++i) {
      T value = from[i];
      to[i] = value * (i % 2 == 0 ? up : down);
      from[i] = value * (i % 2 == 0 ? down : up);
    }
    int64_t count = counts[donor];
    counts[empty] = count / 2;
    counts[donor] = count - count / 2;
    // count - 1 became (count/2 - 1) + (count - count/2 - 1), where a cluster of one weighs nothing already
    total -= 1;
  }
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
