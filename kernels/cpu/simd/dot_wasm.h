// dot4 by products of 16 bits: the even bytes and the odd bytes of codes and weights, each widened, are multiplied and
// added in pairs, so that a lane's four products land in that lane.
//
// The relaxed dot product multiplies s8 by 7 bits, which every engine does exactly, whatever it takes the eighth bit
// for: codes - 128 by weights in +-63 that have 64 added.
#pragma once

#include <stdint.h>

#include "cpu/simd/vec_wasm.h"

namespace edgebert {
namespace EB_ISA {

struct DotLeft {
  v128_t even, odd;
};
#if defined(__wasm_relaxed_simd__)
#define EB_NARROW_DOT
constexpr uint8_t kCodeFlip = 0x80;  // q xor 0x80, read as s8, is q - 128

inline DotLeft dot_left(const uint8_t* codes) {
  const v128_t a = wasm_v128_load32_splat(codes);
  return {wasm_i16x8_shr(wasm_i16x8_shl(a, 8), 8), wasm_i16x8_shr(a, 8)};
}

struct NarrowLeft {
  v128_t a;
};
inline NarrowLeft narrow_left(const uint8_t* codes) { return {wasm_v128_load32_splat(codes)}; }
inline I32x16 dot4(I32x16 acc, NarrowLeft left, I32x16 b) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) acc.v[i] = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(left.a, b.v[i], acc.v[i]);
  return acc;
}
// Of codes as they are stored, 4 * steps of them.
inline int32_t sum_codes(const uint8_t* codes, int steps) {
  const v128_t ones = wasm_i8x16_const_splat(1);
  v128_t sums = wasm_i32x4_const_splat(0);
  int k = 0;
  for (; k + 4 <= steps; k += 4)
    sums = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(wasm_v128_load(codes + 4 * k), ones, sums);
  for (; k < steps; ++k)
    sums = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(wasm_v128_load32_zero(codes + 4 * k), ones, sums);
  sums = wasm_i32x4_add(sums, wasm_i32x4_shuffle(sums, sums, 2, 3, 2, 3));
  return wasm_i32x4_extract_lane(sums, 0) + wasm_i32x4_extract_lane(sums, 1);
}
#else
constexpr uint8_t kCodeFlip = 0;

inline DotLeft dot_left(const uint8_t* codes) {
  const v128_t a = wasm_v128_load32_splat(codes);
  return {wasm_v128_and(a, wasm_i16x8_const_splat(0xff)), wasm_u16x8_shr(a, 8)};
}
#endif

inline I32x16 dot4(I32x16 acc, DotLeft left, I32x16 b) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const v128_t even = wasm_i16x8_shr(wasm_i16x8_shl(b.v[i], 8), 8), odd = wasm_i16x8_shr(b.v[i], 8);
    const v128_t sums = wasm_i32x4_add(wasm_i32x4_dot_i16x8(left.even, even), wasm_i32x4_dot_i16x8(left.odd, odd));
    acc.v[i] = wasm_i32x4_add(acc.v[i], sums);
  }
  return acc;
}

}  // namespace EB_ISA
}  // namespace edgebert
