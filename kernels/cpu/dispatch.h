// Chooses the kernel table of an ISA by name; the order of isas.inc is the order of preference.
#pragma once

#include "cpu/kernel_table.h"

namespace edgebert {

// `isa` nullptr or "": the environment's EDGEBERT_FORCE_ISA if set, else the first usable one.
// Throws Error(EB_UNAVAILABLE): an unknown name, one that this build lacks, and one that this CPU lacks are
// different messages.
const KernelTable& select_kernels(const char* isa);

// Comma-separated names, best first.
const char* built_isas();
const char* usable_isas();

}  // namespace edgebert
