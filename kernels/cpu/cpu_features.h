// What this CPU and its OS can run, and how many CPUs this process may use.
#pragma once

namespace edgebert {

struct CpuFeatures {
  bool avx2 = false;          // AVX2 and FMA, and the OS saves 256-bit registers
  bool avx_vnni = false;      // AVX2 and AVX-VNNI (256-bit vpdpbusd, VEX)
  bool avx512_vnni = false;   // AVX-512 F, BW, DQ, VL and VNNI, and the OS saves 512-bit registers
  bool neon = false;          // 64-bit Arm, all of which has it
  bool neon_dotprod = false;  // with sdot (Armv8.2's dot product)
};

const CpuFeatures& cpu_features();

// CPUs in this process's affinity mask, cut to its cgroup's CPU quota (v1 and v2, rounded up), at least 1.
int usable_cpus();

}  // namespace edgebert
