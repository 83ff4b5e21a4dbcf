// F32x16 and I32x16 as four vectors of WebAssembly's SIMD. It has no fused multiply-add: fma() rounds twice, and every
// result has the bits of the baseline.
#pragma once

#include <stdint.h>
#include <string.h>
#include <wasm_simd128.h>

namespace edgebert {
namespace EB_ISA {

struct F32x16 {
  v128_t v[4];
};
struct I32x16 {
  v128_t v[4];
};

// Makes x opaque where it is, for loops that are timed; no instruction.
#define EB_KEEP(x) asm volatile("" : "+r"((x).v[0]), "+r"((x).v[1]), "+r"((x).v[2]), "+r"((x).v[3]))

#define EB_QUARTERS _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i)

// Of quarter i, ones in the lanes among the first n of 16.
inline v128_t mask_n(int i, int n) { return wasm_i32x4_lt(wasm_i32x4_const(0, 1, 2, 3), wasm_i32x4_splat(n - 4 * i)); }

inline F32x16 set1(float x) {
  const v128_t v = wasm_f32x4_splat(x);
  return {{v, v, v, v}};
}
inline F32x16 load(const float* p) {
  return {{wasm_v128_load(p), wasm_v128_load(p + 4), wasm_v128_load(p + 8), wasm_v128_load(p + 12)}};
}
inline void store(float* p, F32x16 x) { EB_QUARTERS wasm_v128_store(p + 4 * i, x.v[i]); }
inline F32x16 load_n(const float* p, int n) {
  float lanes[16] = {0};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
inline void store_n(float* p, F32x16 x, int n) {
  float lanes[16];
  store(lanes, x);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
inline F32x16 load_s8_n(const int8_t* p, int n) {
  int8_t bytes[16] = {0};
  memcpy(bytes, p, n);
  const v128_t b = wasm_v128_load(bytes);
  const v128_t lo = wasm_i16x8_extend_low_i8x16(b), hi = wasm_i16x8_extend_high_i8x16(b);
  return {{wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(lo)),
           wasm_f32x4_convert_i32x4(wasm_i32x4_extend_high_i16x8(lo)),
           wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(hi)),
           wasm_f32x4_convert_i32x4(wasm_i32x4_extend_high_i16x8(hi))}};
}

#define EB_BINARY(name, type, expression)  \
  inline type name(type a, type b) {       \
    EB_QUARTERS {                          \
      const v128_t x = a.v[i], y = b.v[i]; \
      a.v[i] = expression;                 \
    }                                      \
    return a;                              \
  }
EB_BINARY(add, F32x16, wasm_f32x4_add(x, y))
EB_BINARY(sub, F32x16, wasm_f32x4_sub(x, y))
EB_BINARY(mul, F32x16, wasm_f32x4_mul(x, y))
EB_BINARY(div, F32x16, wasm_f32x4_div(x, y))
EB_BINARY(min, F32x16, wasm_f32x4_pmin(y, x))  // x < y ? x : y, one instruction on x86
EB_BINARY(max, F32x16, wasm_f32x4_pmax(y, x))
EB_BINARY(add_i32, I32x16, wasm_i32x4_add(x, y))
EB_BINARY(mul_i32, I32x16, wasm_i32x4_mul(x, y))
#undef EB_BINARY

inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return add(mul(a, b), c); }
inline F32x16 fnma(F32x16 a, F32x16 b, F32x16 c) { return sub(c, mul(a, b)); }
inline F32x16 abs(F32x16 a) {
  EB_QUARTERS a.v[i] = wasm_f32x4_abs(a.v[i]);
  return a;
}
inline F32x16 round(F32x16 a) {
  EB_QUARTERS a.v[i] = wasm_f32x4_nearest(a.v[i]);
  return a;
}

// Bits that end with those of x rounded half to even, for |x| < 2**22: two instructions, where a conversion that
// saturates takes eight on x86.
inline v128_t integer_bits(v128_t x) { return wasm_f32x4_add(x, wasm_f32x4_const_splat(12582912.0f)); }

// x * 2**n for integer n; the result must be a normal number.
inline F32x16 scale_exp2(F32x16 x, F32x16 n) {
  EB_QUARTERS x.v[i] = wasm_i32x4_add(x.v[i], wasm_i32x4_shl(integer_bits(n.v[i]), 23));
  return x;
}
// The first n lanes of x, `fill` in the others.
inline F32x16 keep_n(F32x16 x, int n, float fill) {
  EB_QUARTERS x.v[i] = wasm_v128_bitselect(x.v[i], wasm_f32x4_splat(fill), mask_n(i, n));
  return x;
}

// One combining tree on every ISA: lane i with lane i + 8, then + 4, + 2, + 1.
inline float reduce_add(F32x16 x) {
  v128_t s = wasm_f32x4_add(wasm_f32x4_add(x.v[0], x.v[2]), wasm_f32x4_add(x.v[1], x.v[3]));
  s = wasm_f32x4_add(s, wasm_i32x4_shuffle(s, s, 2, 3, 2, 3));
  return wasm_f32x4_extract_lane(s, 0) + wasm_f32x4_extract_lane(s, 1);
}
inline float reduce_max(F32x16 x) {
  v128_t m = wasm_f32x4_pmax(wasm_f32x4_pmax(x.v[0], x.v[1]), wasm_f32x4_pmax(x.v[2], x.v[3]));
  m = wasm_f32x4_pmax(m, wasm_i32x4_shuffle(m, m, 2, 3, 2, 3));
  m = wasm_f32x4_pmax(m, wasm_i32x4_shuffle(m, m, 1, 1, 1, 1));
  return wasm_f32x4_extract_lane(m, 0);
}
inline float reduce_min(F32x16 x) {
  v128_t m = wasm_f32x4_pmin(wasm_f32x4_pmin(x.v[0], x.v[1]), wasm_f32x4_pmin(x.v[2], x.v[3]));
  m = wasm_f32x4_pmin(m, wasm_i32x4_shuffle(m, m, 2, 3, 2, 3));
  m = wasm_f32x4_pmin(m, wasm_i32x4_shuffle(m, m, 1, 1, 1, 1));
  return wasm_f32x4_extract_lane(m, 0);
}

inline I32x16 set1_i32(int32_t x) {
  const v128_t v = wasm_i32x4_splat(x);
  return {{v, v, v, v}};
}
inline I32x16 zero_i32() { return set1_i32(0); }
inline I32x16 load_i32(const int32_t* p) {
  return {{wasm_v128_load(p), wasm_v128_load(p + 4), wasm_v128_load(p + 8), wasm_v128_load(p + 12)}};
}
inline void store_i32(int32_t* p, I32x16 x) { EB_QUARTERS wasm_v128_store(p + 4 * i, x.v[i]); }
inline F32x16 to_f32(I32x16 a) {
  return {{wasm_f32x4_convert_i32x4(a.v[0]), wasm_f32x4_convert_i32x4(a.v[1]), wasm_f32x4_convert_i32x4(a.v[2]),
           wasm_f32x4_convert_i32x4(a.v[3])}};
}
// Rounded half to even.
inline I32x16 to_i32(F32x16 a) {
  I32x16 r;
  EB_QUARTERS r.v[i] = wasm_i32x4_trunc_sat_f32x4(wasm_f32x4_nearest(a.v[i]));
  return r;
}

// 16 codes: the lanes, which lie in +-2**22, rounded half to even, clamped to [0, 255], each xor `flip`.
inline void store_codes(uint8_t* p, F32x16 x, uint8_t flip) {
  I32x16 codes;
  EB_QUARTERS codes.v[i] = wasm_i32x4_sub(integer_bits(x.v[i]), integer_bits(wasm_f32x4_const_splat(0.0f)));
  const v128_t lo = wasm_i16x8_narrow_i32x4(codes.v[0], codes.v[1]),
               hi = wasm_i16x8_narrow_i32x4(codes.v[2], codes.v[3]);
  wasm_v128_store(p, wasm_v128_xor(wasm_u8x16_narrow_i16x8(lo, hi), wasm_u8x16_splat(flip)));
}

// Lane i: the bytes a, b, c, d of lane i, for integer-valued lanes in [-128, 127].
inline I32x16 combine_s8(F32x16 a, F32x16 b, F32x16 c, F32x16 d) {
  const v128_t byte = wasm_i32x4_const_splat(0xff);
  I32x16 r;
  EB_QUARTERS {
    const v128_t x = wasm_v128_and(integer_bits(a.v[i]), byte), y = wasm_v128_and(integer_bits(b.v[i]), byte);
    const v128_t z = wasm_v128_and(integer_bits(c.v[i]), byte), w = integer_bits(d.v[i]);
    r.v[i] =
        wasm_v128_or(wasm_v128_or(x, wasm_i32x4_shl(y, 8)), wasm_v128_or(wasm_i32x4_shl(z, 16), wasm_i32x4_shl(w, 24)));
  }
  return r;
}

inline void transpose_4x4(v128_t* r) {
  const v128_t a = wasm_i32x4_shuffle(r[0], r[1], 0, 4, 1, 5), b = wasm_i32x4_shuffle(r[2], r[3], 0, 4, 1, 5);
  const v128_t c = wasm_i32x4_shuffle(r[0], r[1], 2, 6, 3, 7), d = wasm_i32x4_shuffle(r[2], r[3], 2, 6, 3, 7);
  r[0] = wasm_i64x2_shuffle(a, b, 0, 2);
  r[1] = wasm_i64x2_shuffle(a, b, 1, 3);
  r[2] = wasm_i64x2_shuffle(c, d, 0, 2);
  r[3] = wasm_i64x2_shuffle(c, d, 1, 3);
}
#undef EB_QUARTERS

}  // namespace EB_ISA
}  // namespace edgebert

#include "cpu/simd/transpose_quarters.h"
