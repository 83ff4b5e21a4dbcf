// dot4 on codes stored as s8 (q - 128): by sdot where there is one, else by products of 16 bits, two of which cannot
// overflow because weights stay in +-127: 2 * 128 * 127 < 2**15.
#pragma once

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "cpu/simd/vec_neon.h"

namespace edgebert {
namespace EB_ISA {

constexpr uint8_t kCodeFlip = 0x80;  // q xor 0x80, read as s8, is q - 128

struct DotLeft {
  int8x16_t a;
};
inline DotLeft dot_left(const uint8_t* codes) {
  int32_t four;
  memcpy(&four, codes, 4);
  return {vreinterpretq_s8_s32(vdupq_n_s32(four))};
}
inline int32x4_t dot4(int32x4_t acc, int8x16_t a, int8x16_t b) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(acc, a, b);
#else
  return vpadalq_s16(acc, vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b)));
#endif
}
inline I32x16 dot4(I32x16 acc, DotLeft left, I32x16 b) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) acc.v[i] = dot4(acc.v[i], left.a, vreinterpretq_s8_s32(b.v[i]));
  return acc;
}

}  // namespace EB_ISA
}  // namespace edgebert
