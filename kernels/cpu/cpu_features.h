// What this CPU and its OS can run, and how many CPUs this process may use.
#pragma once

namespace edgebert {

// For each instruction set of isas.inc, whether the CPU has it and the operating system saves its registers.
struct CpuFeatures {
#define EB_ISA_ENTRY(name, processors, flags) bool name = false;
#include "cpu/isas.inc"
#undef EB_ISA_ENTRY
};

const CpuFeatures& cpu_features();

// CPUs in this process's affinity mask, cut to its cgroup's CPU quota (v1 and v2, rounded up), at least 1.
int usable_cpus();

}  // namespace edgebert
