// NEON of any 64-bit Arm: 32 registers of 4 lanes.
#define EB_ISA neon
#define EB_IS_BASE
#include "cpu/kernel_table.h"
#include "cpu/simd/dot_neon.h"

namespace edgebert {
namespace EB_ISA {
constexpr int kDotRows = 5, kDotVectors = 1;
constexpr int kFmaRows = 5, kFmaVectors = 1;
constexpr int kTileRows = 5, kTileVectors = 1;
constexpr int kMathWidth = 2;
}  // namespace EB_ISA
}  // namespace edgebert

#include EB_ISA_BODY
