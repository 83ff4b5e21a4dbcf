// F32x16 and I32x16 as four 128-bit registers (NEON of 64-bit Arm, which always has a fused multiply-add).
#pragma once

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

namespace edgebert {
namespace EB_ISA {

struct F32x16 {
  float32x4_t v[4];
};
struct I32x16 {
  int32x4_t v[4];
};

// Makes x opaque where it is, for loops that are timed; no instruction.
#define EB_KEEP(x) asm volatile("" : "+w"((x).v[0]), "+w"((x).v[1]), "+w"((x).v[2]), "+w"((x).v[3]))

#define EB_QUARTERS _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i)

// Of quarter i, ones in the lanes among the first n of 16.
inline uint32x4_t mask_n(int i, int n) {
  const int32_t lanes[4] = {0, 1, 2, 3};
  return vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(n - 4 * i));
}

inline F32x16 set1(float x) {
  const float32x4_t v = vdupq_n_f32(x);
  return {{v, v, v, v}};
}
inline F32x16 load(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
inline void store(float* p, F32x16 x) { EB_QUARTERS vst1q_f32(p + 4 * i, x.v[i]); }
inline F32x16 load_n(const float* p, int n) {
  float lanes[16] = {0};
  memcpy(lanes, p, sizeof(float) * n);
  return load(lanes);
}
inline void store_n(float* p, F32x16 x, int n) {
  float lanes[16];
  store(lanes, x);
  memcpy(p, lanes, sizeof(float) * n);
}
inline F32x16 load_s8_n(const int8_t* p, int n) {
  int8_t bytes[16] = {0};
  memcpy(bytes, p, n);
  const int8x16_t b = vld1q_s8(bytes);
  const int16x8_t lo = vmovl_s8(vget_low_s8(b)), hi = vmovl_high_s8(b);
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_high_s16(lo)),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), vcvtq_f32_s32(vmovl_high_s16(hi))}};
}

#define EB_BINARY(name, type, intrinsic)            \
  inline type name(type a, type b) {                \
    EB_QUARTERS a.v[i] = intrinsic(a.v[i], b.v[i]); \
    return a;                                       \
  }
EB_BINARY(add, F32x16, vaddq_f32)
EB_BINARY(sub, F32x16, vsubq_f32)
EB_BINARY(mul, F32x16, vmulq_f32)
EB_BINARY(div, F32x16, vdivq_f32)
EB_BINARY(min, F32x16, vminq_f32)
EB_BINARY(max, F32x16, vmaxq_f32)
EB_BINARY(add_i32, I32x16, vaddq_s32)
EB_BINARY(mul_i32, I32x16, vmulq_s32)
#undef EB_BINARY

inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  EB_QUARTERS c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}
// c - a * b
inline F32x16 fnma(F32x16 a, F32x16 b, F32x16 c) {
  EB_QUARTERS c.v[i] = vfmsq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}
inline F32x16 abs(F32x16 a) {
  EB_QUARTERS a.v[i] = vabsq_f32(a.v[i]);
  return a;
}
inline F32x16 round(F32x16 a) {
  EB_QUARTERS a.v[i] = vrndnq_f32(a.v[i]);
  return a;
}
// x * 2**n for integer n; the result must be a normal number.
inline F32x16 scale_exp2(F32x16 x, F32x16 n) {
  EB_QUARTERS {
    const int32x4_t exponents = vshlq_n_s32(vcvtq_s32_f32(n.v[i]), 23);
    x.v[i] = vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x.v[i]), exponents));
  }
  return x;
}
// The first n lanes of x, `fill` in the others.
inline F32x16 keep_n(F32x16 x, int n, float fill) {
  EB_QUARTERS x.v[i] = vbslq_f32(mask_n(i, n), x.v[i], vdupq_n_f32(fill));
  return x;
}

// One combining tree on every ISA: lane i with lane i + 8, then + 4, + 2, + 1.
inline float reduce_add(F32x16 x) {
  const float32x4_t s4 = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
  const float32x2_t s2 = vadd_f32(vget_low_f32(s4), vget_high_f32(s4));
  return vget_lane_f32(s2, 0) + vget_lane_f32(s2, 1);
}
inline float reduce_max(F32x16 x) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[1]), vmaxq_f32(x.v[2], x.v[3])));
}
inline float reduce_min(F32x16 x) {
  return vminvq_f32(vminq_f32(vminq_f32(x.v[0], x.v[1]), vminq_f32(x.v[2], x.v[3])));
}

inline I32x16 set1_i32(int32_t x) {
  const int32x4_t v = vdupq_n_s32(x);
  return {{v, v, v, v}};
}
inline I32x16 zero_i32() { return set1_i32(0); }
inline I32x16 load_i32(const int32_t* p) {
  return {{vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}};
}
inline void store_i32(int32_t* p, I32x16 x) { EB_QUARTERS vst1q_s32(p + 4 * i, x.v[i]); }
inline F32x16 to_f32(I32x16 a) {
  return {{vcvtq_f32_s32(a.v[0]), vcvtq_f32_s32(a.v[1]), vcvtq_f32_s32(a.v[2]), vcvtq_f32_s32(a.v[3])}};
}
// Rounded half to even.
inline I32x16 to_i32(F32x16 a) {
  return {{vcvtnq_s32_f32(a.v[0]), vcvtnq_s32_f32(a.v[1]), vcvtnq_s32_f32(a.v[2]), vcvtnq_s32_f32(a.v[3])}};
}

// 16 codes: the lanes rounded half to even, clamped to [0, 255], each xor `flip`.
inline void store_codes(uint8_t* p, F32x16 x, uint8_t flip) {
  const I32x16 codes = to_i32(x);
  const int16x8_t lo = vqmovn_high_s32(vqmovn_s32(codes.v[0]), codes.v[1]);
  const int16x8_t hi = vqmovn_high_s32(vqmovn_s32(codes.v[2]), codes.v[3]);
  vst1q_u8(p, veorq_u8(vqmovun_high_s16(vqmovun_s16(lo), hi), vdupq_n_u8(flip)));
}

// 16 bytes of integer-valued lanes in [-128, 127].
inline int8x16_t to_s8(F32x16 x) {
  const I32x16 a = to_i32(x);
  const int16x8_t lo = vmovn_high_s32(vmovn_s32(a.v[0]), a.v[1]), hi = vmovn_high_s32(vmovn_s32(a.v[2]), a.v[3]);
  return vmovn_high_s16(vmovn_s16(lo), hi);
}
// Lane i: the bytes a, b, c, d of lane i, for integer-valued lanes in [-128, 127].
inline I32x16 combine_s8(F32x16 a, F32x16 b, F32x16 c, F32x16 d) {
  const int8x16x2_t ab = vzipq_s8(to_s8(a), to_s8(b)), cd = vzipq_s8(to_s8(c), to_s8(d));
  I32x16 r;
  for (int half = 0; half < 2; ++half) {
    const int16x8x2_t abcd = vzipq_s16(vreinterpretq_s16_s8(ab.val[half]), vreinterpretq_s16_s8(cd.val[half]));
    r.v[2 * half] = vreinterpretq_s32_s16(abcd.val[0]);
    r.v[2 * half + 1] = vreinterpretq_s32_s16(abcd.val[1]);
  }
  return r;
}

inline void transpose_4x4(float32x4_t* r) {
  float64x2_t even[2], odd[2];
  for (int i = 0; i < 2; ++i) {
    even[i] = vreinterpretq_f64_f32(vtrn1q_f32(r[2 * i], r[2 * i + 1]));
    odd[i] = vreinterpretq_f64_f32(vtrn2q_f32(r[2 * i], r[2 * i + 1]));
  }
  r[0] = vreinterpretq_f32_f64(vtrn1q_f64(even[0], even[1]));
  r[1] = vreinterpretq_f32_f64(vtrn1q_f64(odd[0], odd[1]));
  r[2] = vreinterpretq_f32_f64(vtrn2q_f64(even[0], even[1]));
  r[3] = vreinterpretq_f32_f64(vtrn2q_f64(odd[0], odd[1]));
}
#undef EB_QUARTERS

}  // namespace EB_ISA
}  // namespace edgebert

#include "cpu/simd/transpose_quarters.h"
