// The loops that nothing can beat: dot4 and fma on registers alone, and a sum over memory. A cpu/isa/*.cc compiled with
// this instead of the kernels gives the loops of that ISA.
#pragma once

#include "roof/loops.h"

namespace edgebert {
namespace EB_ISA {
namespace {

// As many sums as the kernels' tiles have, which stay in registers beside the operands: each is a chain of its own, so
// latency is hidden.
constexpr int kSums = kDotRows * kDotVectors, kFloatSums = kFmaRows * kFmaVectors;

// EB_KEEP, of the vector header, makes a value opaque and keeps it in a register; it emits no instruction. Without it
// the compiler would compute what does not change once, and fold the loop.
void run_s8(int steps) {
  const uint8_t codes[64] = {1, 2, 3, 4};
  const DotLeft left = dot_left(codes);
  I32x16 weights = set1_i32(0x01020304);
  I32x16 sums[kSums];
#pragma GCC unroll 32
  for (int j = 0; j < kSums; ++j) sums[j] = zero_i32();
  for (int i = 0; i < steps; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kSums; ++j) {
      EB_KEEP(weights);
      sums[j] = dot4(sums[j], left, weights);
      EB_KEEP(sums[j]);
    }
  }
}

void run_f32(int steps) {
  F32x16 x = set1(1.0f);
  const F32x16 y = set1(0x1p-20f);
  F32x16 sums[kFloatSums];
#pragma GCC unroll 32
  for (int j = 0; j < kFloatSums; ++j) sums[j] = set1(0.0f);
  for (int i = 0; i < steps; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kFloatSums; ++j) {
      EB_KEEP(x);
      sums[j] = fma(x, y, sums[j]);
      EB_KEEP(sums[j]);
    }
  }
}

void read(const int32_t* data, size_t size) {
  I32x16 sums[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) sums[j] = zero_i32();
  for (size_t i = 0; i + 64 <= size; i += 64)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sums[j] = add_i32(sums[j], load_i32(data + i + 16 * j));
      EB_KEEP(sums[j]);
    }
}

}  // namespace

extern const RoofLoops kLoops;
const RoofLoops kLoops = {run_s8, 128.0 * kSums, run_f32, 32.0 * kFloatSums, read};

}  // namespace EB_ISA
}  // namespace edgebert
