// WebAssembly's relaxed SIMD: a dot product of bytes, of weights in +-63 alone. Its other relaxed instructions give
// other bits on other machines, and are not used.
#define EB_ISA wasm_relaxed_simd
#define EB_BASE_ISA wasm_simd128
#include "cpu/kernel_table.h"
#include "cpu/simd/dot_wasm.h"

namespace edgebert {
namespace EB_ISA {
constexpr int kDotRows = 4, kDotVectors = 1;
constexpr int kFmaRows = 3, kFmaVectors = 1;
constexpr int kTileRows = 3, kTileVectors = 1;
constexpr int kMathWidth = 1;
}  // namespace EB_ISA
}  // namespace edgebert

#include EB_ISA_BODY
