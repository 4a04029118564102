#include "common.cuh"

namespace dcfast {
namespace cuda {

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace cuda
}  // namespace dcfast
