// The loops that nothing can beat, for one ISA (EB_ISA): dot4 and fma on registers alone, and a sum over memory.
#if defined(EB_IS_BASELINE)
#include "cpu/simd/dot_scalar.h"
#elif defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#include "cpu/simd/dot_vnni.h"
#elif defined(__AVX2__)
#include "cpu/simd/dot_avx2.h"
#else
#include "cpu/simd/dot_neon.h"
#endif
#include "roof_isa.h"

namespace edgebert {
namespace EB_ISA {
namespace {

// As many sums as stay in registers beside the operands: each is a chain of its own, so latency is hidden.
#if defined(__AVX512F__)
constexpr int kSums = 24;
#define EB_KEEP(x) asm volatile("" : "+v"((x).v))
#elif defined(__AVX2__)
#if defined(__AVXVNNI__)
constexpr int kSums = 6;  // two registers each
#else
constexpr int kSums = 4;  // maddubs, sign and the ones want registers too
#endif
#define EB_KEEP(x) asm volatile("" : "+x"((x).lo), "+x"((x).hi))
#elif defined(__aarch64__) && !defined(EB_IS_BASELINE)
constexpr int kSums = 6;  // four registers each
#define EB_KEEP(x) asm volatile("" : "+w"((x).v[0]), "+w"((x).v[1]), "+w"((x).v[2]), "+w"((x).v[3]))
#else
constexpr int kSums = 4;
#define EB_KEEP(x) asm volatile("" : "+m"((x).v))
#endif
constexpr int kFloatSums = kSums < 6 ? 6 : kSums;

// EB_KEEP makes a value opaque and keeps it in a register; it emits no instruction. Without it the compiler would
// compute what does not change once, and fold the loop.
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

extern const RoofLoops loops;
const RoofLoops loops = {run_s8, 128.0 * kSums, run_f32, 32.0 * kFloatSums, read};

}  // namespace EB_ISA
}  // namespace edgebert
