// Work shared by threads, such that one thread is the caller itself: a problem that has a thread to itself opens no
// parallel region inside that of the problems. All of them work in IEEE mode.
#pragma once

#include <omp.h>
#include <stdint.h>

#include "float_env.h"

namespace dcfast {
namespace DCFAST_ISA {
namespace {

// Part `index` of `count` equal ones of [0, n).
struct Part {
  int64_t first, last;
  Part(int64_t n, int64_t index, int64_t count) : first(n * index / count), last(n * (index + 1) / count) {}
};

// Pieces of work that threads take as they get to them, where it does not matter who does which: one that another
// process holds up leaves its share to the others.
class Turns {
 public:
  Turns(int64_t start, int64_t stop) : next_(start), stop_(stop) {}
  bool take(int64_t* piece) {
    *piece = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
    return *piece < stop_;
  }

 private:
  int64_t next_;
  const int64_t stop_;
};

// work(thread, threads) on up to n_threads threads.
template <class Work>
void on_threads(int n_threads, const Work& work) {
  if (n_threads == 1) {
    IeeeMode ieee;
    work(int64_t(0), int64_t(1));
    return;
  }
#pragma omp parallel num_threads(n_threads)
  {
    IeeeMode ieee;
    work(int64_t(omp_get_thread_num()), int64_t(omp_get_num_threads()));
  }
}

}  // namespace
}  // namespace DCFAST_ISA
}  // namespace dcfast
