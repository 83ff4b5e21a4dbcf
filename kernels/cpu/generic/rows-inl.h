// Kernels over rows: embed_layernorm, add_layernorm, quantize_rows, rotate, gate, pool.
// Oracle: edgebert/backends/numpy_ops.py and edgebert/quant.py. Sums run over 16 lanes, columns ascending, then one
// tree.
#pragma once

#include "cpu/generic/linear-inl.h"

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

// Rows that a kernel works on side by side, so that none waits for another's final sum.
constexpr int kRowsAtOnce = 4;

// Calls run(row, Rows<n>()) for groups of kRowsAtOnce rows, then for single ones.
template <class Run>
inline void for_rows(int row_begin, int row_end, Run run) {
  int row = row_begin;
  for (; row + kRowsAtOnce <= row_end; row += kRowsAtOnce) run(row, Rows<kRowsAtOnce>());
  for (; row < row_end; ++row) run(row, Rows<1>());
}

// Codes of rows by the contract: two divisions, the product rounded, then the difference, no fused multiply-add.
template <int kRows>
inline void quantize_group(const float* x, int stride, int width, const float* inv_smooth, const RowRange* ranges,
                           const CodeRows& out, int row) {
#if defined(EB_IS_BASE)
  const uint8_t flip = out.flip;  // of the ISA whose codes these are
#else
  constexpr uint8_t flip = kCodeFlip;
#endif
  F32x16 vr[kRows], zn[kRows];
  for (int i = 0; i < kRows; ++i) {
    const float lo = reduce_min(ranges[i].lo), hi = reduce_max(ranges[i].hi), span = hi - lo, r = 255.0f / span;
    vr[i] = set1(r);
    zn[i] = round(set1(lo * r));
    float zn_lanes[16];
    store(zn_lanes, zn[i]);
    out.a_scale[row + i] = span / 255.0f;
    out.neg_zero[row + i] = static_cast<int32_t>(zn_lanes[0]) + flip;
  }
  uint8_t* const codes = out.codes + static_cast<size_t>(row) * out.stride;
  const int codes_stride = out.stride;  // in locals, since to the compiler a stored code could change `out`
  for_vectors(width, [&](int c, int lanes) {
    const F32x16 smooth = inv_smooth ? load_lanes(inv_smooth + c, lanes) : set1(1.0f);
    for (int i = 0; i < kRows; ++i) {
      F32x16 v = load_lanes(x + static_cast<size_t>(i) * stride + c, lanes);
      if (inv_smooth) v = mul(v, smooth);
      store_codes(codes + static_cast<size_t>(i) * codes_stride + c, sub(mul(v, vr[i]), zn[i]), flip);
    }
  });
}

inline void quantize_rows(const QuantizeArgs& args, int row_begin, int row_end) {
  for_rows(row_begin, row_end, [&](int row, auto rows) {
    constexpr int kRows = decltype(rows)::value;
    const float* x = args.x + static_cast<size_t>(row) * args.x_stride;
    RowRange ranges[kRows];
    for (RowRange& range : ranges) range = empty_range();
    for_vectors(args.width, [&](int c, int lanes) {
      const F32x16 smooth = args.inv_smooth ? load_lanes(args.inv_smooth + c, lanes) : set1(1.0f);
      for (int i = 0; i < kRows; ++i) {
        F32x16 v = load_lanes(x + static_cast<size_t>(i) * args.x_stride + c, lanes);
        if (args.inv_smooth) v = mul(v, smooth);
        ranges[i] = widen(ranges[i], v);  // lanes past the end are 0, which the range holds anyway up to -1e-12
      }
    });
    quantize_group<kRows>(x, args.x_stride, args.width, args.inv_smooth, ranges, args.out, row);
  });
}

// LayerNorm of rows out[i][0 .. width) in place, given the lane sums of each; with `codes`, quantizes the result.
template <int kRows>
inline void normalize_group(float* out, int stride, const F32x16* sums, const LayerNormWeights& norm,
                            const float* inv_smooth, const CodeRows* codes, int row) {
  const float inv_width = 1.0f / static_cast<float>(norm.width);
  const auto at = [&](int i, int c) { return out + static_cast<size_t>(i) * stride + c; };
  F32x16 mean[kRows], squares[kRows], rstd[kRows];
  RowRange ranges[kRows];
  for (int i = 0; i < kRows; ++i) {
    mean[i] = set1(reduce_add(sums[i]) * inv_width);
    squares[i] = set1(0.0f);
    ranges[i] = empty_range();
  }
  for_vectors(norm.width, [&](int c, int lanes) {
    for (int i = 0; i < kRows; ++i) {
      const F32x16 d = keep_lanes(sub(load(at(i, c)), mean[i]), lanes, 0.0f);
      squares[i] = fma(d, d, squares[i]);
    }
  });
  for (int i = 0; i < kRows; ++i) rstd[i] = set1(1.0f / __builtin_sqrtf(reduce_add(squares[i]) * inv_width + norm.eps));
  for_vectors(norm.width, [&](int c, int lanes) {
    const F32x16 weight = load_lanes(norm.weight + c, lanes), bias = load_lanes(norm.bias + c, lanes);
    const F32x16 smooth = inv_smooth ? load_lanes(inv_smooth + c, lanes) : set1(1.0f);
    for (int i = 0; i < kRows; ++i) {
      F32x16 y = fma(mul(sub(load(at(i, c)), mean[i]), rstd[i]), weight, bias);
      y = keep_lanes(y, lanes, 0.0f);
      store(at(i, c), y);
      if (codes) ranges[i] = widen(ranges[i], inv_smooth ? mul(y, smooth) : y);
    }
  });
  if (codes) quantize_group<kRows>(out, stride, norm.width, inv_smooth, ranges, *codes, row);
}

inline void add_layernorm(const AddLayerNormArgs& args, int row_begin, int row_end) {
  for_rows(row_begin, row_end, [&](int row, auto rows) {
    constexpr int kRows = decltype(rows)::value;
    const float* x = args.x + static_cast<size_t>(row) * args.x_stride;
    const float* residual = args.residual ? args.residual + static_cast<size_t>(row) * args.residual_stride : nullptr;
    float* out = args.out + static_cast<size_t>(row) * args.out_stride;
    F32x16 sums[kRows];
    for (F32x16& sum : sums) sum = set1(0.0f);
    for_vectors(args.norm.width, [&](int c, int lanes) {
      for (int i = 0; i < kRows; ++i) {
        F32x16 v = load(x + static_cast<size_t>(i) * args.x_stride + c);
        if (residual) v = add(v, load(residual + static_cast<size_t>(i) * args.residual_stride + c));
        v = keep_lanes(v, lanes, 0.0f);
        if (args.sum) store(args.sum + static_cast<size_t>(row + i) * args.sum_stride + c, v);
        store(out + static_cast<size_t>(i) * args.out_stride + c, v);
        sums[i] = add(sums[i], v);
      }
    });
    normalize_group<kRows>(out, args.out_stride, sums, args.norm, args.inv_smooth,
                           args.quantize ? &args.codes : nullptr, row);
  });
}

inline void rotate(const RotateArgs& args, int row_begin, int row_end) {
  const int half = args.head_dim / 2, table_stride = row_stride(half);
  for (int row = row_begin; row < row_end; ++row) {
    const size_t at = static_cast<size_t>(args.positions[row]) * table_stride;
    float* x = args.qkv + static_cast<size_t>(row) * args.qkv_stride;
    for (int head = 0; head < 2 * args.num_heads; ++head, x += args.head_dim) {
      for_vectors(half, [&](int c, int lanes) {
        const F32x16 cosine = load(args.cosines + at + c), sine = load(args.sines + at + c);
        const F32x16 a = load_lanes(x + c, lanes), b = load_lanes(x + half + c, lanes);
        const F32x16 first = sub(mul(a, cosine), mul(b, sine)), second = add(mul(b, cosine), mul(a, sine));
        lanes == 16 ? store(x + c, first) : store_n(x + c, first, lanes);
        lanes == 16 ? store(x + half + c, second) : store_n(x + half + c, second, lanes);
      });
    }
  }
}

// x[c] = activation(x[c]) * x[width + c] for one row, and the range of its products.
template <Epilogue kActivation>
inline void gate_row(float* x, int width, const float* inv_smooth, RowRange* range) {
  const auto keep = [&](int c, int lanes, F32x16 y) {
    y = mul(y, load_lanes(x + width + c, lanes));
    lanes == 16 ? store(x + c, y) : store_n(x + c, y, lanes);
    *range = widen(*range, inv_smooth ? mul(y, load_lanes(inv_smooth + c, lanes)) : y);
  };
  int c = 0;
  for (; kMathWidth > 1 && c + 16 * kMathWidth <= width; c += 16 * kMathWidth) {
    Wide<kMathWidth> y;
    for (int i = 0; i < kMathWidth; ++i) y.v[i] = load(x + c + 16 * i);
    y = activate<kActivation>(y);
    for (int i = 0; i < kMathWidth; ++i) keep(c + 16 * i, 16, y.v[i]);
  }
  for (; c < width; c += 16) {
    const int lanes = min_of(16, width - c);
    keep(c, lanes, activate<kActivation>(Wide<1>{{load_lanes(x + c, lanes)}}).v[0]);
  }
}

inline void gate(const GateArgs& args, int row_begin, int row_end) {
  for (int row = row_begin; row < row_end; ++row) {
    float* x = args.x + static_cast<size_t>(row) * args.x_stride;
    RowRange range = empty_range();
    EB_BY_EPILOGUE(args.activation, gate_row, x, args.width, args.inv_smooth, &range)
    if (args.quantize) quantize_group<1>(x, args.x_stride, args.width, args.inv_smooth, &range, args.codes, row);
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
      if (args.position.weight || args.position.codes)
        v = add(v, table_lanes(args.position, args.position_ids[row], width, c, lanes));
      store(out + c, v);
      sums = add(sums, v);
    });
    normalize_group<1>(out, args.out_stride, &sums, args.norm, nullptr, nullptr, row);
  }
}

template <bool kIsMax, bool kIsWeighted>
inline void pool_as(const PoolArgs& args, int sequence_begin, int sequence_end) {
  for (int s = sequence_begin; s < sequence_end; ++s) {
    const int length = args.cu_seqlens[s + 1] - args.cu_seqlens[s];
    const int first = args.fold == Fold::kLast ? args.cu_seqlens[s + 1] - 1 : args.cu_seqlens[s];
    const int count = args.fold == Fold::kFirst || args.fold == Fold::kLast ? 1 : length;
    const float number = static_cast<float>(length);
    const F32x16 divisor = set1(args.fold == Fold::kMean           ? number
                                : args.fold == Fold::kMeanSqrtLen  ? __builtin_sqrtf(number)
                                : args.fold == Fold::kWeightedMean ? number * (number + 1.0f) * 0.5f
                                                                   : 1.0f);
    float* out = args.out + static_cast<size_t>(s) * args.out_stride;
    const auto put = [&](int c, F32x16 v, int lanes) { lanes == 16 ? store(out + c, v) : store_n(out + c, v, lanes); };
    F32x16 squares = set1(0.0f);
    for_vectors(args.width, [&](int c, int lanes) {
      const float* x = args.x + static_cast<size_t>(first) * args.x_stride + c;
      F32x16 v = load(x);
      if (args.continues) v = kIsMax ? max(load_lanes(out + c, lanes), v) : add(load_lanes(out + c, lanes), v);
      for (int t = 1; t < count; ++t) {
        F32x16 next = load(x + static_cast<size_t>(t) * args.x_stride);
        if (kIsWeighted) next = mul(next, set1(static_cast<float>(t + 1)));
        v = kIsMax ? max(v, next) : add(v, next);
      }
      v = keep_lanes(div(v, divisor), lanes, 0.0f);
      put(c, v, lanes);
      squares = fma(v, v, squares);
    });
    if (!args.normalize) continue;
    const F32x16 norm = max(set1(__builtin_sqrtf(reduce_add(squares))), set1(1e-12f));
    for_vectors(args.width, [&](int c, int lanes) { put(c, div(load_lanes(out + c, lanes), norm), lanes); });
  }
}

inline void pool(const PoolArgs& args, int sequence_begin, int sequence_end) {
  if (args.fold == Fold::kMax)
    pool_as<true, false>(args, sequence_begin, sequence_end);
  else if (args.fold == Fold::kWeightedMean)
    pool_as<false, true>(args, sequence_begin, sequence_end);
  else
    pool_as<false, false>(args, sequence_begin, sequence_end);
}

}  // namespace EB_ISA
}  // namespace edgebert
