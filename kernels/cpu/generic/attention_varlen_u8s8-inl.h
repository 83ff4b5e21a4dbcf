// attention_varlen_u8s8: attention of one head of one sequence with both products in int8 (attention_dtype "s8").
// Oracle: edgebert/quant.py attention_u8s8_f32, which states the rounding.
//
// K is quantized by key and V by column, over the sequence alone, so a text's result does not depend on its batch. An
// ISA whose codes are stored less 128 (kCodeFlip) starts its sums where that makes them equal. Keys outside a query's
// window, which its tile may compute, get the code 0.
#pragma once

#include "cpu/generic/attention_varlen-inl.h"
#include "cpu/generic/linear-inl.h"
#include "cpu/generic/math-inl.h"
#include "cpu/generic/rows-inl.h"

namespace edgebert {
namespace EB_ISA {

inline float largest_magnitude(const float* x, int width) {
  F32x16 top = set1(1e-12f);
  for_vectors(width, [&](int c, int lanes) { top = max(top, abs(load_lanes(x + c, lanes))); });
  return reduce_max(top);
}

// Scratch of one sequence and head; `length` padded to 16, head_dim to 16. Keys of the padding have a score of -3e38.
struct PackedKeysValues {
  int length, head_dim, padded, padded_dim;
  float *key_scale, *value_scale;  // [padded], [padded_dim]
  int32_t* key_start;              // where the sums of a key start
  int32_t* value_start;            // [padded / 16 + 1][padded_dim]: where a column's would with the keys before alone
  int8_t* keys;                    // [panels][padded_dim / 4][kPanelKeys][4]
  int8_t* values;                  // [padded / 4][padded_dim][4]
  uint8_t* query_codes;            // [kTileRows][padded_dim]
  float* scores;  // [kTileRows][padded], from the first key of a tile on; then each row's codes, at its beginning
  float* position_bias;  // that of PositionBias

  PackedKeysValues(int length, int head_dim, float* scratch)
      : length(length), head_dim(head_dim), padded(round_up(length, 16)), padded_dim(round_up(head_dim, 16)) {
    const auto take = [&scratch](size_t floats) {
      float* at = scratch;
      scratch += floats;
      return at;
    };
    const size_t product = static_cast<size_t>(padded) * padded_dim / 4;
    key_scale = take(padded);
    value_scale = take(padded_dim);
    key_start = reinterpret_cast<int32_t*>(take(padded));
    value_start = reinterpret_cast<int32_t*>(take(static_cast<size_t>(padded / 16 + 1) * padded_dim));
    keys = reinterpret_cast<int8_t*>(take(static_cast<size_t>(round_up(length, kPanelKeys)) * padded_dim / 4));
    values = reinterpret_cast<int8_t*>(take(product));
    query_codes = reinterpret_cast<uint8_t*>(take(kTileRows * padded_dim / 4));
    scores = take(static_cast<size_t>(kTileRows) * padded);
    position_bias = scratch;
  }

  // Where the panel of key j begins, in units of kPanelKeys bytes.
  size_t panel_at(int j) const { return static_cast<size_t>(j / kPanelKeys) * padded_dim; }

  void pack_keys(const float* k, int stride) {
    for (int j = 0; j < padded; j += 16) {
      float top[16];
      for (int i = 0; i < 16; ++i)
        top[i] = j + i < length ? largest_magnitude(k + static_cast<size_t>(j + i) * stride, head_dim) : 1.0f;
      const int keys_here = min_of(16, length - j);
      store(key_scale + j, keep_lanes(div(load(top), set1(127.0f)), keys_here, 3.0e38f));
      const F32x16 r = div(set1(127.0f), load(top));
      F32x16 sums = set1(0.0f);
      for (int d = 0; d < head_dim; d += 16) {
        F32x16 block[16];
        load_transposed(k + static_cast<size_t>(j) * stride + d, stride, length - j, head_dim - d, block);
        for (int i = 0; i < 16; ++i) {
          block[i] = round(mul(block[i], r));
          sums = add(sums, block[i]);
        }
        for (int i = 0; i < 16; i += 4)
          store_i32(reinterpret_cast<int32_t*>(keys) + (panel_at(j) + static_cast<size_t>(d + i)) / 4 * kPanelKeys +
                        j % kPanelKeys,
                    combine_s8(block[i], block[i + 1], block[i + 2], block[i + 3]));
      }
      const F32x16 start = kCodeFlip ? set1(0.0f) : mul(sums, set1(-128.0f));
      store_i32(key_start + j, to_i32(keep_lanes(start, keys_here, -1.0f)));
    }
  }

  void pack_values(const float* v, int stride) {
    for (int d = 0; d < head_dim; d += 16) {
      const int lanes = min_of(16, head_dim - d);
      const auto row = [&](int j) {
        return j < length ? load_lanes(v + static_cast<size_t>(j) * stride + d, lanes) : set1(0.0f);
      };
      F32x16 top = set1(1e-12f);
      for (int j = 0; j < length; ++j) top = max(top, abs(row(j)));
      store(value_scale + d, div(top, set1(127.0f)));
      const F32x16 r = div(set1(127.0f), top);
      F32x16 sums = set1(0.0f);
      const auto keep_start = [&](int j) {
        store_i32(value_start + static_cast<size_t>(j) / 16 * padded_dim + d,
                  kCodeFlip ? to_i32(mul(sums, set1(128.0f))) : zero_i32());
      };
      for (int j = 0; j < padded; j += 4) {
        if (j % 16 == 0) keep_start(j);
        F32x16 codes[4];
        for (int i = 0; i < 4; ++i) {
          codes[i] = round(mul(row(j + i), r));
          sums = add(sums, codes[i]);
        }
        store_i32(reinterpret_cast<int32_t*>(values) + static_cast<size_t>(j) / 4 * padded_dim + d,
                  combine_s8(codes[0], codes[1], codes[2], codes[3]));
      }
      keep_start(padded);
    }
  }

  // Codes of one query, 128 added; returns its scale.
  float quantize_query(const float* q, uint8_t* codes) const {
    const float top = largest_magnitude(q, head_dim);
    const F32x16 r = set1(127.0f / top);
    for_vectors(head_dim, [&](int c, int lanes) {
      store_codes(codes + c, add(round(mul(load_lanes(q + c, lanes), r)), set1(128.0f)), kCodeFlip);
    });
    return top / 127.0f;
  }

  // scores[m][j - begin] = (sum of codes) * key_scale[j]; top[m] is the largest of row m. begin, end: multiples of 16.
  template <int kRows>
  void multiply_keys(int begin, int end, float* top) const {
    alignas(64) int32_t tile[kRows * 16 * kTileVectors];
    F32x16 tops[kRows];
    for (F32x16& t : tops) t = set1(-3.0e38f);
    for (int j = begin, vectors; j < end; j += 16 * vectors) {
      const int in_panel = j % kPanelKeys;
      vectors = min_of((kPanelKeys - in_panel) / 16, (end - j) / 16);
      with_rows<kTileVectors>(vectors, [&](auto tag) {
        dot_tile<kRows, decltype(tag)::value>(query_codes, padded_dim, keys + panel_at(j) * kPanelKeys + 4 * in_panel,
                                              4 * kPanelKeys, (head_dim + 3) / 4, key_start + j, NothingAhead(), tile);
      });
      for (int v = 0; v < vectors; ++v) {
        const F32x16 scale = load(key_scale + j + 16 * v);
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) {
          const F32x16 s = mul(to_f32(load_i32(tile + (m * vectors + v) * 16)), scale);
          store(scores + static_cast<size_t>(m) * padded + (j - begin) + 16 * v, s);
          tops[m] = max(tops[m], s);
        }
      }
    }
    for (int m = 0; m < kRows; ++m) top[m] = reduce_max(tops[m]);
  }

  // The scores with their bias, in units of 2**x: row_scale2 becomes 1, and top[m] the largest of row m once more.
  void add_bias(int rows, const PositionBias& bias, int first_query, int begin, int end, float* row_scale2,
                float* top) const {
    for (int m = 0; m < rows; ++m) {
      float* const row = scores + static_cast<size_t>(m) * padded;
      add_bias_row(row, end - begin, set1(row_scale2[m]), bias.row(first_query + m, begin, end) + begin);
      F32x16 tops = set1(-3.0e38f);
      for (int j = 0; j < end - begin; j += 16) tops = max(tops, load(row + j));
      top[m] = reduce_max(tops);
      row_scale2[m] = 1.0f;
    }
  }

  // Leaves of a row's scores, from `begin` to `end`, those of its keys; returns the largest.
  float keep_keys(int m, int begin, int end, const KeyRange& range) const {
    float* row = scores + static_cast<size_t>(m) * padded;
    for (int j = begin; j < range.begin; ++j) row[j - begin] = -3.0e38f;
    for (int j = range.end; j < end; ++j) row[j - begin] = -3.0e38f;
    F32x16 top = set1(-3.0e38f);
    for (int j = 0; j < end - begin; j += 16) top = max(top, load(row + j));
    return reduce_max(top);
  }

  // Codes of `count` scores a row: round(255 * 2**(scale2[m] * (score - top[m]))); inv_sums[m] = 1 / their sum. Rows go
  // in groups of kMathWidth; where fewer are left, the last of them repeats.
  void softmax_codes(int rows, int count, const float* top, const float* scale2, float* inv_sums) const {
    for (int first = 0; first < rows; first += kMathWidth) {
      float* row[kMathWidth];
      F32x16 scale[kMathWidth], shift[kMathWidth];
      I32x16 sums[kMathWidth];
      for (int i = 0; i < kMathWidth; ++i) {
        const int m = min_of(first + i, rows - 1);
        row[i] = scores + static_cast<size_t>(m) * padded;
        scale[i] = set1(scale2[m]);
        shift[i] = set1(7.99435344f - top[m] * scale2[m]);  // log2(255)
        sums[i] = zero_i32();
      }
      for (int j = 0; j < count; j += 16) {
        Wide<kMathWidth> p;
        for (int i = 0; i < kMathWidth; ++i) p.v[i] = fma(load(row[i] + j), scale[i], shift[i]);
        p = exp2(p);
        for (int i = 0; i < kMathWidth; ++i) {
          store_codes(reinterpret_cast<uint8_t*>(row[i]) + j, p.v[i], kCodeFlip);
          sums[i] = add_i32(sums[i], to_i32(p.v[i]));
        }
      }
      for (int i = 0; i < kMathWidth; ++i) inv_sums[min_of(first + i, rows - 1)] = 1.0f / reduce_add(to_f32(sums[i]));
    }
  }

  // context[m] = inv_sums[m] * (sum over the keys from `begin` to `end` of codes * values) * value_scale
  template <int kRows>
  void multiply_values(int begin, int end, const float* inv_sums, float* context, int context_stride) const {
    alignas(64) int32_t tile[kRows * 16 * kTileVectors], start[16 * kTileVectors];
    const int32_t* const before = value_start + static_cast<size_t>(begin) / 16 * padded_dim;
    const int32_t* const after = value_start + static_cast<size_t>(end) / 16 * padded_dim;
    for (int d = 0; d < head_dim; d += 16 * kTileVectors) {
      const int vectors = min_of((head_dim - d + 15) / 16, kTileVectors);
      for (int v = 0; v < vectors; ++v) {
        const int at = d + 16 * v;
        store_i32(start + 16 * v, add_i32(load_i32(after + at), mul_i32(load_i32(before + at), set1_i32(-1))));
      }
      with_rows<kTileVectors>(vectors, [&](auto tag) {
        dot_tile<kRows, decltype(tag)::value>(
            reinterpret_cast<uint8_t*>(scores), 4 * padded, values + static_cast<size_t>(begin) * padded_dim + 4 * d,
            4 * static_cast<size_t>(padded_dim), (min_of(end, length) - begin + 3) / 4, start, NothingAhead(), tile);
      });
      for (int v = 0; v < vectors; ++v) {
        const int at = d + 16 * v, lanes = min_of(16, head_dim - at);
        const F32x16 scale = load(value_scale + at);
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) {
          const F32x16 y = mul(mul(to_f32(load_i32(tile + (m * vectors + v) * 16)), scale), set1(inv_sums[m]));
          float* out = context + static_cast<size_t>(m) * context_stride + at;
          lanes == 16 ? store(out, y) : store_n(out, y, lanes);
        }
      }
    }
  }
};

inline void attention_varlen_u8s8(const AttentionArgs& args, int sequence, int head, float* scratch) {
  const int first = args.cu_seqlens[sequence], length = args.cu_seqlens[sequence + 1] - first;
  const int head_dim = args.head_dim, stride = args.qkv_stride;
  const float* q = args.qkv + static_cast<size_t>(first) * stride + head * head_dim;
  float* context = args.context + static_cast<size_t>(first) * args.context_stride + head * head_dim;
  const int num_keys = args.num_keys ? args.num_keys[sequence] : length;
  PackedKeysValues packed(num_keys, head_dim, scratch);
  packed.pack_keys(q + args.attention_size, stride);
  packed.pack_values(q + 2 * args.attention_size, stride);
  PositionBias bias(args, q, head, length, packed.position_bias);
  const float scale2 = scale2_of(head_dim);
  for (int i = 0, rows; i < length; i += rows) {
    rows = min_of(kTileRows, length - i);
    const KeyRange keys(i, rows, num_keys, args.window);
    const int begin = keys.begin / 16 * 16, end = round_up(keys.end, 16);
    float row_scale2[kTileRows], top[kTileRows], inv_sums[kTileRows];
    for (int m = 0; m < rows; ++m)
      row_scale2[m] = scale2 * packed.quantize_query(q + static_cast<size_t>(i + m) * stride,
                                                     packed.query_codes + static_cast<size_t>(m) * packed.padded_dim);
    with_rows<kTileRows>(rows, [&](auto tag) { packed.multiply_keys<decltype(tag)::value>(begin, end, top); });
    if (bias) {
      bias.prepare(i, rows);
      packed.add_bias(rows, bias, i, begin, end, row_scale2, top);
    }
    for (int m = 0; m < rows && args.window; ++m)
      top[m] = packed.keep_keys(m, begin, end, KeyRange(i + m, 1, num_keys, args.window));
    packed.softmax_codes(rows, end - begin, top, row_scale2, inv_sums);
    with_rows<kTileRows>(rows, [&](auto tag) {
      packed.multiply_values<decltype(tag)::value>(
          begin, end, inv_sums, context + static_cast<size_t>(i) * args.context_stride, args.context_stride);
    });
  }
}

}  // namespace EB_ISA
}  // namespace edgebert
