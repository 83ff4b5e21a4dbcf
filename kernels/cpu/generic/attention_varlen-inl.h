// attention_varlen: softmax(Q K^T / sqrt(head_dim) + bias) V for one head of one sequence, straight from the packed qkv
// rows. Oracle: edgebert/backends/numpy_ops.py attention_varlen.
//
// K is transposed once into scratch; then for each tile of queries a whole row of scores fits the cache, so the softmax
// needs no rescaling. Every score and every output is one chain of fused multiply-adds, ascending. A bias by distance
// is laid out once for the sequence's length, so that each query's is a row of it.
#pragma once

#include "cpu/generic/linear-inl.h"
#include "cpu/generic/math-inl.h"
#include "cpu/generic/rows-inl.h"

namespace edgebert {
namespace EB_ISA {

// block = transpose of the 16 x 16 values at x, zeros beyond `rows` and `columns`.
inline void load_transposed(const float* x, int stride, int rows, int columns, F32x16* block) {
  for (int i = 0; i < 16; ++i)
    block[i] = i < rows ? load_lanes(x + static_cast<size_t>(i) * stride, min_of(16, columns)) : set1(0.0f);
  transpose_16x16(block);
}

// keys [head_dim][length padded to 16] = transpose of the length x head_dim block at k.
inline void transpose_keys(const float* k, int stride, int length, int head_dim, float* keys, int keys_stride) {
  for (int j = 0; j < length; j += 16)
    for (int d = 0; d < head_dim; d += 16) {
      F32x16 block[16];
      load_transposed(k + static_cast<size_t>(j) * stride + d, stride, length - j, head_dim - d, block);
      for (int i = 0; i < 16; ++i) store(keys + static_cast<size_t>(d + i) * keys_stride + j, block[i]);
    }
}

// A head's bias by distance for one sequence, in units of 2**x: row(i)[j] is that of query i and key j, for j up to
// `length` padded to 16. Linear in the length.
struct PositionBias {
  const float* zero = nullptr;  // of distance 0; nullptr: there is no bias

  PositionBias(const AttentionArgs& args, int head, int length, float* scratch) {
    if (!args.position_bias) return;
    const int farthest = args.max_distance;
    const float* bias = args.position_bias + static_cast<size_t>(head) * (2 * farthest + 1) + farthest;
    const int last = round_up(length, 16);
    for (int d = 1 - length; d < last; ++d)
      scratch[d + length - 1] = 1.44269504f * bias[d < -farthest ? -farthest : d > farthest ? farthest : d];
    zero = scratch + length - 1;
  }
  explicit operator bool() const { return zero != nullptr; }
  const float* row(int query) const { return zero - query; }
};

// scores[j] = scale2 * scores[j] + bias[j]
inline void add_bias_row(float* scores, int length, F32x16 scale2, const float* bias) {
  for (int j = 0; j < length; j += 16) store(scores + j, fma(load(scores + j), scale2, load(bias + j)));
}

// Replaces scores[0 .. length) by 2**(scale2 * (score - the largest score)); returns 1 / their sum.
inline float softmax_row(float* scores, int length, F32x16 scale2) {
  F32x16 top = set1(-3.0e38f);
  for_vectors(length, [&](int c, int lanes) { top = max(top, keep_lanes(load(scores + c), lanes, -3.0e38f)); });
  const F32x16 shift = mul(set1(-reduce_max(top)), scale2);
  F32x16 sums = set1(0.0f);
  int c = 0;
  for (; c + 16 * kMathWidth <= length; c += 16 * kMathWidth) {
    Wide<kMathWidth> p;
    for (int i = 0; i < kMathWidth; ++i) p.v[i] = fma(load(scores + c + 16 * i), scale2, shift);
    p = exp2(p);
    for (int i = 0; i < kMathWidth; ++i) {
      store(scores + c + 16 * i, p.v[i]);
      sums = add(sums, p.v[i]);
    }
  }
  for_vectors(length - c, [&](int rest, int lanes) {
    float* at = scores + c + rest;
    const F32x16 p = keep_lanes(exp2(Wide<1>{{fma(load(at), scale2, shift)}}).v[0], lanes, 0.0f);
    store(at, p);
    sums = add(sums, p);
  });
  return 1.0f / reduce_add(sums);
}

// scores[m][j] = q[m] k[j]: one tile of queries against all keys, at most kTileVectors vectors of keys at once.
template <int kRows>
inline void query_key_tile(const float* q, int stride, int head_dim, const float* keys, int keys_stride, int length,
                           float* scores) {
  for (int j = 0; j < length; j += 16 * kTileVectors) {
    with_rows<kTileVectors>(min_of((length - j + 15) / 16, kTileVectors), [&](auto tag) {
      fma_tile<kRows, decltype(tag)::value>(q, stride, keys + j, keys_stride, head_dim, NothingAhead(), scores + j,
                                            keys_stride);
    });
  }
}

// context[m][0 .. head_dim) = inv_sums[m] * sum over keys of scores[m][j] * v[j]
template <int kRows>
inline void score_value_tile(const float* scores, int scores_stride, const float* inv_sums, const float* v, int stride,
                             int length, int head_dim, float* context, int context_stride) {
  alignas(64) float tile[kRows * 16 * kTileVectors];
  for (int d = 0; d < head_dim; d += 16 * kTileVectors) {
    with_rows<kTileVectors>(min_of((head_dim - d + 15) / 16, kTileVectors), [&](auto tag) {
      constexpr int kVectors = decltype(tag)::value;
      fma_tile<kRows, kVectors>(scores, scores_stride, v + d, stride, length, NothingAhead(), tile, 16 * kVectors);
      for (int m = 0; m < kRows; ++m)
        for (int c = 0; c < kVectors; ++c) {
          const int at = d + c * 16, lanes = min_of(16, head_dim - at);
          const F32x16 y = mul(load(tile + (m * kVectors + c) * 16), set1(inv_sums[m]));
          float* out = context + static_cast<size_t>(m) * context_stride + at;
          lanes == 16 ? store(out, y) : store_n(out, y, lanes);
        }
    });
  }
}

inline void attention_varlen(const AttentionArgs& args, int sequence, int head, float* scratch) {
  const int first = args.cu_seqlens[sequence], length = args.cu_seqlens[sequence + 1] - first;
  const int head_dim = args.head_dim, stride = args.qkv_stride, padded = round_up(length, 16);
  const float* q = args.qkv + static_cast<size_t>(first) * stride + head * head_dim;
  const float* k = q + args.attention_size;
  const float* v = k + args.attention_size;
  float* context = args.context + static_cast<size_t>(first) * args.context_stride + head * head_dim;
  float* keys = scratch;
  float* scores = scratch + static_cast<size_t>(padded) * round_up(head_dim, 16);
  const PositionBias bias(args, head, length, scores + static_cast<size_t>(kTileRows) * padded);
  transpose_keys(k, stride, length, head_dim, keys, padded);
  const F32x16 scale2 = set1(1.44269504f / __builtin_sqrtf(static_cast<float>(head_dim)));  // log2(e) / sqrt(d)
  for (int i = 0; i < length; i += kTileRows) {
    with_rows<kTileRows>(min_of(length - i, kTileRows), [&](auto tag) {
      constexpr int kRows = decltype(tag)::value;
      float inv_sums[kRows];
      query_key_tile<kRows>(q + static_cast<size_t>(i) * stride, stride, head_dim, keys, padded, length, scores);
      for (int m = 0; m < kRows; ++m) {
        float* const row = scores + static_cast<size_t>(m) * padded;
        if (bias) add_bias_row(row, length, scale2, bias.row(i + m));
        inv_sums[m] = softmax_row(row, length, bias ? set1(1.0f) : scale2);
      }
      score_value_tile<kRows>(scores, padded, inv_sums, v, stride, length, head_dim,
                              context + static_cast<size_t>(i) * args.context_stride, args.context_stride);
    });
  }
}

}  // namespace EB_ISA
}  // namespace edgebert
