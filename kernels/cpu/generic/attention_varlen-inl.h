// attention_varlen: softmax(Q K^T / sqrt(head_dim) + bias) V for one head of one sequence, straight from the packed qkv
// rows. Oracle: edgebert/backends/numpy_ops.py attention_varlen.
//
// K is transposed once into panels in scratch, and V copied beside it where many queries read it; then a group of query
// tiles goes over them together. Of a query whole rows of scores are kept, so the softmax needs no rescaling. Every
// score and every output is one chain of fused multiply-adds, ascending: neither depends on the group, nor on the keys
// outside the query's window that its tile may compute, whose weight is 0. A bias by distance is laid out once for the
// sequence's length, so that each query's is a row of it; one from tables is gathered for each query from the products
// of queries and keys with the tables' rows, each of them a chain too.
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

// Keys of a panel: what a tile computes at once.
constexpr int kPanelKeys = 16 * kTileVectors;
static_assert(kPanelKeys <= kAttentionPanel, "attention_scratch() is too small for a panel");

// keys [panels][head_dim][kPanelKeys] = transpose of the length x head_dim block at k; head_dim padded to 16.
inline void transpose_keys(const float* k, int stride, int length, int head_dim, float* keys) {
  const int padded_dim = round_up(head_dim, 16);
  for (int j = 0; j < length; j += 16) {
    float* panel = keys + static_cast<size_t>(j / kPanelKeys) * padded_dim * kPanelKeys + j % kPanelKeys;
    for (int d = 0; d < head_dim; d += 16) {
      F32x16 block[16];
      load_transposed(k + static_cast<size_t>(j) * stride + d, stride, length - j, head_dim - d, block);
      for (int i = 0; i < 16; ++i) store(panel + (d + i) * kPanelKeys, block[i]);
    }
  }
}

// Calls run(first, Rows<n>()) for the tiles of `rows` rows.
template <class Run>
inline void for_tiles(int rows, Run run) {
  for (int t = 0; t < rows; t += kTileRows)
    with_rows<kTileRows>(min_of(kTileRows, rows - t), [&](auto tag) { run(t, tag); });
}

// log2(e) / sqrt(head_dim): what makes a product of a query and a key a score in units of 2**x.
inline float scale2_of(int head_dim) { return 1.44269504f / __builtin_sqrtf(static_cast<float>(head_dim)); }

// A head's bias by distance for one sequence, in units of 2**x. Linear in the length.
class PositionBias {
 public:
  // `q`: the sequence's first query of this head.
  PositionBias(const AttentionArgs& args, const float* q, int head, int length, float* scratch)
      : args_(args), q_(q), length_(length) {
    const int farthest = args.max_distance;
    if (args.position_bias) {
      const float* bias = args.position_bias + static_cast<size_t>(head) * (2 * farthest + 1) + farthest;
      const int last = round_up(length, 16);
      for (int d = 1 - length; d < last; ++d)
        scratch[d + length - 1] = 1.44269504f * bias[d < -farthest ? -farthest : d > farthest ? farthest : d];
      zero_ = scratch + length - 1;
    } else if (args.position_keys) {
      reach_ = min_of(length - 1, farthest);
      rows_ = args.position_rows + farthest;
      first_ = rows_[-reach_] / 16 * 16;
      span_ = round_up(rows_[reach_] + 1 - first_, 16);
      const size_t table = static_cast<size_t>(head) * args.head_dim * args.position_stride + first_;
      keys_ = args.position_keys + table;
      of_key_ = scratch;
      of_query_ = of_key_ + static_cast<size_t>(length) * span_;
      row_ = of_query_ + static_cast<size_t>(kAttentionRows) * span_;
      multiply(q + args.attention_size, length, args.position_queries + table, of_key_);
    }
  }
  explicit operator bool() const { return zero_ || row_; }

  // Makes ready the rows of queries [query, query + rows), at most kAttentionRows.
  void prepare(int query, int rows) {
    if (row_) multiply(q_ + static_cast<size_t>(query) * args_.qkv_stride, rows, keys_, of_query_);
    prepared_ = query;
  }

  // What is at j is the bias of that query and key j, from `begin` to `end` padded to 16, where it is finite beyond the
  // length. Valid until the next row.
  const float* row(int query, int begin, int end) const {
    if (zero_) return zero_ - query;
    const float* const of_query = of_query_ + static_cast<size_t>(query - prepared_) * span_ - first_;
    const float* of_key = of_key_ + static_cast<size_t>(begin) * span_ - first_;
    const float scale2 = scale2_of(args_.head_dim);
    const int last = min_of(end, length_);
    for (int j = begin; j < last; ++j, of_key += span_) {
      const int d = j - query, r = rows_[d < -reach_ ? -reach_ : d > reach_ ? reach_ : d];
      row_[j] = scale2 * (of_query[r] + of_key[r]);
    }
    for (int j = last; j < round_up(end, 16); ++j) row_[j] = 0.0f;
    return row_;
  }

 private:
  // products [count][span] = x times the columns of a head's table from `first_` on.
  void multiply(const float* x, int count, const float* table, float* products) const {
    for (int c = 0, vectors; c < span_; c += 16 * vectors) {
      vectors = min_of(kTileVectors, (span_ - c) / 16);
      with_rows<kTileVectors>(vectors, [&](auto columns) {
        for_tiles(count, [&](int t, auto tile_rows) {
          fma_tile<decltype(tile_rows)::value, decltype(columns)::value>(
              x + static_cast<size_t>(t) * args_.qkv_stride, args_.qkv_stride, table + c, args_.position_stride,
              args_.head_dim, NothingAhead(), products + static_cast<size_t>(t) * span_ + c, span_);
        });
      });
    }
  }

  const AttentionArgs& args_;
  const float* q_;
  int length_;
  const float* zero_ = nullptr;  // of distance 0, where the bias is a number for each distance
  // Where it is from tables: the columns [first, first + span) of these are those that the sequence reaches.
  int reach_ = 0, first_ = 0, span_ = 0, prepared_ = 0;
  const int32_t* rows_ = nullptr;  // of distance 0
  const float* keys_ = nullptr;
  float *of_key_ = nullptr, *of_query_ = nullptr;  // [length][span], [kAttentionRows][span]: products
  float* row_ = nullptr;
};

// scores[j] = scale2 * scores[j] + bias[j]
inline void add_bias_row(float* scores, int length, F32x16 scale2, const float* bias) {
  for (int j = 0; j < length; j += 16) store(scores + j, fma(load(scores + j), scale2, load(bias + j)));
}

// The keys that rows [row, row + rows) attend to, all of them or `window` on each side of a row.
struct KeyRange {
  int begin, end;

  KeyRange(int row, int rows, int length, int window)
      : begin(window && row > window ? row - window : 0),
        end(window && row + rows + window < length ? row + rows + window : length) {}
};

// Replaces scores[first .. length) by 2**(scale2 * (score - the largest score)); returns 1 / their sum. first < 16; the
// scores before it become 0, and count for 2**-126 each in a sum of at least 1.
inline float softmax_row(float* scores, int first, int length, F32x16 scale2) {
  for (int j = 0; j < first; ++j) scores[j] = -3.0e38f;
  F32x16 top = set1(-3.0e38f);
  for_vectors(length, [&](int c, int lanes) { top = max(top, keep_lanes(load(scores + c), lanes, -3.0e38f)); });
  const F32x16 shift = mul(set1(-reduce_max(top)), scale2);
  F32x16 sums = set1(0.0f);
  int c = 0;
  for (; kMathWidth > 1 && c + 16 * kMathWidth <= length; c += 16 * kMathWidth) {
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
  for (int j = 0; j < first; ++j) scores[j] = 0.0f;
  return 1.0f / reduce_add(sums);
}

// One head of one sequence.
struct HeadAttention {
  static constexpr int kGroupRows = 4 * kTileRows;  // that read keys and values from the outer caches together
  static_assert(kGroupRows <= kAttentionRows, "attention_scratch() is too small for a group");
  static constexpr int kBlockKeys = 256;   // of values that stay in the inner cache while a group reads them
  static constexpr int kFewKeys = 2 * 64;  // values of so many are read where they are

  int length, head_dim, padded_dim, stride;
  const float* q;
  float* keys;
  const float* values;
  int value_stride;
  float* scores;  // [kGroupRows][score_stride], from the first key on that the group attends to
  int score_stride;
  alignas(64) float sums[kGroupRows * kPanelKeys];

  HeadAttention(const AttentionArgs& args, int first, int length, int head, float* scratch)
      : length(length),
        head_dim(args.head_dim),
        padded_dim(round_up(head_dim, 16)),
        stride(args.qkv_stride),
        q(args.qkv + static_cast<size_t>(first) * stride + head * head_dim),
        keys(scratch),
        values(q + 2 * args.attention_size),
        value_stride(stride),
        score_stride(round_up(length, 16)) {
    transpose_keys(q + args.attention_size, stride, length, head_dim, keys);
    scratch += static_cast<size_t>(round_up(length, kPanelKeys)) * padded_dim;
    if (length > kFewKeys) {
      for (int j = 0; j < length; ++j)
        for_vectors(head_dim, [&](int c, int lanes) {
          const F32x16 v = load_lanes(values + static_cast<size_t>(j) * stride + c, lanes);
          store(scratch + static_cast<size_t>(j) * padded_dim + c, v);
        });
      values = scratch;
      value_stride = padded_dim;
      scratch += static_cast<size_t>(length) * padded_dim;
    }
    scores = scratch;
  }

  // scores[m][j - begin] = q[row + m] k[j], for the keys from `begin`, a multiple of 16, to the vector of the last.
  void multiply_keys(int row, int rows, int begin, int end) {
    for (int j = begin, vectors; j < end; j += 16 * vectors) {
      const int in_panel = j % kPanelKeys;
      vectors = min_of((kPanelKeys - in_panel) / 16, (end - j + 15) / 16);
      const float* panel = keys + static_cast<size_t>(j - in_panel) * padded_dim + in_panel;
      with_rows<kTileVectors>(vectors, [&](auto columns) {
        for_tiles(rows, [&](int t, auto tile_rows) {
          fma_tile<decltype(tile_rows)::value, decltype(columns)::value>(
              q + static_cast<size_t>(row + t) * stride, stride, panel, kPanelKeys, head_dim, NothingAhead(),
              scores + static_cast<size_t>(t) * score_stride + (j - begin), score_stride);
        });
      });
    }
  }

  // The softmax of one row of scores, over the keys of its window; others of the group's weigh 0. `bias` is that of the
  // first key, or nullptr.
  float softmax(int m, int begin, int end, const KeyRange& range, F32x16 scale2, const float* bias) {
    float* row = scores + static_cast<size_t>(m) * score_stride;
    const int skipped = (range.begin - begin) / 16 * 16;  // whole vectors, so that a lane's place is the key's own
    const int last = round_up(range.end - begin, 16);
    for (int j = 0; j < skipped; j += 16) store(row + j, set1(0.0f));
    for (int j = last; j < end - begin; j += 16) store(row + j, set1(0.0f));
    if (bias) {
      add_bias_row(row + skipped, range.end - begin - skipped, scale2, bias + begin + skipped);
      scale2 = set1(1.0f);
    }
    return softmax_row(row + skipped, range.begin - begin - skipped, range.end - begin - skipped, scale2);
  }

  // context[m] = inv_sums[m] * sum over the keys of scores[m][j - begin] * v[j]
  void multiply_values(int rows, int begin, int end, const float* inv_sums, float* context, int context_stride) {
    for (int d = 0; d < head_dim; d += kPanelKeys) {
      with_rows<kTileVectors>(min_of((head_dim - d + 15) / 16, kTileVectors), [&](auto columns) {
        constexpr int kVectors = decltype(columns)::value;
        for (int j = begin; j < end; j += kBlockKeys) {
          for_tiles(rows, [&](int t, auto tile_rows) {
            fma_tile<decltype(tile_rows)::value, kVectors>(
                scores + static_cast<size_t>(t) * score_stride + (j - begin), score_stride,
                values + static_cast<size_t>(j) * value_stride + d, value_stride, min_of(kBlockKeys, end - j),
                NothingAhead(), sums + t * 16 * kVectors, 16 * kVectors, j > begin);
          });
        }
        for (int m = 0; m < rows; ++m)
          for (int c = 0; c < kVectors; ++c) {
            const int at = d + c * 16, lanes = min_of(16, head_dim - at);
            const F32x16 y = mul(load(sums + (m * kVectors + c) * 16), set1(inv_sums[m]));
            float* out = context + static_cast<size_t>(m) * context_stride + at;
            lanes == 16 ? store(out, y) : store_n(out, y, lanes);
          }
      });
    }
  }
};

inline void attention_varlen(const AttentionArgs& args, int sequence, int head, float* scratch) {
  const int first = args.cu_seqlens[sequence], length = args.cu_seqlens[sequence + 1] - first;
  const int num_keys = args.num_keys ? args.num_keys[sequence] : length;
  HeadAttention attention(args, first, num_keys, head, scratch);
  PositionBias bias(args, attention.q, head, length,
                    attention.scores + static_cast<size_t>(HeadAttention::kGroupRows) * attention.score_stride);
  float* context = args.context + static_cast<size_t>(first) * args.context_stride + head * args.head_dim;
  const F32x16 scale2 = set1(scale2_of(args.head_dim));
  // with a window, a group of more rows would compute more keys for each
  const int group_rows = args.window ? kTileRows : HeadAttention::kGroupRows;
  for (int i = 0, rows; i < length; i += rows) {
    rows = min_of(group_rows, length - i);
    const KeyRange keys(i, rows, num_keys, args.window);
    const int begin = keys.begin / 16 * 16;
    float inv_sums[HeadAttention::kGroupRows];
    attention.multiply_keys(i, rows, begin, keys.end);
    if (bias) bias.prepare(i, rows);
    for (int m = 0; m < rows; ++m)
      inv_sums[m] = attention.softmax(m, begin, keys.end, KeyRange(i + m, 1, num_keys, args.window), scale2,
                                      bias ? bias.row(i + m, begin, keys.end) : nullptr);
    attention.multiply_values(rows, begin, keys.end, inv_sums, context + static_cast<size_t>(i) * args.context_stride,
                              args.context_stride);
  }
}

}  // namespace EB_ISA
}  // namespace edgebert
