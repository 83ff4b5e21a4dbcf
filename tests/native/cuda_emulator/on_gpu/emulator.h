// What kernel_test.cc asks of the emulator, for its build with CUDA: memory that the host and the GPU both see.
// Launches must be waited for: run it with CUDA_LAUNCH_BLOCKING=1.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstring>

namespace emulator {

inline cudaError_t allocate_managed(void** data, size_t bytes) {
  const cudaError_t error = cudaMallocManaged(data, bytes ? bytes : 1);
  if (error == cudaSuccess) std::memset(*data, 0xff, bytes);
  return error;
}

inline void set_reversed(bool) {}  // the GPU has an order of its own

}  // namespace emulator

#define cudaMalloc emulator::allocate_managed
