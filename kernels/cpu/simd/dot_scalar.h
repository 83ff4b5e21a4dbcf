// dot4 in plain C++.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cpu/simd/vec_scalar.h"

namespace edgebert {
namespace EB_ISA {

constexpr uint8_t kCodeFlip = 0;

struct DotLeft {
  int32_t a[4];
};
inline DotLeft dot_left(const uint8_t* codes) { return {{codes[0], codes[1], codes[2], codes[3]}}; }
inline I32x16 dot4(I32x16 acc, DotLeft left, I32x16 b) {
  int8_t w[64];
  memcpy(w, b.v, 64);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 4; ++j) acc.v[i] += left.a[j] * w[4 * i + j];
  return acc;
}

}  // namespace EB_ISA
}  // namespace edgebert
