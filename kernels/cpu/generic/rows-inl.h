// Kernels over one row at a time: embed_layernorm, add_layernorm, quantize_rows, pool.
// Oracle: edgebert/backends/numpy_ops.py and edgebert/quant.py. Sums run over 16 lanes, columns ascending, then one
// tree.
#pragma once

namespace edgebert {
namespace EB_ISA {

// Calls body(column, lanes) for the whole vectors of a row and then for its tail.
template <class Body>
inline void for_vectors(int width, Body body) {
  int c = 0;
  for (; c + 16 <= width; c += 16) body(c, 16);
  if (c < width) body(c, width - c);
}

inline F32x16 load_lanes(const float* p, int lanes) { return lanes == 16 ? load(p) : load_n(p, lanes); }
inline F32x16 keep_lanes(F32x16 x, int lanes, float fill) { return lanes == 16 ? x : keep_n(x, lanes, fill); }

// The smallest and largest value of a row after smoothing, lane by lane.
struct RowRange {
  F32x16 lo, hi;
};
inline RowRange empty_range() { return {set1(-1e-12f), set1(0.0f)}; }
inline RowRange widen(RowRange range, F32x16 x) { return {min(range.lo, x), max(range.hi, x)}; }

// Codes of one row by the contract: two divisions, the product rounded, then the difference, no fused multiply-add.
inline void quantize_row(const float* x, int width, const float* inv_smooth, RowRange range, const CodeRows& out,
                         int row) {
  const float lo = reduce_min(range.lo), hi = reduce_max(range.hi);
  const float span = hi - lo;
  const float r = 255.0f / span;
  const F32x16 zn = round(set1(lo * r));
  float zn_lanes[16];
  store(zn_lanes, zn);
  out.a_scale[row] = span / 255.0f;
  out.neg_zero[row] = static_cast<int32_t>(zn_lanes[0]) + kCodeFlip;
  uint8_t* codes = out.codes + static_cast<size_t>(row) * out.stride;
  const F32x16 vr = set1(r);
  for_vectors(width, [&](int c, int lanes) {
    F32x16 v = load_lanes(x + c, lanes);
    if (inv_smooth) v = mul(v, load_lanes(inv_smooth + c, lanes));
    store_codes(codes + c, round(sub(mul(v, vr), zn)), kCodeFlip);
  });
}

inline void quantize_rows(const QuantizeArgs& args, int row_begin, int row_end) {
  for (int row = row_begin; row < row_end; ++row) {
    const float* x = args.x + static_cast<size_t>(row) * args.x_stride;
    RowRange range = empty_range();
    for_vectors(args.width, [&](int c, int lanes) {
      F32x16 v = load_lanes(x + c, lanes);
      if (args.inv_smooth) v = mul(v, load_lanes(args.inv_smooth + c, lanes));
      range = widen(range, v);  // lanes past the end are 0, which the range holds anyway up to -1e-12
    });
    quantize_row(x, args.width, args.inv_smooth, range, args.out, row);
  }
}

// LayerNorm of out[0 .. width) in place, given the lane sums of its values; with `codes`, quantizes the result.
inline void normalize_row(float* out, F32x16 sums, const LayerNormWeights& norm, const float* inv_smooth,
                          const CodeRows* codes, int row) {
  const float inv_width = 1.0f / static_cast<float>(norm.width);
  const F32x16 mean = set1(reduce_add(sums) * inv_width);
  F32x16 squares = set1(0.0f);
  for_vectors(norm.width, [&](int c, int lanes) {
    const F32x16 d = keep_lanes(sub(load(out + c), mean), lanes, 0.0f);
    squares = fma(d, d, squares);
  });
  const F32x16 rstd = set1(1.0f / __builtin_sqrtf(reduce_add(squares) * inv_width + norm.eps));
  RowRange range = empty_range();
  for_vectors(norm.width, [&](int c, int lanes) {
    const F32x16 d = mul(sub(load(out + c), mean), rstd);
    F32x16 y = fma(d, load_lanes(norm.weight + c, lanes), load_lanes(norm.bias + c, lanes));
    y = keep_lanes(y, lanes, 0.0f);
    store(out + c, y);
    if (codes) range = widen(range, inv_smooth ? mul(y, load_lanes(inv_smooth + c, lanes)) : y);
  });
  if (codes) quantize_row(out, norm.width, inv_smooth, range, *codes, row);
}

inline void add_layernorm(const AddLayerNormArgs& args, int row_begin, int row_end) {
  for (int row = row_begin; row < row_end; ++row) {
    const float* x = args.x + static_cast<size_t>(row) * args.x_stride;
    const float* residual = args.residual ? args.residual + static_cast<size_t>(row) * args.residual_stride : nullptr;
    float* out = args.out + static_cast<size_t>(row) * args.out_stride;
    F32x16 sums = set1(0.0f);
    for_vectors(args.norm.width, [&](int c, int lanes) {
      F32x16 v = load(x + c);
      if (residual) v = add(v, load(residual + c));
      v = keep_lanes(v, lanes, 0.0f);
      store(out + c, v);
      sums = add(sums, v);
    });
    normalize_row(out, sums, args.norm, args.inv_smooth, args.quantize ? &args.codes : nullptr, row);
  }
}

inline F32x16 table_lanes(const EmbeddingTable& table, int row, int width, int c, int lanes) {
  const size_t at = static_cast<size_t>(row) * width + c;
  if (table.weight) return load_lanes(table.weight + at, lanes);
  return mul(load_s8_n(table.codes + at, lanes), set1(table.scale[row]));
}

inline void embed_layernorm(const EmbedArgs& args, int row_begin, int row_end) {
  const int width = args.norm.width;
  for (int row = row_begin; row < row_end; ++row) {
    float* out = args.out + static_cast<size_t>(row) * args.out_stride;
    const int type = args.token_type_ids && args.num_token_types > 1 ? args.token_type_ids[row] : 0;
    F32x16 sums = set1(0.0f);
    for_vectors(width, [&](int c, int lanes) {
      F32x16 v = table_lanes(args.word, args.input_ids[row], width, c, lanes);
      if (args.num_token_types) v = add(v, table_lanes(args.token_type, type, width, c, lanes));
      v = add(v, table_lanes(args.position, args.position_offset + args.position_ids[row], width, c, lanes));
      store(out + c, v);
      sums = add(sums, v);
    });
    normalize_row(out, sums, args.norm, nullptr, nullptr, row);
  }
}

inline void pool(const PoolArgs& args, int sequence_begin, int sequence_end) {
  for (int s = sequence_begin; s < sequence_end; ++s) {
    const int first = args.cu_seqlens[s];
    const int count = args.is_mean ? args.cu_seqlens[s + 1] - first : 1;
    const F32x16 length = set1(static_cast<float>(count));
    float* out = args.out + static_cast<size_t>(s) * args.out_stride;
    F32x16 squares = set1(0.0f);
    for_vectors(args.width, [&](int c, int lanes) {
      const float* x = args.x + static_cast<size_t>(first) * args.x_stride + c;
      F32x16 v = load(x);
      for (int t = 1; t < count; ++t) v = add(v, load(x + static_cast<size_t>(t) * args.x_stride));
      v = keep_lanes(div(v, length), lanes, 0.0f);
      store(out + c, v);
      squares = fma(v, v, squares);
    });
    if (!args.normalize) continue;
    const F32x16 norm = max(set1(__builtin_sqrtf(reduce_add(squares))), set1(1e-12f));
    for_vectors(args.width, [&](int c, int) { store(out + c, div(load(out + c), norm)); });
  }
}

}  // namespace EB_ISA
}  // namespace edgebert
