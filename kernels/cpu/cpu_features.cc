#include "cpu/cpu_features.h"

#include "base/platform.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace edgebert {
namespace {

CpuFeatures detect() {
  CpuFeatures f;
  f.baseline = true;
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool has_fma = c & (1u << 12), has_osxsave = c & (1u << 27);
  if (!has_osxsave) return f;
  unsigned xcr0, high;
  __asm__("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
  const bool os_saves_256 = (xcr0 & 0x06) == 0x06, os_saves_512 = (xcr0 & 0xE6) == 0xE6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  const unsigned max_subleaf = a;
  f.avx2 = os_saves_256 && has_fma && (b & (1u << 5));
  const bool has_avx512 = (b & (1u << 16)) && (b & (1u << 17)) && (b & (1u << 30)) && (b & (1u << 31));  // F DQ BW VL
  f.avx512_vnni = f.avx2 && os_saves_512 && has_avx512 && (c & (1u << 11));
  if (max_subleaf >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) f.avx_vnni = f.avx2 && (a & (1u << 4));
#elif defined(__aarch64__)
  f.neon = true;  // all of 64-bit Arm has it
  f.neon_dotprod = has_arm_dot_product();
#elif defined(__wasm__)
  f.wasm_simd128 = f.wasm_relaxed_simd = true;  // or the binary would not have been loaded
#endif
  return f;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace edgebert
