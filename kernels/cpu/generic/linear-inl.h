// linear_u8s8_f32 and linear_f32: register-blocked products of rows with packed panels, then the epilogue.
// Oracle: edgebert/quant.py linear_u8s8_f32, and x @ weight + bias. Every output is one chain of sums, inputs
// ascending, so a row's result does not depend on the tile it falls into.
#pragma once

#include "cpu/generic/math-inl.h"

namespace edgebert {
namespace EB_ISA {

inline int min_of(int a, int b) { return a < b ? a : b; }

// One copy for all who call it: a tile takes far longer than its call.
#define EB_OUTLINE __attribute__((noinline))

// What a tile prefetches at each of its steps: nothing.
struct NothingAhead {
  void step(int) const {}
};

// The next panel, which has `vectors` cache lines for each step. Tile `i` of `tiles` prefetches its share, so that
// together the tiles prefetch all of it: with few rows, this keeps the memory busy. Each step prefetches two lines,
// even where one would do: a second prefetch of a line costs next to nothing, a branch would cost more.
struct PanelAhead {
  const int8_t *first, *second;

  PanelAhead(const void* panel, int steps, int vectors, int i, int tiles) {
    const auto line = [&](int n) {
      return static_cast<const int8_t*>(panel) + 64 * static_cast<size_t>(steps) * (n < vectors ? vectors + n : 0);
    };
    const bool is_enough = tiles >= vectors;  // with one place a step
    first = line(is_enough ? i : 2 * i);
    second = line(is_enough ? i : 2 * i + 1);
  }
  void step(int k) const {
    __builtin_prefetch(first + 64 * static_cast<size_t>(k), 0, 2);  // to L2: a panel would fill L1
    __builtin_prefetch(second + 64 * static_cast<size_t>(k), 0, 2);
  }
};

// What a tile multiplies with: dot4 of any weights, or where an ISA has one, a faster one of weights that are 7 bits
// without a sign.
struct AnyDot {
  static DotLeft left(const uint8_t* codes) { return dot_left(codes); }
};
#if defined(EB_NARROW_DOT)
constexpr uint8_t kNarrowOffset = 64;
struct NarrowDot {
  static NarrowLeft left(const uint8_t* codes) { return narrow_left(codes); }
};
#else
constexpr uint8_t kNarrowOffset = 0;
#endif

// Sums of kRows rows of codes with 16 * kVectors columns, four inputs a step, into tile [kRows][16 * kVectors]. The
// columns of a step lie together as [16 * kVectors][4], the steps `step_stride` bytes apart. Sums start at `start`
// [16 * kVectors], or at zero.
template <int kRows, int kVectors, class Dot = AnyDot, class Ahead>
EB_OUTLINE void dot_tile(const uint8_t* codes, int stride, const int8_t* columns, size_t step_stride, int steps,
                         const int32_t* start, const Ahead& ahead, int32_t* tile) {
  I32x16 acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) acc[m][v] = start ? load_i32(start + v * 16) : zero_i32();
#pragma GCC unroll 1
  for (int k = 0; k < steps; ++k, columns += step_stride) {
    ahead.step(k);
    I32x16 b[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) b[v] = load_i32(reinterpret_cast<const int32_t*>(columns) + v * 16);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const auto a = Dot::left(codes + static_cast<size_t>(m) * stride + 4 * k);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) acc[m][v] = dot4(acc[m][v], a, b[v]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) store_i32(tile + (m * kVectors + v) * 16, acc[m][v]);
}

// The same in f32, one input a step: x [kRows][steps], columns of a step [16 * kVectors], `step_stride` floats apart.
// With `continues`, sums start at what the tile holds.
template <int kRows, int kVectors, class Ahead>
EB_OUTLINE void fma_tile(const float* x, int stride, const float* columns, size_t step_stride, int steps,
                         const Ahead& ahead, float* tile, size_t tile_stride, bool continues = false) {
  F32x16 acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) acc[m][v] = continues ? load(tile + m * tile_stride + v * 16) : set1(0.0f);
#pragma GCC unroll 1
  for (int k = 0; k < steps; ++k, columns += step_stride) {
    ahead.step(k);
    F32x16 b[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) b[v] = load(columns + v * 16);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const F32x16 a = set1(x[static_cast<size_t>(m) * stride + k]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) acc[m][v] = fma(a, b[v], acc[m][v]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) store(tile + m * tile_stride + v * 16, acc[m][v]);
}

// Calls run(Rows<rows>()) for rows in 1 .. kMax.
template <int kRows>
struct Rows {
  static constexpr int value = kRows;
};
template <int kMax, class Run>
inline void with_rows(int rows, Run run) {
  if constexpr (kMax > 1) {
    if (rows < kMax) return with_rows<kMax - 1>(rows, run);
  }
  run(Rows<kMax>());
}

// Applies the epilogue to the vectors value(first) .. value(first + kRows - 1) of one column vector and stores them.
template <Epilogue kEpilogue, int kRows, class Value>
EB_INLINE void store_group(int first, float* out, int out_stride, Value value) {
  Wide<kRows> y;
  for (int i = 0; i < kRows; ++i) y.v[i] = value(first + i);
  y = activate<kEpilogue>(y);
  for (int i = 0; i < kRows; ++i) store(out + static_cast<size_t>(first + i) * out_stride, y.v[i]);
}

// Rows that fill no group of kMathWidth, in pairs.
template <Epilogue kEpilogue, class Value>
EB_INLINE void store_pairs(int first, int rows, float* out, int out_stride, const Value& value) {
  if constexpr (kMathWidth > 2) {
#pragma GCC unroll 1
    for (; first + 2 <= rows; first += 2) store_group<kEpilogue, 2>(first, out, out_stride, value);
  }
  if (first < rows) store_group<kEpilogue, 1>(first, out, out_stride, value);
}
template <Epilogue kEpilogue, class Value>
EB_OUTLINE void store_pairs_apart(int first, int rows, float* out, int out_stride, const Value& value) {
  store_pairs<kEpilogue>(first, rows, out, out_stride, value);
}

// All rows, value(0) .. value(rows - 1), at most kMax: whole groups of kMathWidth, known when this is compiled, and the
// rest; that apart where there is an activation to compute, so that whole groups have the registers to themselves.
template <Epilogue kEpilogue, int kMax, class Value>
EB_INLINE void store_rows(int rows, float* out, int out_stride, Value value) {
  int first = 0;
#pragma GCC unroll 16
  for (int end = kMathWidth; end <= kMax; end += kMathWidth) {
    if (end > rows) break;
    store_group<kEpilogue, kMathWidth>(end - kMathWidth, out, out_stride, value);
    first = end;
  }
  if constexpr (kEpilogue == Epilogue::kBias || kEpilogue == Epilogue::kRelu)
    store_pairs<kEpilogue>(first, rows, out, out_stride, value);
  else if (first < rows)
    store_pairs_apart<kEpilogue>(first, rows, out, out_stride, value);
}

// What linear_u8s8_f32 does with the sums in tile [rows][16 * kDotVectors] of rows from `row` and columns from
// `column`.
template <Epilogue kEpilogue>
inline void finish_u8s8(const LinearU8S8Args& args, const int32_t* tile, int row, int rows, int column, int vectors) {
  const PackedLinearU8S8& w = args.linear;
  const float* const a_scale = args.in.a_scale + row;
  const int32_t* const neg_zero = args.in.neg_zero + row;
  float* out = args.out + static_cast<size_t>(row) * args.out_stride + column;
  for (int v = 0; v < vectors; ++v, column += 16, out += 16) {
    const F32x16 w_scale = load(w.w_scale + column), bias = load(w.bias + column);
    const I32x16 colsum = load_i32(w.colsum + column);
    store_rows<kEpilogue, kDotRows>(rows, out, args.out_stride, [&](int m) {
      const I32x16 correction = mul_i32(set1_i32(neg_zero[m]), colsum);
      const F32x16 acc = to_f32(add_i32(load_i32(tile + (m * kDotVectors + v) * 16), correction));
      return add(mul(mul(acc, w_scale), set1(a_scale[m])), bias);
    });
  }
}

// Each sum less what `row_excess` [range's rows] has of its row.
template <class Dot>
inline void multiply_u8s8(const LinearU8S8Args& args, const TileRange& range, const int32_t* row_excess) {
  constexpr int kNr = 16 * kDotVectors;
  const PackedLinearU8S8& w = args.linear;
  const int steps = (w.inputs + 3) / 4;
  const int tiles = (range.row_end - range.row_begin + kDotRows - 1) / kDotRows;
  alignas(64) int32_t tile[kDotRows * kNr];
  for (int p = range.panel_begin; p < range.panel_end; ++p) {
    const int8_t* panel = w.weight + static_cast<size_t>(p) * steps * kNr * 4;
    const int vectors = min_of(kDotVectors, (w.outputs - p * kNr + 15) / 16);
    for (int row = range.row_begin; row < range.row_end; row += kDotRows) {
      const int rows = min_of(kDotRows, range.row_end - row);
      const PanelAhead ahead(panel, steps, kDotVectors, (row - range.row_begin) / kDotRows, tiles);
      with_rows<kDotRows>(rows, [&](auto tag) {
        dot_tile<decltype(tag)::value, kDotVectors, Dot>(args.in.codes + static_cast<size_t>(row) * args.in.stride,
                                                         args.in.stride, panel, kNr * 4, steps, nullptr, ahead, tile);
      });
      for (int m = 0; row_excess && m < rows; ++m) {
        const I32x16 excess = set1_i32(-row_excess[row - range.row_begin + m]);
        for (int32_t* sums = tile + m * kNr; sums < tile + (m + 1) * kNr; sums += 16)
          store_i32(sums, add_i32(load_i32(sums), excess));
      }
      EB_BY_EPILOGUE(args.epilogue, finish_u8s8, args, tile, row, rows, p * kNr, vectors)
    }
  }
}

inline void linear_u8s8_f32(const LinearU8S8Args& args, const TileRange& range) {
#if defined(EB_NARROW_DOT)
  if (args.linear.offset > 0) {
    int32_t excess[kBlockRows];  // a row's codes times the offset, which every weight has too much
    const int steps = (args.linear.inputs + 3) / 4;
    for (int row = range.row_begin; row < range.row_end; row += kBlockRows) {
      const int last = min_of(row + kBlockRows, range.row_end);
      for (int i = row; i < last; ++i)
        excess[i - row] =
            args.linear.offset * sum_codes(args.in.codes + static_cast<size_t>(i) * args.in.stride, steps);
      multiply_u8s8<NarrowDot>(args, {row, last, range.panel_begin, range.panel_end}, excess);
    }
    return;
  }
#endif
  multiply_u8s8<AnyDot>(args, range, nullptr);
}

// The same for linear_f32, of tile [rows][16 * kFmaVectors].
template <Epilogue kEpilogue>
inline void finish_f32(const LinearF32Args& args, const float* tile, int row, int rows, int column, int vectors) {
  float* out = args.out + static_cast<size_t>(row) * args.out_stride + column;
  for (int v = 0; v < vectors; ++v, column += 16, out += 16) {
    const F32x16 bias = load(args.linear.bias + column);
    store_rows<kEpilogue, kFmaRows>(rows, out, args.out_stride,
                                    [&](int m) { return add(load(tile + (m * kFmaVectors + v) * 16), bias); });
  }
}

inline void linear_f32(const LinearF32Args& args, const TileRange& range) {
  constexpr int kNr = 16 * kFmaVectors;
  const PackedLinearF32& w = args.linear;
  const int tiles = (range.row_end - range.row_begin + kFmaRows - 1) / kFmaRows;
  alignas(64) float tile[kFmaRows * kNr];
  for (int p = range.panel_begin; p < range.panel_end; ++p) {
    const float* panel = w.weight + static_cast<size_t>(p) * w.inputs * kNr;
    const int vectors = min_of(kFmaVectors, (w.outputs - p * kNr + 15) / 16);
    for (int row = range.row_begin; row < range.row_end; row += kFmaRows) {
      const int rows = min_of(kFmaRows, range.row_end - row);
      const PanelAhead ahead(panel, w.inputs, kFmaVectors, (row - range.row_begin) / kFmaRows, tiles);
      with_rows<kFmaRows>(rows, [&](auto tag) {
        fma_tile<decltype(tag)::value, kFmaVectors>(args.x + static_cast<size_t>(row) * args.x_stride, args.x_stride,
                                                    panel, kNr, w.inputs, ahead, tile, kNr);
      });
      EB_BY_EPILOGUE(args.epilogue, finish_f32, args, tile, row, rows, p * kNr, vectors)
    }
  }
}

}  // namespace EB_ISA
}  // namespace edgebert
