// F32x16 and I32x16 in plain C++: 16 virtual lanes, the same interface as the other vec_*.h.
// fma() rounds twice here, so the baseline's f32 bits differ from those of the ISAs with a fused multiply-add.
#pragma once

#include <stdint.h>
#include <string.h>

namespace edgebert {
namespace EB_ISA {

struct F32x16 {
  float v[16];
};
struct I32x16 {
  int32_t v[16];
};

// Makes x opaque where it is, for loops that are timed; no instruction.
#define EB_KEEP(x) asm volatile("" : "+m"((x).v))

#define EB_LANES for (int i = 0; i < 16; ++i)

inline F32x16 set1(float x) {
  F32x16 r;
  EB_LANES r.v[i] = x;
  return r;
}
inline F32x16 load(const float* p) {
  F32x16 r;
  memcpy(r.v, p, sizeof r.v);
  return r;
}
inline void store(float* p, F32x16 x) { memcpy(p, x.v, sizeof x.v); }
inline F32x16 load_n(const float* p, int n) {
  F32x16 r = set1(0.0f);
  for (int i = 0; i < n; ++i) r.v[i] = p[i];
  return r;
}
inline void store_n(float* p, F32x16 x, int n) {
  for (int i = 0; i < n; ++i) p[i] = x.v[i];
}
inline F32x16 load_s8_n(const int8_t* p, int n) {
  F32x16 r = set1(0.0f);
  for (int i = 0; i < n; ++i) r.v[i] = static_cast<float>(p[i]);
  return r;
}

#define EB_BINARY(name, expression)        \
  inline F32x16 name(F32x16 a, F32x16 b) { \
    F32x16 r;                              \
    EB_LANES r.v[i] = (expression);        \
    return r;                              \
  }
EB_BINARY(add, a.v[i] + b.v[i])
EB_BINARY(sub, a.v[i] - b.v[i])
EB_BINARY(mul, a.v[i] * b.v[i])
EB_BINARY(div, a.v[i] / b.v[i])
EB_BINARY(min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
EB_BINARY(max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
#undef EB_BINARY

inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return add(mul(a, b), c); }
inline F32x16 fnma(F32x16 a, F32x16 b, F32x16 c) { return sub(c, mul(a, b)); }
inline F32x16 abs(F32x16 a) {
  EB_LANES a.v[i] = a.v[i] < 0.0f ? -a.v[i] : a.v[i];
  return a;
}
// Half to even, for |a| < 2**22: adding 1.5 * 2**23 leaves no fraction bits.
inline F32x16 round(F32x16 a) {
  EB_LANES a.v[i] = (a.v[i] + 12582912.0f) - 12582912.0f;
  return a;
}
// x * 2**n for integer n; the result must be a normal number.
inline F32x16 scale_exp2(F32x16 x, F32x16 n) {
  EB_LANES {
    uint32_t bits;
    memcpy(&bits, &x.v[i], 4);
    bits += static_cast<uint32_t>(static_cast<int32_t>(n.v[i])) << 23;
    memcpy(&x.v[i], &bits, 4);
  }
  return x;
}
// The first n lanes of x, `fill` in the others.
inline F32x16 keep_n(F32x16 x, int n, float fill) {
  for (int i = n; i < 16; ++i) x.v[i] = fill;
  return x;
}

// One combining tree on every ISA: lane i with lane i + 8, then + 4, + 2, + 1.
inline float reduce_add(F32x16 x) {
  for (int half = 8; half; half >>= 1)
    for (int i = 0; i < half; ++i) x.v[i] += x.v[i + half];
  return x.v[0];
}
inline float reduce_max(F32x16 x) {
  for (int i = 1; i < 16; ++i)
    if (x.v[i] > x.v[0]) x.v[0] = x.v[i];
  return x.v[0];
}
inline float reduce_min(F32x16 x) {
  for (int i = 1; i < 16; ++i)
    if (x.v[i] < x.v[0]) x.v[0] = x.v[i];
  return x.v[0];
}

inline I32x16 zero_i32() {
  I32x16 r;
  memset(r.v, 0, sizeof r.v);
  return r;
}
inline I32x16 set1_i32(int32_t x) {
  I32x16 r;
  EB_LANES r.v[i] = x;
  return r;
}
inline I32x16 load_i32(const int32_t* p) {
  I32x16 r;
  memcpy(r.v, p, sizeof r.v);
  return r;
}
inline void store_i32(int32_t* p, I32x16 x) { memcpy(p, x.v, sizeof x.v); }
inline I32x16 add_i32(I32x16 a, I32x16 b) {
  EB_LANES a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i]));
  return a;
}
inline I32x16 mul_i32(I32x16 a, I32x16 b) {
  EB_LANES a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) * static_cast<uint32_t>(b.v[i]));
  return a;
}
inline F32x16 to_f32(I32x16 a) {
  F32x16 r;
  EB_LANES r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
// 16 codes: the lanes rounded half to even, clamped to [0, 255], each xor `flip`.
inline void store_codes(uint8_t* p, F32x16 x, uint8_t flip) {
  x = round(x);
  EB_LANES {
    float c = x.v[i] > 0.0f ? x.v[i] : 0.0f;
    p[i] = static_cast<uint8_t>(static_cast<uint8_t>(c < 255.0f ? c : 255.0f) ^ flip);
  }
}

// Lane i: the bytes a, b, c, d of lane i, for integer-valued lanes in [-128, 127].
inline I32x16 combine_s8(F32x16 a, F32x16 b, F32x16 c, F32x16 d) {
  int8_t bytes[64];
  EB_LANES {
    bytes[4 * i] = static_cast<int8_t>(a.v[i]);
    bytes[4 * i + 1] = static_cast<int8_t>(b.v[i]);
    bytes[4 * i + 2] = static_cast<int8_t>(c.v[i]);
    bytes[4 * i + 3] = static_cast<int8_t>(d.v[i]);
  }
  I32x16 r;
  memcpy(r.v, bytes, sizeof r.v);
  return r;
}
// Rounded half to even.
inline I32x16 to_i32(F32x16 a) {
  I32x16 r;
  a = round(a);
  EB_LANES r.v[i] = static_cast<int32_t>(a.v[i]);
  return r;
}

inline void transpose_16x16(F32x16* r) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < i; ++j) {
      float t = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = t;
    }
}
#undef EB_LANES

}  // namespace EB_ISA
}  // namespace edgebert
