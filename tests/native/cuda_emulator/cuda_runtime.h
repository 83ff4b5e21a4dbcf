// What CUDA C++ adds to C++, as far as the kernels use it, for the emulator.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <tuple>

#include "cuda_runtime_api.h"
#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __int2float_rn(int a) { return static_cast<float>(a); }

inline void __syncthreads() { emulator::sync_block(); }
inline void __syncwarp() { emulator::sync_warp(); }
inline float __shfl_xor_sync(unsigned, float x, int lanes) { return emulator::shuffle_xor(x, lanes); }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  const std::tuple<Parameters...> copies(arguments...);
  return emulator::launch(config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream,
                          [kernel, copies] { std::apply(kernel, copies); });
}
