// linear_f32: activation(x @ weight + bias), f32 throughout, for the heads.
// Oracle: edgebert/backends/numpy_ops.py linear.
//
// A warp computes one output of kRows rows, so that a weight is loaded once for all of them; each lane sums its own
// inputs, ascending, then the warp adds up.
#include "cuda/rows.h"

namespace edgebert {
namespace cuda {
namespace {

constexpr int kWarpsPerBlock = 8;
constexpr int kRows = 8;

__global__ void __launch_bounds__(kWarpsPerBlock* kWarp) linear_f32_kernel(const LinearF32Args args) {
  const int first_row = static_cast<int>(blockIdx.x) * kRows;
  const int output = static_cast<int>(blockIdx.y) * kWarpsPerBlock + warp_id();
  if (output >= args.outputs) return;
  const float* weight = args.weight + static_cast<size_t>(output) * static_cast<size_t>(args.inputs);
  const bool is_aligned = args.inputs % kVector == 0;
  float sums[kRows] = {};
  for_columns(args.inputs, [&](int column, int valid) {
    const Four32 w = load_as(weight + column, valid, is_aligned);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = first_row + r < args.rows ? first_row + r : args.rows - 1;  // no branch: the loads wait together
      const Four32 x = load4(args.x, row, column, valid);
#pragma unroll
      for (int j = 0; j < kVector; ++j) sums[r] = fmaf(x.v[j], w.v[j], sums[r]);
    }
  });
  const float bias = args.bias ? args.bias[output] : 0.0f;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float sum = warp_sum(sums[r]);
    if (lane_id() != 0 || first_row + r >= args.rows) continue;
    Four32 y{};
    y.v[0] = activate(sum + bias, args.activation);
    store4(args.out, first_row + r, output, y, 1);
  }
}

}  // namespace

cudaError_t linear_f32(const LinearF32Args& args, cudaStream_t stream) {
  return launch(linear_f32_kernel,
                dim3(static_cast<unsigned>(ceil_div(args.rows, kRows)),
                     static_cast<unsigned>(ceil_div(args.outputs, kWarpsPerBlock))),
                kWarpsPerBlock * kWarp, 0, stream, args);
}

}  // namespace cuda
}  // namespace edgebert
