// dot4 without VNNI: codes are stored as s8 (q - 128); maddubs(|a|, sign(b, a)) sums pairs in 16 bits, which
// cannot saturate because weights stay in +-127: 2 * 128 * 127 < 2**15.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "cpu/simd/vec_avx2.h"

namespace edgebert {
namespace EB_ISA {

constexpr uint8_t kCodeFlip = 0x80;  // q xor 0x80, read as s8, is q - 128

struct DotLeft {
  __m256i a, magnitude;
};
inline DotLeft dot_left(const uint8_t* codes) {
  int32_t four;
  __builtin_memcpy(&four, codes, 4);
  const __m256i a = _mm256_set1_epi32(four);
  return {a, _mm256_abs_epi8(a)};
}
inline __m256i dot4(__m256i acc, DotLeft left, __m256i b) {
  const __m256i pairs = _mm256_maddubs_epi16(left.magnitude, _mm256_sign_epi8(b, left.a));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline I32x16 dot4(I32x16 acc, DotLeft left, I32x16 b) { return {dot4(acc.lo, left, b.lo), dot4(acc.hi, left, b.hi)}; }

}  // namespace EB_ISA
}  // namespace edgebert
