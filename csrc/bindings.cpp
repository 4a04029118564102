// The only file that knows Python: integers become pointers, the GIL is released, a status becomes an
// exception.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "dcfast/core.h"

namespace py = pybind11;

namespace {

// Pointers travel as integers (tensor.data_ptr()), everything else as itself.
template <class T>
using FromPython = std::conditional_t<std::is_pointer_v<T>, uintptr_t, T>;

template <class T>
T from_python(FromPython<T> value) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(value);
  } else {
    return value;
  }
}

void check(int status) {
  if (status == DCFAST_OK) return;
  if (status == DCFAST_INVALID_DTYPE) throw std::invalid_argument("dcfast: the kernel has no such dtype");
  if (status == DCFAST_OUT_OF_RANGE) throw std::invalid_argument("dcfast: an argument is out of the kernel's range");
#ifdef DCFAST_HAS_CUDA
  if (status >= DCFAST_CUDA_ERROR) {
    throw std::runtime_error(std::string("dcfast: CUDA: ") + dcfast::cuda::error_string(status - DCFAST_CUDA_ERROR));
  }
#endif
  throw std::runtime_error("dcfast: native status " + std::to_string(status));
}

template <class... A>
auto bind(int (*op)(A...)) {
  return [op](FromPython<A>... args) {
    py::gil_scoped_release release;
    check(op(from_python<A>(args)...));
  };
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "dcfast's native core; see dcfast.ops for the public functions";
  // One submodule per instruction set that runs here (m.avx2.assign, ...), so that tests can compare them.
  std::vector<std::string> isas;
  for (const dcfast::CpuOps* ops = dcfast::cpu_ops_available(); ops->isa != nullptr; ++ops) {
    py::module_ isa = m.def_submodule(ops->isa);
#define DCFAST_BIND(op) isa.def(#op, bind(ops->op));
    DCFAST_CPU_OPS(DCFAST_BIND)
#undef DCFAST_BIND
    isas.emplace_back(ops->isa);
  }
  m.attr("isas") = isas;
  m.attr("compiled_isas") = std::vector<std::string>{
#ifdef DCFAST_HAS_amx
      "amx",
#endif
#ifdef DCFAST_HAS_avx512
      "avx512",
#endif
#ifdef DCFAST_HAS_avx2
      "avx2",
#endif
      "baseline"};
#ifdef DCFAST_HAS_CUDA
  py::module_ cuda = m.def_submodule("cuda");
#define DCFAST_BIND(op) cuda.def(#op, bind(&dcfast::cuda::op));
  DCFAST_CUDA_OPS(DCFAST_BIND)
#undef DCFAST_BIND
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
}
