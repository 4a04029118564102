// A GPU of one multiprocessor, in software: enough of CUDA C++ and of PTX to run csrc/cuda on a processor.
//
// Every thread of a block is a fiber; blocks run one after another. Fibers are switched only where they wait (barriers,
// warp collectives), in an order drawn from a seed, so that a run repeats and different seeds interleave differently.
// What the hardware does on its own time is late here: a copy lands when nothing else can run or when a coin says so,
// and its destination is NaN until then; a product of the tensor cores is taken when it is issued or when it is waited
// for, by the coin. If every fiber waits and nothing is under way, the launch fails with `cudaErrorLaunchTimeout`.
//
// It does not show: two threads racing between two waits, the cost of anything, memory that is not there, and a wrong
// idea of what an instruction does that is wrong here in the same way.
#pragma once

#include <stdint.h>
#include <string.h>

#include <functional>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

struct Fiber;

// The running thread's place.
struct Place {
  dim3 thread, block, threads, blocks;
};
const Place& place();

// Suspends the running fiber until the condition holds; looks at it again whenever others have run.
void wait_until(const std::function<bool()>& condition);
// A point at which others may run.
void yield();
bool coin();

unsigned char* dynamic_shared();
void block_barrier();
// bar.sync and bar.arrive.
void named_barrier(int id, int threads, bool wait);
// Every lane of the mask gives `bytes` bytes; all of them see what all gave, 16 bytes apart, until the next call.
const unsigned char* warp_exchange(unsigned mask, const void* value, size_t bytes);
unsigned lane();

// Does something later; never later than `finish_own` of the fiber, if it is given one.
void later(std::function<void()> action);

// The running thread's asynchronous operations, in groups, as cp.async and wgmma have them.
struct Groups {
  enum Kind { kCopies, kProducts, kKinds };
};
void issue(Groups::Kind kind, std::function<void()> action);
void commit(Groups::Kind kind);
void wait_for_groups(Groups::Kind kind, int still_pending);

int run(dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& thread);

}  // namespace emulator
