// Lays a file's linears out in the panels that a KernelTable's linear kernels read.
#pragma once

#include "base/arena.h"
#include "cpu/kernel_table.h"
#include "format/encoder_weights.h"

namespace edgebert {

// The weight's layout in the file: [inputs, outputs], or [outputs, inputs] for the tied decoder, which is the word
// table.
enum class WeightLayout { kInputsByOutputs, kOutputsByInputs };

// `narrow_offset` is the table's.
PackedLinearU8S8 pack_linear_u8s8(const TensorView& weight, const TensorView& scale, const TensorView& colsum,
                                  const TensorView& bias, WeightLayout layout, int nr, uint8_t narrow_offset,
                                  Arena& arena);
PackedLinearF32 pack_linear_f32(const TensorView& weight, const TensorView& bias, WeightLayout layout, int nr,
                                Arena& arena);

// An aligned copy, padded with zeros to `padded` elements.
const float* copy_f32(const TensorView& tensor, size_t padded, Arena& arena);
const int8_t* copy_s8(const TensorView& tensor, Arena& arena);

}  // namespace edgebert
