// linear_u8s8_f32 and linear_f32: register-blocked products of rows with packed panels, then the epilogue.
// Oracle: edgebert/quant.py linear_u8s8_f32, and x @ weight + bias. Every output is one chain of sums, inputs
// ascending, so a row's result does not depend on the tile it falls into.
#pragma once

#include "cpu/generic/math-inl.h"

namespace edgebert {
namespace EB_ISA {

inline int min_of(int a, int b) { return a < b ? a : b; }

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

// Sums of kRows rows of codes with 16 * kVectors columns, four inputs a step, into tile [kRows][16 * kVectors]. The
// columns of a step lie together as [16 * kVectors][4], the steps `step_stride` bytes apart. Sums start at `start`
// [16 * kVectors], or at zero.
template <int kRows, int kVectors, class Ahead>
inline void dot_tile(const uint8_t* codes, int stride, const int8_t* columns, size_t step_stride, int steps,
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
      const DotLeft a = dot_left(codes + static_cast<size_t>(m) * stride + 4 * k);
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
inline void fma_tile(const float* x, int stride, const float* columns, size_t step_stride, int steps,
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

// Calls run(first, Rows<W>()) for groups of at most kMathWidth of kRows rows, every W known at compile time.
template <int kRows, int kFirst = 0, class Run>
inline void for_row_groups(Run run) {
  constexpr int kWidth = kRows - kFirst < kMathWidth ? kRows - kFirst : kMathWidth;
  run(kFirst, Rows<kWidth>());
  if constexpr (kFirst + kWidth < kRows) for_row_groups<kRows, kFirst + kWidth>(run);
}

// Applies the epilogue to kWidth rows of one column vector and stores them.
template <Epilogue kEpilogue, int kWidth>
EB_INLINE void store_rows(Wide<kWidth> y, float* out, int out_stride) {
  y = activate<kEpilogue>(y);
  for (int m = 0; m < kWidth; ++m) store(out + static_cast<size_t>(m) * out_stride, y.v[m]);
}

template <Epilogue kEpilogue>
inline void linear_u8s8_f32_as(const LinearU8S8Args& args, const TileRange& range) {
  constexpr int kNr = 16 * kDotVectors;
  const PackedLinearU8S8& w = args.linear;
  const int steps = (w.inputs + 3) / 4;
  const int tiles = (range.row_end - range.row_begin + kDotRows - 1) / kDotRows;
  alignas(64) int32_t tile[kDotRows * kNr];
  for (int p = range.panel_begin; p < range.panel_end; ++p) {
    const int8_t* panel = w.weight + static_cast<size_t>(p) * steps * kNr * 4;
    const int vectors = min_of(kDotVectors, (w.outputs - p * kNr + 15) / 16);
    for (int row = range.row_begin; row < range.row_end; row += kDotRows) {
      with_rows<kDotRows>(min_of(kDotRows, range.row_end - row), [&](auto tag) {
        constexpr int kRows = decltype(tag)::value;
        dot_tile<kRows, kDotVectors>(
            args.in.codes + static_cast<size_t>(row) * args.in.stride, args.in.stride, panel, kNr * 4, steps, nullptr,
            PanelAhead(panel, steps, kDotVectors, (row - range.row_begin) / kDotRows, tiles), tile);
        for (int v = 0; v < vectors; ++v) {
          const int column = p * kNr + v * 16;
          const F32x16 w_scale = load(w.w_scale + column), bias = load(w.bias + column);
          const I32x16 colsum = load_i32(w.colsum + column);
          for_row_groups<kRows>([&](int first, auto width) {
            Wide<decltype(width)::value> y;
            for (int i = 0; i < width.value; ++i) {
              const int m = row + first + i;
              const I32x16 correction = mul_i32(set1_i32(args.in.neg_zero[m]), colsum);
              const F32x16 acc = to_f32(add_i32(load_i32(tile + ((first + i) * kDotVectors + v) * 16), correction));
              y.v[i] = add(mul(mul(acc, w_scale), set1(args.in.a_scale[m])), bias);
            }
            store_rows<kEpilogue>(y, args.out + static_cast<size_t>(row + first) * args.out_stride + column,
                                  args.out_stride);
          });
        }
      });
    }
  }
}

template <Epilogue kEpilogue>
inline void linear_f32_as(const LinearF32Args& args, const TileRange& range) {
  constexpr int kNr = 16 * kFmaVectors;
  const PackedLinearF32& w = args.linear;
  const int tiles = (range.row_end - range.row_begin + kFmaRows - 1) / kFmaRows;
  alignas(64) float tile[kFmaRows * kNr];
  for (int p = range.panel_begin; p < range.panel_end; ++p) {
    const float* panel = w.weight + static_cast<size_t>(p) * w.inputs * kNr;
    const int vectors = min_of(kFmaVectors, (w.outputs - p * kNr + 15) / 16);
    for (int row = range.row_begin; row < range.row_end; row += kFmaRows) {
      with_rows<kFmaRows>(min_of(kFmaRows, range.row_end - row), [&](auto tag) {
        constexpr int kRows = decltype(tag)::value;
        fma_tile<kRows, kFmaVectors>(
            args.x + static_cast<size_t>(row) * args.x_stride, args.x_stride, panel, kNr, w.inputs,
            PanelAhead(panel, w.inputs, kFmaVectors, (row - range.row_begin) / kFmaRows, tiles), tile, kNr);
        for (int v = 0; v < vectors; ++v) {
          const int column = p * kNr + v * 16;
          const F32x16 bias = load(w.bias + column);
          for_row_groups<kRows>([&](int first, auto width) {
            Wide<decltype(width)::value> y;
            for (int i = 0; i < width.value; ++i) y.v[i] = add(load(tile + ((first + i) * kFmaVectors + v) * 16), bias);
            store_rows<kEpilogue>(y, args.out + static_cast<size_t>(row + first) * args.out_stride + column,
                                  args.out_stride);
          });
        }
      });
    }
  }
}

inline void linear_u8s8_f32(const LinearU8S8Args& args, const TileRange& range) {
  EB_BY_EPILOGUE(args.epilogue, linear_u8s8_f32_as, args, range)
}
inline void linear_f32(const LinearF32Args& args, const TileRange& range) {
  EB_BY_EPILOGUE(args.epilogue, linear_f32_as, args, range)
}

}  // namespace EB_ISA
}  // namespace edgebert
