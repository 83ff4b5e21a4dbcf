// The CUDA kernels' launch functions: what the host side of this folder calls.
//
// All pointers are device pointers. Nothing here allocates, synchronises or keeps state; a launch only queues work on
// `stream`, so it may be captured into a graph. The returned error is the launch's own. Oracle of each:
// edgebert/backends/numpy_ops.py and edgebert/quant.py.
//
// Rows are row-major with a stride counted in elements. Strides must be multiples of kRowAlign and data aligned to 16
// bytes; what lies between width and stride is never used, and never written.
//
// A text gets the same bits alone and in any batch: every sum has one order, which neither the number of rows nor the
// tile chosen for it changes. There are no atomics.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "format/encoder_spec.h"  // Activation, Pooling

namespace edgebert {
namespace cuda {

constexpr int kRowAlign = 16;  // elements: 16 bytes of s8
constexpr int row_stride(int width) { return (width + kRowAlign - 1) / kRowAlign * kRowAlign; }
constexpr int kMaxHeadDim = 128;

enum class DType { kF32, kF16, kBF16, kS8 };

struct Rows {
  void* data;  // nullptr: absent, where a comment allows it
  DType dtype;
  int stride;
};

// Codes of edgebert/quant.py, stored less 128, as s8 tensor cores take them.
struct CodeRows {
  int8_t* codes;      // [rows][stride]
  int stride;         // bytes, a multiple of kRowAlign
  float* a_scale;     // [rows]
  int32_t* neg_zero;  // [rows], zn + 128: acc = sum(stored code * w) + neg_zero * colsum
};

struct LayerNorm {
  const float* weight;  // [width]
  const float* bias;    // [width]
  int width;            // at most kMaxLayerNormWidth
  float eps;
};
constexpr int kMaxLayerNormWidth = 12 * 1024;  // a row in f32 must fit 48 KB of shared memory

// A table's row r is data[r * width ...], contiguous, times scale[r] where it holds s8 codes. Tables alone need no
// aligned rows. dtype: any.
struct Table {
  const void* data;
  DType dtype;
  const float* scale;  // [rows], of an s8 table; else nullptr
};

// out[t] = LayerNorm((word[id] + token_type[type]) + position[position id]); numpy_ops.embed_layernorm.
struct EmbedLayerNormArgs {
  Table word, position, token_type;  // token_type.data nullptr: no such table
  LayerNorm norm;                    // of the tables' width
  const int32_t* input_ids;          // [tokens]
  const int32_t* token_type_ids;     // [tokens], or nullptr: zeros
  const int32_t* position_ids;       // [tokens], rows of the table
  int tokens;
  Rows out;  // f32, f16 or bf16
};
cudaError_t embed_layernorm(const EmbedLayerNormArgs& args, cudaStream_t stream);

// out = LayerNorm(x + residual); numpy_ops.add_layernorm. With codes.codes, also quant.quantize_rows of the result,
// from its f32 values before they are rounded to out's dtype.
struct AddLayerNormArgs {
  Rows x;         // f32, f16 or bf16; stride 0: one row for all (a pruned-away linear's bias)
  Rows residual;  // f32, f16 or bf16, or absent
  LayerNorm norm;
  int tokens;
  Rows out;                 // f32, f16 or bf16; may be x or residual
  CodeRows codes;           // codes.codes nullptr: none
  const float* inv_smooth;  // [width] or nullptr
};
cudaError_t add_layernorm(const AddLayerNormArgs& args, cudaStream_t stream);

// quant.quantize_rows.
struct QuantizeRowsArgs {
  Rows x;  // f32, f16 or bf16
  int rows, width;
  const float* inv_smooth;  // [width] or nullptr
  CodeRows out;
};
cudaError_t quantize_rows(const QuantizeRowsArgs& args, cudaStream_t stream);

// softmax(Q K^T / sqrt(head_dim) + bias) V of each sequence and head; numpy_ops.attention_varlen.
struct AttentionArgs {
  Rows qkv;                   // f16 or bf16 [tokens, 3 * num_heads * head_dim]: queries of all heads, keys, values
  const int32_t* cu_seqlens;  // [num_sequences + 1]
  int num_sequences;          // at most 65,535
  int max_seqlen;             // at least the longest sequence of the batch; sets the grid, not the result
  int num_heads;
  int head_dim;                // 1 to kMaxHeadDim; multiples of 8 load fastest, 32, 64 and 128 waste nothing
  Rows context;                // qkv's dtype [tokens, num_heads * head_dim]
  const float* position_bias;  // of the scores by distance, [num_heads, 2 * max_distance + 1], or nullptr
  int max_distance;
};
cudaError_t attention_varlen(const AttentionArgs& args, cudaStream_t stream);

// out = activation(x @ weight + bias) + residual; numpy_ops.linear. Sums in f32, epilogue in f32.
struct LinearF16Args {
  Rows x;              // f16 or bf16 [rows, inputs]
  const void* weight;  // x's dtype [outputs][row_stride(inputs)]: transposed, an output's inputs contiguous
  const float* bias;   // [outputs] or nullptr
  int rows, inputs, outputs;
  Activation activation;
  Rows residual;            // f32, f16 or bf16 [rows, outputs], or absent; may be out
  Rows out;                 // f32, f16 or bf16
  int num_multiprocessors;  // of the device: sets the tile, not the result
};
cudaError_t linear_f16(const LinearF16Args& args, cudaStream_t stream);

// The same from codes: y = ((acc * w_scale) * a_scale) + bias, acc exact in s32, then activation, then residual;
// quant.linear_u8s8_f32.
struct LinearS8Args {
  CodeRows x;             // [rows, inputs]
  const int8_t* weight;   // [outputs][row_stride(inputs)]: transposed
  const float* w_scale;   // [outputs]
  const int32_t* colsum;  // [outputs], sums of the weights over the inputs
  const float* bias;      // [outputs] or nullptr
  int rows, inputs, outputs;
  Activation activation;
  Rows residual;
  Rows out;
  int num_multiprocessors;
};
cudaError_t linear_s8(const LinearS8Args& args, cudaStream_t stream);

// The same in f32 throughout, for the heads: no tensor cores, so for few rows or few outputs.
struct LinearF32Args {
  Rows x;               // f32, f16 or bf16 [rows, inputs]
  const float* weight;  // [outputs][inputs], contiguous
  const float* bias;    // [outputs] or nullptr
  int rows, inputs, outputs;
  Activation activation;
  Rows out;  // f32, f16 or bf16
};
cudaError_t linear_f32(const LinearF32Args& args, cudaStream_t stream);

// One row a sequence, from `column` on in out's row; numpy_ops.pool by one pooling.
struct PoolArgs {
  Rows x;  // f32, f16 or bf16 [tokens, width]
  int width;
  const int32_t* cu_seqlens;  // [num_sequences + 1]
  int num_sequences;          // at most 65,535
  Pooling pooling;
  int column;
  Rows out;  // f32 [num_sequences, column + width]
};
cudaError_t pool(const PoolArgs& args, cudaStream_t stream);

// Rows divided by max(Euclidean norm, 1e-12), in place; numpy_ops.normalize.
cudaError_t normalize_rows(const Rows& x, int rows, int width, cudaStream_t stream);

// log(1 + max(x, 0)) of rows, in place; numpy_ops.log1p_relu.
cudaError_t log1p_relu_rows(const Rows& x, int rows, int width, cudaStream_t stream);

// out[i] = x[index[i]], or x[i] where index is nullptr; the dtypes may differ. out may be contiguous (its stride then
// is the width, of any size): this also packs rows for the copy to the host.
cudaError_t gather_rows(const Rows& x, const int32_t* index, int rows, int width, const Rows& out, cudaStream_t stream);

}  // namespace cuda
}  // namespace edgebert
