// dot4 by vpdpbusd: lane i of acc += sum over 4 of u8 a * s8 b, in 512 or 256 bits (EVEX or VEX).
#pragma once

#include <immintrin.h>
#include <stdint.h>

#if defined(__AVX512VNNI__)
#include "cpu/simd/vec_avx512.h"
#else
#include "cpu/simd/vec_avx2.h"
#endif

namespace edgebert {
namespace EB_ISA {

constexpr uint8_t kCodeFlip = 0;  // codes are stored as u8, as they are

struct DotLeft {
  I32x16 a;
};
inline DotLeft dot_left(const uint8_t* codes) {
  int32_t four;
  __builtin_memcpy(&four, codes, 4);
  return {set1_i32(four)};
}
#if defined(__AVX512VNNI__)
inline I32x16 dot4(I32x16 acc, DotLeft left, I32x16 b) { return {_mm512_dpbusd_epi32(acc.v, left.a.v, b.v)}; }
#else
inline I32x16 dot4(I32x16 acc, DotLeft left, I32x16 b) {
  return {_mm256_dpbusd_avx_epi32(acc.lo, left.a.lo, b.lo), _mm256_dpbusd_avx_epi32(acc.hi, left.a.hi, b.hi)};
}
#endif

}  // namespace EB_ISA
}  // namespace edgebert
