// Plain C++ for any CPU.
#define EB_ISA baseline
#include "cpu/kernel_table.h"
#include "cpu/simd/dot_scalar.h"

namespace edgebert {
namespace EB_ISA {
constexpr int kDotRows = 4, kDotVectors = 1;
constexpr int kFmaRows = 4, kFmaVectors = 1;
constexpr int kTileRows = 4, kTileVectors = 1;
constexpr int kMathWidth = 1;
}  // namespace EB_ISA
}  // namespace edgebert

#include EB_ISA_BODY
