// The scheduler of the emulated GPU: see emulator.h.
#include "emulator.h"

#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "cuda_runtime.h"
#include "dcfast/core.h"

namespace emulator {

namespace {
constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned kWarp = 32;
constexpr size_t kSharedBytes = 227 * 1024;  // what a block may have on sm_90
}  // namespace

// Saves the registers that a call preserves (System V, x86-64) and the stack pointer, and goes on where `to` was saved.
// swapcontext would ask the kernel for the signal mask twice: fifty times as long.
extern "C" void emulator_switch(void** save, void* to);
asm(R"(
.text
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

struct Fiber {
  void* stack_pointer = nullptr;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  Place place;
  unsigned rank = 0;  // of the thread in the block
  bool done = false;
  const std::function<bool()>* condition = nullptr;
  std::deque<std::vector<std::function<void()>>> groups[Groups::kKinds];
  std::vector<std::function<void()>> open[Groups::kKinds];
};

namespace {

struct Named {
  int arrived = 0;
  unsigned generation = 0;
};

// The lanes of one mask: two sets of values in turn, since who is late still reads the last one while others write the
// next.
struct Lanes {
  alignas(16) unsigned char values[2][kWarp][16];
  unsigned uses[kWarp] = {};
  Named meeting;
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  size_t n_threads = 0;
  std::vector<std::map<unsigned, Lanes>> warps;  // by mask
  std::vector<size_t> order;
  std::map<int, Named> named;
  Named whole;
  std::vector<std::function<void()>> pending;
  std::unique_ptr<unsigned char[]> shared{new unsigned char[kSharedBytes + 1024]};
  void* scheduler = nullptr;  // its stack pointer
  Fiber* running = nullptr;
  const std::function<void()>* body = nullptr;
  std::mt19937 random;

  unsigned live() const {
    unsigned count = 0;
    for (size_t i = 0; i < n_threads; ++i) count += !fibers[i]->done;
    return count;
  }
};

Machine machine;

void enter() {
  (*machine.body)();
  machine.running->done = true;
  emulator_switch(&machine.running->stack_pointer, machine.scheduler);
}

void run_one_pending() {
  const size_t i = machine.random() % machine.pending.size();
  std::function<void()> action = std::move(machine.pending[i]);
  machine.pending.erase(machine.pending.begin() + long(i));
  action();
}

void run_all(std::vector<std::function<void()>>* actions) {
  for (auto& action : *actions) action();
  actions->clear();
}

// One round over the fibers; whether any of them ran.
bool round() {
  bool any = false;
  // Whole warps in turn, or single threads in any order: both happen.
  if (machine.random() % 4 == 0) std::shuffle(machine.order.begin(), machine.order.end(), machine.random);
  for (size_t i : machine.order) {
    Fiber* fiber = machine.fibers[i].get();
    if (fiber->done || (fiber->condition != nullptr && !(*fiber->condition)())) continue;
    fiber->condition = nullptr;
    machine.running = fiber;
    emulator_switch(&machine.scheduler, fiber->stack_pointer);
    any = true;
    if (!machine.pending.empty() && machine.random() % 64 == 0) run_one_pending();
  }
  return any;
}

bool run_block(dim3 block, dim3 blocks, dim3 threads, size_t shared_bytes) {
  Machine& m = machine;
  m.n_threads = size_t(threads.x) * threads.y * threads.z;
  m.warps.assign((m.n_threads + kWarp - 1) / kWarp, {});
  m.order.resize(m.n_threads);
  for (size_t i = 0; i < m.n_threads; ++i) m.order[i] = i;
  m.named.clear();
  m.whole = Named();
  memset(dynamic_shared(), 0xFF, shared_bytes);
  while (m.fibers.size() < m.n_threads) m.fibers.emplace_back(new Fiber);
  for (size_t i = 0; i < m.n_threads; ++i) {
    Fiber& fiber = *m.fibers[i];
    // As emulator_switch leaves a stack: six registers, where to go on, and at a function's entry the stack pointer is
    // 8 above a multiple of 16.
    auto* top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(fiber.stack.get() + kStackBytes) / 16 * 16);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(enter);
    fiber.stack_pointer = top - 8;
    fiber.rank = unsigned(i);
    fiber.done = false;
    fiber.condition = nullptr;
    for (auto& groups : fiber.groups) groups.clear();
    for (auto& open : fiber.open) open.clear();
    const unsigned x = unsigned(i) % threads.x, rest = unsigned(i) / threads.x;
    fiber.place = {dim3(x, rest % threads.y, rest / threads.y), block, threads, blocks};
  }
  while (m.live() > 0) {
    if (round()) continue;
    if (m.pending.empty()) {
      fprintf(stderr, "emulated GPU: block %u: %u of %zu threads wait for ever\n", block.x, m.live(), m.n_threads);
      return false;
    }
    run_one_pending();
  }
  while (!m.pending.empty()) run_one_pending();
  return true;
}

void meet(Named* barrier, unsigned expected) {
  const unsigned generation = barrier->generation;
  if (unsigned(++barrier->arrived) >= expected) {
    barrier->arrived = 0;
    ++barrier->generation;
    yield();
  } else {
    wait_until([=] { return barrier->generation != generation; });
  }
}

}  // namespace

const Place& place() { return machine.running->place; }
unsigned lane() { return machine.running->rank % kWarp; }
bool coin() { return machine.random() & 1; }

void wait_until(const std::function<bool()>& condition) {
  Fiber* fiber = machine.running;
  fiber->condition = &condition;
  emulator_switch(&fiber->stack_pointer, machine.scheduler);
}

void yield() {
  wait_until([] { return true; });
}

unsigned char* dynamic_shared() {
  const uintptr_t at = reinterpret_cast<uintptr_t>(machine.shared.get());
  return reinterpret_cast<unsigned char*>((at + 1023) / 1024 * 1024);
}

// A thread that has ended is waited for by nobody.
void block_barrier() {
  const unsigned generation = machine.whole.generation;
  ++machine.whole.arrived;
  wait_until([=] {
    if (machine.whole.generation != generation) return true;
    if (unsigned(machine.whole.arrived) < machine.live()) return false;
    machine.whole.arrived = 0;
    ++machine.whole.generation;
    return true;
  });
}

void named_barrier(int id, int threads, bool wait) {
  Named& barrier = machine.named[id];
  if (wait) {
    meet(&barrier, unsigned(threads));
  } else if (++barrier.arrived >= threads) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
}

const unsigned char* warp_exchange(unsigned mask, const void* value, size_t bytes) {
  const unsigned at = lane();
  if (bytes > 16 || !(mask >> at & 1)) {
    fprintf(stderr, "emulated GPU: lane %u takes part in a collective of the lanes %08x\n", at, mask);
    abort();
  }
  Lanes& lanes = machine.warps[machine.running->rank / kWarp][mask];
  unsigned char (*values)[16] = lanes.values[lanes.uses[at]++ & 1];
  memcpy(values[at], value, bytes);
  const unsigned first = machine.running->rank / kWarp * kWarp;
  unsigned expected = 0;
  for (unsigned i = 0; i < kWarp && first + i < machine.n_threads; ++i) expected += mask >> i & 1;
  meet(&lanes.meeting, expected);
  return values[0];
}

void later(std::function<void()> action) { machine.pending.push_back(std::move(action)); }

// Products run in the order of their issue, so that one that runs now takes all before it along.
void issue(Groups::Kind kind, std::function<void()> action) {
  Fiber& fiber = *machine.running;
  fiber.open[kind].push_back(std::move(action));
  if (kind != Groups::kProducts || !coin()) return;
  for (auto& group : fiber.groups[kind]) run_all(&group);
  run_all(&fiber.open[kind]);
}

void commit(Groups::Kind kind) {
  Fiber& fiber = *machine.running;
  fiber.groups[kind].push_back(std::move(fiber.open[kind]));
  fiber.open[kind].clear();
}

void wait_for_groups(Groups::Kind kind, int still_pending) {
  auto& groups = machine.running->groups[kind];
  while (int(groups.size()) > still_pending) {
    run_all(&groups.front());
    groups.pop_front();
  }
  yield();
}

int run(dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& thread) {
  if (shared_bytes > kSharedBytes || threads.x * threads.y * threads.z > 1024 ||
      threads.x * threads.y * threads.z == 0 || blocks.x * blocks.y * blocks.z == 0) {
    return cudaErrorInvalidConfiguration;
  }
  const char* seed = getenv("DCFAST_EMULATOR_SEED");
  machine.random.seed(seed == nullptr ? 0 : unsigned(atoi(seed)));
  machine.body = &thread;
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x)
        if (!run_block(dim3(x, y, z), blocks, threads, shared_bytes)) return cudaErrorLaunchTimeout;
  return cudaSuccess;
}

}  // namespace emulator

namespace {
int last_error = cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const int error = last_error;
  last_error = cudaSuccess;
  return cudaError_t(error);
}

void emulator_set_error(int error) {
  if (last_error == cudaSuccess) last_error = error;
}

namespace dcfast {
// The extension of the tests holds no CPU ops.
const CpuOps* cpu_ops_available() {
  static const CpuOps none = {};
  return &none;
}
}  // namespace dcfast
