// AVX-512 with VNNI: 32 registers of 16 lanes.
#define EB_ISA avx512_vnni
#include "cpu/kernel_table.h"
#include "cpu/simd/dot_vnni.h"

namespace edgebert {
namespace EB_ISA {
constexpr int kDotRows = 6, kDotVectors = 4;
constexpr int kFmaRows = 6, kFmaVectors = 4;
constexpr int kTileRows = 6, kTileVectors = 4;
constexpr int kMathWidth = 6;
}  // namespace EB_ISA
}  // namespace edgebert

#include EB_ISA_BODY
