// The half type of CUDA, as far as the kernels use it, for the emulator.
#pragma once

#include <stdint.h>
#include <string.h>

struct __half {
  uint16_t bits;
};
struct __half2 {
  __half x, y;
};
inline float __half2float(__half x) {
  _Float16 value;
  memcpy(&value, &x, sizeof(value));
  return static_cast<float>(value);
}
inline __half __float2half_rn(float x) {
  const _Float16 value = static_cast<_Float16>(x);
  __half half;
  memcpy(&half, &value, sizeof(half));
  return half;
}
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
