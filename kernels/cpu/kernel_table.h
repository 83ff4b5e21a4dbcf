// KernelTable: the kernels of one ISA, and the plain structs they take.
//
// Strides count elements. Activation buffers have rows padded to kRowAlign floats (row_stride), and kSlackFloats
// floats after the last row, so that kernels load and store whole vectors; what lies in the padding is never used.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace edgebert {

constexpr int kRowAlign = 16;
constexpr int kSlackFloats = 64;
constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }
constexpr int row_stride(int width) { return round_up(width, kRowAlign); }

// What a linear does with its sums before storing them.
enum class Epilogue { kBias, kGeluErf, kGeluTanh, kRelu, kTanh, kSilu };

// Rows of u8 codes with a scale and a (negated) zero point each; see edgebert/quant.py. An ISA may store code - 128:
// its zero points then carry the 128.
struct CodeRows {
  uint8_t* codes;
  int stride;         // bytes, a multiple of 64
  float* a_scale;     // [rows]
  int32_t* neg_zero;  // [rows]: acc = sum(stored code * w) + neg_zero * colsum
  uint8_t flip;       // the table's code_flip
};

struct LayerNormWeights {
  const float* weight;
  const float* bias;
  int width;
  float eps;
};

// out[t] = LayerNorm((word[id] + type[type id]) + position[offset + position in its sequence])
// An f32 table has `weight`; an s8 one `codes` and a `scale` a row. No type table: num_token_types 0; no table of
// positions: neither weight nor codes.
struct EmbeddingTable {
  const float* weight;
  const int8_t* codes;
  const float* scale;
};
struct EmbedArgs {
  EmbeddingTable word, position, token_type;
  int num_token_types;
  LayerNormWeights norm;
  const int32_t* input_ids;
  const int32_t* token_type_ids;  // nullptr: zeros
  const int32_t* position_ids;    // rows of the table
  float* out;
  int out_stride;
};

struct QuantizeArgs {
  const float* x;
  int x_stride;
  int width;
  const float* inv_smooth;  // [width] or nullptr
  CodeRows out;
};

// Weights in panels of `nr` output columns (the last padded with zeros); scale, colsum, bias padded to whole panels.
struct PackedLinearU8S8 {
  const int8_t* weight;  // [panels][ceil(inputs / 4)][nr][4]
  const float* w_scale;
  const int32_t* colsum;
  const float* bias;
  int inputs, outputs;
  int offset;  // added to every weight, padding too: 0, or the table's narrow_offset where all lie in +-63
};
struct PackedLinearF32 {
  const float* weight;  // [panels][inputs][nr]
  const float* bias;
  int inputs, outputs;
};
struct TileRange {
  int row_begin, row_end;
  int panel_begin, panel_end;
};

// out = epilogue((sum * w_scale) * a_scale + bias)
struct LinearU8S8Args {
  CodeRows in;
  PackedLinearU8S8 linear;
  Epilogue epilogue;
  float* out;
  int out_stride;
};
// out = epilogue(sum + bias)
struct LinearF32Args {
  const float* x;
  int x_stride;
  PackedLinearF32 linear;
  Epilogue epilogue;
  float* out;
  int out_stride;
};

// Turns the pairs (column j of a head's first half, column j of its second) of a row's queries and keys by its
// position: (a, b) = (a cos - b sin, b cos + a sin), one operation after another.
struct RotateArgs {
  float* qkv;  // rows [q | k | v]
  int qkv_stride;
  int num_heads, head_dim;
  const int32_t* positions;
  const float *cosines, *sines;  // [position][row_stride(head_dim / 2)]
};

// x[c] = activation(x[c]) * x[width + c]; with `quantize`, the codes of these too.
struct GateArgs {
  float* x;
  int x_stride;
  int width;
  Epilogue activation;
  bool quantize;
  const float* inv_smooth;
  CodeRows codes;
};

// context[i] = softmax(q_i K^T / sqrt(head_dim) + bias) V over the tokens of one sequence, for one head.
struct AttentionArgs {
  const float* qkv;  // rows [q | k | v], each attention_size wide
  int qkv_stride;
  int attention_size, head_dim;
  const int32_t* cu_seqlens;
  float* context;
  int context_stride;
  // Bias of the scores by distance, or nullptr: [heads][2 * max_distance + 1], of key i + d for query i at max_distance
  // + d; keys farther away have the last one on their side.
  const float* position_bias;
  int max_distance;
  int window;  // a token attends to so many on each side; 0: to all
  // Tables that make the bias instead, or nullptr: of query i and key i + d it is (q_i keys[r] + k queries[r]) /
  // sqrt(head_dim), r = position_rows[max_distance + d]. [heads][head_dim][position_stride], a column a row.
  const float *position_keys, *position_queries;
  const int32_t* position_rows;  // [2 * max_distance + 1], ascending
  int position_stride;
  // Of each sequence so many tokens, from the first on, are attended to; nullptr: all. Every window must hold one.
  const int32_t* num_keys;
};
// Columns of the tables that a sequence of `length` tokens needs, at most, where they have `num_rows`; whole vectors.
constexpr int position_span(int length, int num_rows) {
  const int all = round_up(num_rows, 16), reached = round_up(2 * length - 1, 16) + 16;
  return all < reached ? all : reached;
}
// Floats of scratch that either attention kernel needs for a sequence of `length` tokens.
constexpr int kAttentionRows = 32;   // at least the rows of any ISA's group of query tiles
constexpr int kAttentionPanel = 64;  // at least the keys of any ISA's panel
constexpr size_t attention_scratch(int length, int head_dim, int num_position_rows) {
  return (static_cast<size_t>(round_up(length, kAttentionPanel)) + 16) *
             (2 * round_up(head_dim, 16) + kAttentionRows + 4) +
         (static_cast<size_t>(length) + kAttentionRows) * position_span(length, num_position_rows);
}

// out = LayerNorm(x + residual); with `quantize`, its codes too. `residual` nullptr: none; `out` may be `residual`.
// `sum` keeps x + residual and may be `residual`, `out` is another then; nullptr: it is not kept.
struct AddLayerNormArgs {
  const float* x;
  int x_stride;
  const float* residual;
  int residual_stride;
  LayerNormWeights norm;
  float* sum;
  int sum_stride;
  float* out;
  int out_stride;
  bool quantize;
  const float* inv_smooth;
  CodeRows codes;
};

// How rows become one: format/encoder_spec.h's Pooling.
enum class Fold { kMean, kFirst, kMax, kMeanSqrtLen, kWeightedMean, kLast, kSum };

// One row a sequence; with `continues`, kMax and kSum go on from what `out` holds; with `normalize`, divided by max(L2
// norm, 1e-12). Beyond `width` nothing is written.
struct PoolArgs {
  const float* x;
  int x_stride;
  int width;
  const int32_t* cu_seqlens;
  Fold fold;
  bool continues;
  bool normalize;
  float* out;
  int out_stride;
};

// Rows that are computed together between two attentions. Each such block reads all weights of a layer, so with fewer
// rows the speed of the memory would be the limit.
constexpr int kBlockRows = 96;

struct KernelTable {
  const char* isa;
  int s8_nr;              // columns of a panel of linear_u8s8_f32
  int f32_nr;             // columns of a panel of linear_f32
  uint8_t code_flip;      // stored are codes xor this: 0x80 where they are read as s8, code - 128
  uint8_t narrow_offset;  // makes weights in +-63 numbers of 7 bits without a sign; 0: they are packed as they are
#define EB_KERNEL(name, arguments) void(*name) arguments;
#include "cpu/kernels.inc"
#undef EB_KERNEL
};

}  // namespace edgebert
