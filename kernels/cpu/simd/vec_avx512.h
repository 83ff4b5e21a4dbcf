// F32x16 and I32x16 as one 512-bit register (AVX-512 F, BW, DQ, VL).
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace edgebert {
namespace EB_ISA {

struct F32x16 {
  __m512 v;
};
struct I32x16 {
  __m512i v;
};

// Makes x opaque where it is, for loops that are timed; no instruction.
#define EB_KEEP(x) asm volatile("" : "+v"((x).v))

inline __mmask16 mask_n(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline F32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F32x16 x) { _mm512_storeu_ps(p, x.v); }
inline F32x16 load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(mask_n(n), p)}; }
inline void store_n(float* p, F32x16 x, int n) { _mm512_mask_storeu_ps(p, mask_n(n), x.v); }
inline F32x16 load_s8_n(const int8_t* p, int n) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask_n(n), p)))};
}

inline F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// c - a * b
inline F32x16 fnma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline F32x16 round(F32x16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// x * 2**n for integer n; the result must be a normal number.
inline F32x16 scale_exp2(F32x16 x, F32x16 n) { return {_mm512_scalef_ps(x.v, n.v)}; }
// The first n lanes of x, `fill` in the others.
inline F32x16 keep_n(F32x16 x, int n, float fill) { return {_mm512_mask_mov_ps(_mm512_set1_ps(fill), mask_n(n), x.v)}; }

// One combining tree on every ISA: lane i with lane i + 8, then + 4, + 2, + 1.
inline float reduce_add(F32x16 x) {
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
inline float reduce_max(F32x16 x) { return _mm512_reduce_max_ps(x.v); }
inline float reduce_min(F32x16 x) { return _mm512_reduce_min_ps(x.v); }

inline I32x16 zero_i32() { return {_mm512_setzero_si512()}; }
inline I32x16 set1_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I32x16 load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_i32(int32_t* p, I32x16 x) { _mm512_storeu_si512(p, x.v); }
inline I32x16 add_i32(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32x16 mul_i32(I32x16 a, I32x16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline F32x16 to_f32(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }

// 16 codes: the lanes rounded half to even, clamped to [0, 255], each xor `flip`.
inline void store_codes(uint8_t* p, F32x16 x, uint8_t flip) {
  const __m512i codes = _mm512_max_epi32(_mm512_cvtps_epi32(x.v), _mm512_setzero_si512());
  const __m128i bytes = _mm512_cvtusepi32_epi8(codes);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_xor_si128(bytes, _mm_set1_epi8(static_cast<char>(flip))));
}

// Lane i: the bytes a, b, c, d of lane i, for integer-valued lanes in [-128, 127].
inline I32x16 combine_s8(F32x16 a, F32x16 b, F32x16 c, F32x16 d) {
  const __m512i byte = _mm512_set1_epi32(0xFF);
  const __m512i ia = _mm512_and_si512(_mm512_cvtps_epi32(a.v), byte);
  const __m512i ib = _mm512_slli_epi32(_mm512_and_si512(_mm512_cvtps_epi32(b.v), byte), 8);
  const __m512i ic = _mm512_slli_epi32(_mm512_and_si512(_mm512_cvtps_epi32(c.v), byte), 16);
  const __m512i id = _mm512_slli_epi32(_mm512_cvtps_epi32(d.v), 24);
  return {_mm512_or_si512(_mm512_or_si512(ia, ib), _mm512_or_si512(ic, id))};
}
inline I32x16 to_i32(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }

inline void transpose_16x16(F32x16* r) {
  __m512 t[16], s[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
  // s[4 g + j]: in quarter q, column 4 q + j of rows 4 g .. 4 g + 3
  for (int g = 0; g < 4; ++g) {
    s[4 * g] = _mm512_shuffle_ps(t[4 * g], t[4 * g + 2], 0x44);
    s[4 * g + 1] = _mm512_shuffle_ps(t[4 * g], t[4 * g + 2], 0xEE);
    s[4 * g + 2] = _mm512_shuffle_ps(t[4 * g + 1], t[4 * g + 3], 0x44);
    s[4 * g + 3] = _mm512_shuffle_ps(t[4 * g + 1], t[4 * g + 3], 0xEE);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 lo = _mm512_shuffle_f32x4(s[j], s[4 + j], 0x88);  // quarters 0, 2 of row groups 0, 1
    const __m512 lo2 = _mm512_shuffle_f32x4(s[8 + j], s[12 + j], 0x88);
    const __m512 hi = _mm512_shuffle_f32x4(s[j], s[4 + j], 0xDD);  // quarters 1, 3
    const __m512 hi2 = _mm512_shuffle_f32x4(s[8 + j], s[12 + j], 0xDD);
    r[j].v = _mm512_shuffle_f32x4(lo, lo2, 0x88);
    r[4 + j].v = _mm512_shuffle_f32x4(hi, hi2, 0x88);
    r[8 + j].v = _mm512_shuffle_f32x4(lo, lo2, 0xDD);
    r[12 + j].v = _mm512_shuffle_f32x4(hi, hi2, 0xDD);
  }
}

}  // namespace EB_ISA
}  // namespace edgebert
