// AVX2 and FMA without VNNI.
#define EB_ISA avx2
#define EB_IS_BASE
#include "cpu/kernel_table.h"
#include "cpu/simd/dot_avx2.h"

namespace edgebert {
namespace EB_ISA {
constexpr int kDotRows = 4, kDotVectors = 1;
constexpr int kFmaRows = 6, kFmaVectors = 1;
constexpr int kTileRows = 6, kTileVectors = 1;
constexpr int kMathWidth = 2;
}  // namespace EB_ISA
}  // namespace edgebert

#include EB_ISA_BODY
