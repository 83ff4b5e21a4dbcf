// What this CPU and its OS can run.
#pragma once

namespace edgebert {

// For each instruction set of isas.inc, whether the CPU has it and the operating system saves its registers.
struct CpuFeatures {
#define EB_ISA_ENTRY(name, processors, flags) bool name = false;
#include "cpu/isas.inc"
#undef EB_ISA_ENTRY
};

const CpuFeatures& cpu_features();

}  // namespace edgebert
