// WebAssembly's SIMD: 16 registers of 4 lanes where x86 runs it.
#define EB_ISA wasm_simd128
#define EB_IS_BASE
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
