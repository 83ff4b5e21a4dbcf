// Device code that all kernels share: four neighbouring values of a row in f32 whatever its dtype, sums over a warp,
// activations, codes, and the launch itself.
//
// The dtype is a run-time value, so that there is one kernel instead of one for every pair of dtypes. Where loads
// should not wait for a branch, a kernel has a second form whose dtypes are set to f16, which the compiler then knows.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>

#include "cuda/kernels.h"
#include "cuda/mma.h"

namespace edgebert {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kVector = 4;                     // columns a lane takes at once
constexpr int kWarpColumns = kWarp * kVector;  // columns a warp takes at once

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ inline int row_of_warp() {
  return static_cast<int>(blockIdx.x) * (static_cast<int>(blockDim.x) / kWarp) + warp_id();
}

template <class T>
struct alignas(kVector * sizeof(T)) Four {
  T v[kVector];
};
using Four32 = Four<float>;

__device__ inline float to_f32(float x) { return x; }
__device__ inline float to_f32(__half x) { return __half2float(x); }
__device__ inline float to_f32(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_f32(int8_t x) { return static_cast<float>(x); }
__device__ inline void round_to(float& to, float x) { to = x; }
__device__ inline void round_to(__half& to, float x) { to = __float2half_rn(x); }
__device__ inline void round_to(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }

// The first `valid` (1 to 4) of four values at p, the others 0. One access where `aligned` and all four are there.
template <class T>
__device__ inline Four32 load_as(const T* p, int valid, bool aligned = true) {
  Four32 x{};
  if (valid >= kVector && aligned) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(p);
#pragma unroll
    for (int j = 0; j < kVector; ++j) x.v[j] = to_f32(four.v[j]);
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j)
      if (j < valid) x.v[j] = to_f32(p[j]);
  }
  return x;
}
template <class T>
__device__ inline void store_as(T* p, const Four32& x, int valid, bool aligned = true) {
  if (valid >= kVector && aligned) {
    Four<T> four;
#pragma unroll
    for (int j = 0; j < kVector; ++j) round_to(four.v[j], x.v[j]);
    *reinterpret_cast<Four<T>*>(p) = four;
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j)
      if (j < valid) round_to(p[j], x.v[j]);
  }
}

__device__ inline Four32 load4(const void* data, DType dtype, size_t at, int valid, bool aligned = true) {
  switch (dtype) {
    case DType::kF16:
      return load_as(static_cast<const __half*>(data) + at, valid, aligned);
    case DType::kBF16:
      return load_as(static_cast<const __nv_bfloat16*>(data) + at, valid, aligned);
    case DType::kS8:
      return load_as(static_cast<const int8_t*>(data) + at, valid, aligned);
    default:
      return load_as(static_cast<const float*>(data) + at, valid, aligned);
  }
}
__device__ inline size_t offset(const Rows& x, int row, int column) {
  return static_cast<size_t>(row) * static_cast<size_t>(x.stride) + static_cast<size_t>(column);
}
__device__ inline Four32 load4(const Rows& x, int row, int column, int valid) {
  return load4(x.data, x.dtype, offset(x, row, column), valid);
}
__device__ inline void store4(const Rows& x, int row, int column, const Four32& y, int valid, bool aligned = true) {
  const size_t at = offset(x, row, column);
  switch (x.dtype) {
    case DType::kF16:
      return store_as(static_cast<__half*>(x.data) + at, y, valid, aligned);
    case DType::kBF16:
      return store_as(static_cast<__nv_bfloat16*>(x.data) + at, y, valid, aligned);
    default:
      return store_as(static_cast<float*>(x.data) + at, y, valid, aligned);
  }
}

// Calls body(column, valid) for this lane's columns of a row, ascending; a warp reads whole lines. Whole vectors come
// first, several at once, so that their loads wait together.
template <class Body>
__device__ inline void for_columns(int width, Body body) {
  int column = lane_id() * kVector;
#pragma unroll 4
  for (; column + kVector <= width; column += kWarpColumns) body(column, kVector);
  if (column < width) body(column, width - column);
}

// Every lane gets the same bits: both partners of a step add the same two values.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int step = kWarp / 2; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
__device__ inline float warp_min(float x) {
#pragma unroll
  for (int step = kWarp / 2; step; step /= 2) x = fminf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int step = kWarp / 2; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

// x * Phi(x) = max(x, 0) - |x| * Phi(-|x|), Phi(-a) = 2**P(a), with the polynomial of kernels/cpu/generic/math-inl.h:
// absolute error 5e-8, at a third of the instructions of erff, which a product's tile would wait for.
__device__ inline float gelu_erf(float x) {
  const float a = fminf(fabsf(x), 6.0f);
  float p = fmaf(a, 3.3093243e-5f, -7.6922356e-4f);
  p = fmaf(p, a, 8.0807296e-3f);
  p = fmaf(p, a, -5.3412125e-2f);
  p = fmaf(p, a, -4.5877096e-1f);
  p = fmaf(p, a, -1.1512017f);
  p = fmaf(p, a, -9.9999306e-1f);
  return fmaf(-a, exp2_approx(p), fmaxf(x, 0.0f));
}

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x**3)
__device__ inline float gelu_tanh(float x) {
  const float u = 0.79788456f * fmaf(0.044715f * x * x, x, x);
  return x / (1.0f + exp2_approx(-2.88539008f * u));
}

// numpy_ops.activate
__device__ inline float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::kGeluErf:
      return gelu_erf(x);
    case Activation::kGeluTanh:
      return gelu_tanh(x);
    case Activation::kRelu:
      return fmaxf(x, 0.0f);
    case Activation::kTanh:
      return tanhf(x);
    case Activation::kSilu:
      return x / (1.0f + exp2_approx(-1.44269504f * x));
    default:
      return x;
  }
}

// ---- Codes: edgebert/quant.py quantize_rows, one warp a row --------------------------------------------------------

__device__ inline Four32 smoothed(Four32 x, const float* inv_smooth, int column, int valid) {
  if (!inv_smooth) return x;
  const Four32 by = load_as(inv_smooth + column, valid);
#pragma unroll
  for (int j = 0; j < kVector; ++j) x.v[j] = __fmul_rn(x.v[j], by.v[j]);
  return x;
}

// The smallest and largest value of a row, as far as this lane has seen it.
struct RowRange {
  float lo = -1e-12f, hi = 0.0f;
  __device__ void widen(const Four32& x) {  // values past the end are 0, which changes neither
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      lo = fminf(lo, x.v[j]);
      hi = fmaxf(hi, x.v[j]);
    }
  }
};

struct RowQuantizer {
  float r, zn;

  // Of the range of the whole row; lane 0 writes down the row's scale and zero point.
  __device__ RowQuantizer(const RowRange& of_lane, const CodeRows& out, int row) {
    const float lo = warp_min(of_lane.lo), hi = warp_max(of_lane.hi), span = __fsub_rn(hi, lo);
    r = __fdiv_rn(255.0f, span);
    zn = rintf(__fmul_rn(lo, r));
    if (lane_id() == 0) {
      out.a_scale[row] = __fdiv_rn(span, 255.0f);
      out.neg_zero[row] = static_cast<int32_t>(zn) + 128;
    }
  }
  __device__ void store(const CodeRows& out, int row, int column, const Four32& x, int valid) const {
    Four<int8_t> codes;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const float q = fminf(fmaxf(rintf(__fsub_rn(__fmul_rn(x.v[j], r), zn)), 0.0f), 255.0f);
      codes.v[j] = static_cast<int8_t>(static_cast<int>(q) - 128);
    }
    int8_t* to = out.codes + static_cast<size_t>(row) * static_cast<size_t>(out.stride) + column;
    if (valid == kVector) {
      *reinterpret_cast<Four<int8_t>*>(to) = codes;
    } else {
#pragma unroll
      for (int j = 0; j < kVector; ++j)
        if (j < valid) to[j] = codes.v[j];
    }
  }
};

// ---- Launch --------------------------------------------------------------------------------------------------------

template <class Args>
cudaError_t launch(void (*kernel)(Args), dim3 grid, int threads, size_t shared_bytes, cudaStream_t stream,
                   const Args& args) {
  if (grid.x == 0 || grid.y == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace cuda
}  // namespace edgebert
