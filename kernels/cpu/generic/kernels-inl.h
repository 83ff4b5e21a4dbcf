// Everything an isa/*.cc exports: the generic kernels and the table made of them. Expects EB_ISA, a vec_*.h, a dot_*.h
// and the tile sizes kDotRows x kDotVectors, kFmaRows x kFmaVectors, kTileRows x kTileVectors, and kMathWidth. An ISA
// that differs from another in its dot product alone names it as EB_BASE_ISA, and that one defines EB_IS_BASE: the
// other kernels are then linked once.
#pragma once

#include "cpu/generic/attention_varlen-inl.h"
#include "cpu/generic/attention_varlen_u8s8-inl.h"
#include "cpu/generic/linear-inl.h"
#include "cpu/generic/math-inl.h"
#include "cpu/generic/rows-inl.h"

#define EB_STRING_OF(x) #x
#define EB_STRING(x) EB_STRING_OF(x)

#ifndef EB_BASE_ISA
#define EB_BASE_ISA EB_ISA
#endif

namespace edgebert {
namespace EB_BASE_ISA {
#define EB_KERNEL(name, arguments) void name arguments;
#include "cpu/kernels.inc"
#undef EB_KERNEL
}  // namespace EB_BASE_ISA

namespace EB_ISA {

static_assert(kTileRows <= kAttentionRows, "attention_scratch() is too small for the query tile");

extern const KernelTable kTable;
const KernelTable kTable = {
    EB_STRING(EB_ISA), 16 * kDotVectors, 16 * kFmaVectors, kCodeFlip, kNarrowOffset,
#define EB_DOT_KERNEL(name, arguments) &name,
#define EB_KERNEL(name, arguments) &EB_BASE_ISA::name,
#include "cpu/kernels.inc"
#undef EB_KERNEL
};

}  // namespace EB_ISA
}  // namespace edgebert
