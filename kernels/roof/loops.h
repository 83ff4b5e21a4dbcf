// RoofLoops: what roof.cc times, one set an ISA (loops-inl.h).
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace edgebert {

struct RoofLoops {
  void (*run_s8)(int steps);
  double s8_ops;  // operations of a step: two for each u8 * s8 product
  void (*run_f32)(int steps);
  double f32_ops;  // operations of a step: two for each fused multiply-add
  void (*read)(const int32_t* data, size_t size);
};

}  // namespace edgebert
