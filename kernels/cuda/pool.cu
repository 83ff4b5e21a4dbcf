// pool, normalize_rows, log1p_relu_rows, gather_rows: from token rows to the outputs.
// Oracle: edgebert/backends/numpy_ops.py pool, normalize, log1p_relu.
#include "cuda/rows.h"

namespace edgebert {
namespace cuda {
namespace {

constexpr int kWarpsPerBlock = 8;

__device__ float combine(Pooling pooling, float a, float b) { return pooling == Pooling::kMax ? fmaxf(a, b) : a + b; }

// A block pools kWarpColumns columns of one sequence. Warp w adds up tokens w, w + 8, ..., ascending, or takes the
// largest; then the warps' sums are added in their order, so the result depends on the sequence alone.
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp) pool_kernel(const PoolArgs args) {
  const int sequence = static_cast<int>(blockIdx.x);
  const int column = static_cast<int>(blockIdx.y) * kWarpColumns + lane_id() * kVector;
  const int valid = args.width - column < kVector ? args.width - column : kVector;  // may be negative
  const Pooling pooling = args.pooling;
  const int begin = args.cu_seqlens[sequence], end = args.cu_seqlens[sequence + 1];
  const int first = pooling == Pooling::kLast ? end - 1 : begin;
  const int count = pooling == Pooling::kCls || pooling == Pooling::kLast ? 1 : end - begin;
  Four32 sum{};
  for (int j = 0; j < kVector; ++j) sum.v[j] = pooling == Pooling::kMax ? -INFINITY : 0.0f;
#pragma unroll 4
  for (int t = warp_id(); t < count; t += kWarpsPerBlock) {
    const Four32 x = valid > 0 ? load4(args.x, first + t, column, valid) : Four32{};
    const float weight = pooling == Pooling::kWeightedMean ? static_cast<float>(t + 1) : 1.0f;
    for (int j = 0; j < kVector; ++j) sum.v[j] = combine(pooling, sum.v[j], x.v[j] * weight);
  }
  Four32* const sums = reinterpret_cast<Four32*>(dynamic_shared());
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp_id() != 0 || valid <= 0) return;
  for (int w = 1; w < kWarpsPerBlock; ++w)
    for (int j = 0; j < kVector; ++j) sum.v[j] = combine(pooling, sum.v[j], sums[w * kWarp + lane_id()].v[j]);
  const float number = static_cast<float>(end - begin);
  const float divisor = pooling == Pooling::kMean           ? number
                        : pooling == Pooling::kMeanSqrtLen  ? sqrtf(number)
                        : pooling == Pooling::kWeightedMean ? number * (number + 1.0f) * 0.5f
                                                            : 1.0f;
  for (int j = 0; j < kVector; ++j) sum.v[j] /= divisor;
  store4(args.out, sequence, args.column + column, sum, valid, args.column % kVector == 0);
}

struct RowsArgs {
  Rows x;
  const int32_t* index;
  int rows, width;
  Rows out;
};

__global__ void __launch_bounds__(kWarpsPerBlock* kWarp) normalize_rows_kernel(const RowsArgs args) {
  const int row = row_of_warp();
  if (row >= args.rows) return;
  float squares = 0.0f;
  for_columns(args.width, [&](int column, int valid) {
    const Four32 x = load4(args.x, row, column, valid);
    for (int j = 0; j < kVector; ++j) squares += x.v[j] * x.v[j];
  });
  const float norm = fmaxf(sqrtf(warp_sum(squares)), 1e-12f);
  for_columns(args.width, [&](int column, int valid) {
    Four32 x = load4(args.x, row, column, valid);
    for (int j = 0; j < kVector; ++j) x.v[j] /= norm;
    store4(args.x, row, column, x, valid);
  });
}

__global__ void __launch_bounds__(kWarpsPerBlock* kWarp) log1p_relu_rows_kernel(const RowsArgs args) {
  const int row = row_of_warp();
  if (row >= args.rows) return;
  for_columns(args.width, [&](int column, int valid) {
    Four32 x = load4(args.x, row, column, valid);
    for (int j = 0; j < kVector; ++j) x.v[j] = log1pf(fmaxf(x.v[j], 0.0f));
    store4(args.x, row, column, x, valid);
  });
}

__global__ void __launch_bounds__(kWarpsPerBlock* kWarp) gather_rows_kernel(const RowsArgs args) {
  const int row = row_of_warp();
  if (row >= args.rows) return;
  const int from = args.index ? args.index[row] : row;
  const bool is_aligned = args.out.stride % kVector == 0;
  for_columns(args.width, [&](int column, int valid) {
    store4(args.out, row, column, load4(args.x, from, column, valid), valid, is_aligned);
  });
}

cudaError_t launch_rows(void (*kernel)(RowsArgs), const RowsArgs& args, cudaStream_t stream) {
  return launch(kernel, dim3(static_cast<unsigned>(ceil_div(args.rows, kWarpsPerBlock))), kWarpsPerBlock * kWarp, 0,
                stream, args);
}

}  // namespace

cudaError_t pool(const PoolArgs& args, cudaStream_t stream) {
  return launch(
      pool_kernel,
      dim3(static_cast<unsigned>(args.num_sequences), static_cast<unsigned>(ceil_div(args.width, kWarpColumns))),
      kWarpsPerBlock * kWarp, kWarpsPerBlock * kWarp * sizeof(Four32), stream, args);
}
cudaError_t normalize_rows(const Rows& x, int rows, int width, cudaStream_t stream) {
  return launch_rows(normalize_rows_kernel, {x, nullptr, rows, width, x}, stream);
}
cudaError_t log1p_relu_rows(const Rows& x, int rows, int width, cudaStream_t stream) {
  return launch_rows(log1p_relu_rows_kernel, {x, nullptr, rows, width, x}, stream);
}
cudaError_t gather_rows(const Rows& x, const int32_t* index, int rows, int width, const Rows& out,
                        cudaStream_t stream) {
  return launch_rows(gather_rows_kernel, {x, index, rows, width, out}, stream);
}

}  // namespace cuda
}  // namespace edgebert
