// Which instruction set serves this processor. The only CPU file that is compiled once, for the baseline.
#include "dcfast/core.h"

#if defined(DCFAST_HAS_amx)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dcfast {

namespace {

#if defined(DCFAST_HAS_amx)
// Linux saves the 8 KiB of tiles only for processes that ask for them.
bool tiles_allowed() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
         syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#endif

}  // namespace

const CpuOps* cpu_ops_available() {
#define DCFAST_ENTRY(op) &DCFAST_ISA_NAMESPACE::op,
  static CpuOps available[5];
  int count = 0;
#if defined(DCFAST_HAS_avx512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma")) {
#define DCFAST_ISA_NAMESPACE avx512
    available[count++] = CpuOps{"avx512", DCFAST_CPU_OPS(DCFAST_ENTRY)};
#undef DCFAST_ISA_NAMESPACE
#if defined(DCFAST_HAS_amx)
    if (tiles_allowed()) {
      available[count] = available[count - 1];
      CpuOps& tiled = available[count++ - 1];
      tiled.isa = "amx";
#define DCFAST_REPLACE(op) tiled.op = &amx::op;
      DCFAST_AMX_OPS(DCFAST_REPLACE)
#undef DCFAST_REPLACE
    }
#endif
  }
#endif
#if defined(DCFAST_HAS_avx2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
#define DCFAST_ISA_NAMESPACE avx2
    available[count++] = CpuOps{"avx2", DCFAST_CPU_OPS(DCFAST_ENTRY)};
#undef DCFAST_ISA_NAMESPACE
  }
#endif
#define DCFAST_ISA_NAMESPACE baseline
  available[count++] = CpuOps{"baseline", DCFAST_CPU_OPS(DCFAST_ENTRY)};
#undef DCFAST_ISA_NAMESPACE
#undef DCFAST_ENTRY
  available[count] = CpuOps{};
  return available;
}

}  // namespace dcfast
