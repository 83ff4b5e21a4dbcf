// embed_layernorm and add_layernorm: one warp a row.
// Oracle: edgebert/backends/numpy_ops.py embed_layernorm, add_layernorm; edgebert/quant.py quantize_rows.
//
// A row lies in shared memory in f32 between the passes over it (sum, squares, result, codes): global memory is read
// once. A lane reads back only what it wrote itself, so no pass waits for another lane but in the sums.
#include "cuda/rows.h"

namespace edgebert {
namespace cuda {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr size_t kSharedBytes = 48 * 1024;  // what every GPU gives a block without being asked

__host__ __device__ constexpr int padded_width(int width) { return ceil_div(width, kVector) * kVector; }

// out = LayerNorm of the row that sum_of(column, valid) gives four columns of, and its codes.
template <class SumOf>
__device__ void layernorm_row(SumOf sum_of, const LayerNorm& norm, int row, const Rows& out, const CodeRows& codes,
                              const float* inv_smooth) {
  float* values = reinterpret_cast<float*>(dynamic_shared()) + warp_id() * padded_width(norm.width);
  const auto at = [&](int column) -> Four32& { return *reinterpret_cast<Four32*>(values + column); };
  const float width = static_cast<float>(norm.width);
  float sum = 0.0f;
  for_columns(norm.width, [&](int column, int valid) {
    const Four32 x = sum_of(column, valid);
    at(column) = x;
    for (int j = 0; j < kVector; ++j) sum += x.v[j];  // 0 past the end
  });
  const float mean = warp_sum(sum) / width;
  float squares = 0.0f;
  for_columns(norm.width, [&](int column, int valid) {
    const Four32 x = at(column);
    for (int j = 0; j < kVector; ++j) {
      const float d = x.v[j] - mean;
      if (j < valid) squares += d * d;
    }
  });
  const float inv_deviation = 1.0f / sqrtf(warp_sum(squares) / width + norm.eps);
  RowRange range;
  for_columns(norm.width, [&](int column, int valid) {
    Four32 y = at(column);
    const Four32 weight = load_as(norm.weight + column, valid), bias = load_as(norm.bias + column, valid);
    for (int j = 0; j < kVector; ++j) y.v[j] = (y.v[j] - mean) * inv_deviation * weight.v[j] + bias.v[j];
    store4(out, row, column, y, valid);
    if (codes.codes) {
      y = smoothed(y, inv_smooth, column, valid);
      range.widen(y);
      at(column) = y;
    }
  });
  if (!codes.codes) return;
  const RowQuantizer quantizer(range, codes, row);
  for_columns(norm.width, [&](int column, int valid) { quantizer.store(codes, row, column, at(column), valid); });
}

__device__ Four32 table4(const Table& table, int id, int width, int column, int valid) {
  const size_t at = static_cast<size_t>(id) * static_cast<size_t>(width) + static_cast<size_t>(column);
  Four32 x = load4(table.data, table.dtype, at, valid, width % kVector == 0);
  if (table.scale) {
    const float scale = table.scale[id];
    for (int j = 0; j < kVector; ++j) x.v[j] = __fmul_rn(x.v[j], scale);
  }
  return x;
}

__device__ Four32 add(Four32 a, const Four32& b) {
  for (int j = 0; j < kVector; ++j) a.v[j] = __fadd_rn(a.v[j], b.v[j]);
  return a;
}

__global__ void __launch_bounds__(kWarpsPerBlock* kWarp) embed_layernorm_kernel(const EmbedLayerNormArgs args) {
  const int token = row_of_warp();
  if (token >= args.tokens) return;
  const int id = args.input_ids[token], type = args.token_type_ids ? args.token_type_ids[token] : 0;
  const int position = args.position_ids[token], width = args.norm.width;
  const auto sum_of = [&](int column, int valid) {
    Four32 x = table4(args.word, id, width, column, valid);
    if (args.token_type.data) x = add(x, table4(args.token_type, type, width, column, valid));
    return add(x, table4(args.position, position, width, column, valid));
  };
  layernorm_row(sum_of, args.norm, token, args.out, CodeRows{}, nullptr);
}

// kIsF16: x, the residual and out are, and there is a residual.
template <bool kIsF16>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp) add_layernorm_kernel(const AddLayerNormArgs args) {
  const int token = row_of_warp();
  if (token >= args.tokens) return;
  Rows x = args.x, residual = args.residual, out = args.out;
  if (kIsF16) x.dtype = residual.dtype = out.dtype = DType::kF16;
  const auto sum_of = [&](int column, int valid) {
    const Four32 sum = load4(x, token, column, valid);
    return kIsF16 || residual.data ? add(sum, load4(residual, token, column, valid)) : sum;
  };
  layernorm_row(sum_of, args.norm, token, out, args.codes, args.inv_smooth);
}

// A row a warp, as many warps as shared memory holds rows.
template <class Args>
cudaError_t launch_rows(void (*kernel)(Args), const Args& args, cudaStream_t stream) {
  const size_t row_bytes = static_cast<size_t>(padded_width(args.norm.width)) * sizeof(float);
  if (row_bytes == 0 || row_bytes > kSharedBytes) return cudaErrorInvalidValue;
  const int fit = static_cast<int>(kSharedBytes / row_bytes), warps = fit < kWarpsPerBlock ? fit : kWarpsPerBlock;
  return launch(kernel, dim3(static_cast<unsigned>(ceil_div(args.tokens, warps))), warps * kWarp,
                static_cast<size_t>(warps) * row_bytes, stream, args);
}

}  // namespace

cudaError_t embed_layernorm(const EmbedLayerNormArgs& args, cudaStream_t stream) {
  return launch_rows(embed_layernorm_kernel, args, stream);
}
cudaError_t add_layernorm(const AddLayerNormArgs& args, cudaStream_t stream) {
  const bool is_f16 = args.x.dtype == DType::kF16 && args.residual.data && args.residual.dtype == DType::kF16 &&
                      args.out.dtype == DType::kF16;
  return launch_rows(is_f16 ? add_layernorm_kernel<true> : add_layernorm_kernel<false>, args, stream);
}

}  // namespace cuda
}  // namespace edgebert
