// AVX2 with AVX-VNNI (256 bit): 16 registers of 8 lanes.
#define EB_ISA avx_vnni
#define EB_BASE_ISA avx2
#include "cpu/kernel_table.h"
#include "cpu/simd/dot_vnni.h"

namespace edgebert {
namespace EB_ISA {
constexpr int kDotRows = 6, kDotVectors = 1;
constexpr int kFmaRows = 6, kFmaVectors = 1;
constexpr int kTileRows = 6, kTileVectors = 1;
constexpr int kMathWidth = 2;
}  // namespace EB_ISA
}  // namespace edgebert

#include EB_ISA_BODY
