#include "cpu/pack.h"

#include <algorithm>
#include <cstring>

namespace edgebert {
namespace {

size_t num_elements(const TensorView& tensor) {
  size_t n = 1;
  for (int64_t d : tensor.shape) n *= static_cast<size_t>(d);
  return n;
}

template <class T>
const T* copy_padded(const TensorView& tensor, size_t padded, Arena& arena) {
  const size_t count = num_elements(tensor);
  T* out = arena.allocate<T>(padded);
  std::memcpy(out, tensor.data, count * sizeof(T));
  std::fill(out + count, out + padded, T(0));
  return out;
}

// Panels of nr outputs, groups of `group` inputs innermost: [panels][inputs / group][nr][group], zeros in the padding.
template <class T>
const T* pack_panels(const uint8_t* weight, int inputs, int outputs, WeightLayout layout, int nr, int group,
                     Arena& arena) {
  const int panels = (outputs + nr - 1) / nr, steps = (inputs + group - 1) / group;
  T* packed = arena.allocate<T>(static_cast<size_t>(panels) * steps * nr * group);
  const size_t input_stride = layout == WeightLayout::kInputsByOutputs ? outputs : 1;
  const size_t output_stride = layout == WeightLayout::kInputsByOutputs ? 1 : inputs;
  T* out = packed;
  for (int p = 0; p < panels; ++p) {
    const int columns = std::min(nr, outputs - p * nr);
    for (int s = 0; s < steps; ++s, out += static_cast<size_t>(nr) * group) {
      const int rows = std::min(group, inputs - s * group);
      if (columns < nr || rows < group) std::memset(out, 0, sizeof(T) * nr * group);
      for (int g = 0; g < rows; ++g) {
        const uint8_t* from = weight + sizeof(T) * ((static_cast<size_t>(s) * group + g) * input_stride +
                                                    static_cast<size_t>(p) * nr * output_stride);
        for (int c = 0; c < columns; ++c)
          std::memcpy(&out[c * group + g], from + sizeof(T) * c * output_stride, sizeof(T));
      }
    }
  }
  return packed;
}

struct Sizes {
  int inputs, outputs;
};
Sizes sizes_of(const TensorView& weight, WeightLayout layout) {
  const int rows = static_cast<int>(weight.shape[0]), columns = static_cast<int>(weight.shape[1]);
  return layout == WeightLayout::kInputsByOutputs ? Sizes{rows, columns} : Sizes{columns, rows};
}

}  // namespace

PackedLinearU8S8 pack_linear_u8s8(const TensorView& weight, const TensorView& scale, const TensorView& colsum,
                                  const TensorView& bias, WeightLayout layout, int nr, Arena& arena) {
  const Sizes sizes = sizes_of(weight, layout);
  const size_t padded = round_up(sizes.outputs, nr);
  return {pack_panels<int8_t>(weight.data, sizes.inputs, sizes.outputs, layout, nr, 4, arena),
          copy_padded<float>(scale, padded, arena),
          copy_padded<int32_t>(colsum, padded, arena),
          copy_padded<float>(bias, padded, arena),
          sizes.inputs,
          sizes.outputs};
}

PackedLinearF32 pack_linear_f32(const TensorView& weight, const TensorView& bias, WeightLayout layout, int nr,
                                Arena& arena) {
  const Sizes sizes = sizes_of(weight, layout);
  return {pack_panels<float>(weight.data, sizes.inputs, sizes.outputs, layout, nr, 1, arena),
          copy_padded<float>(bias, round_up(sizes.outputs, nr), arena), sizes.inputs, sizes.outputs};
}

const float* copy_f32(const TensorView& tensor, size_t padded, Arena& arena) {
  return copy_padded<float>(tensor, padded, arena);
}

const int8_t* copy_s8(const TensorView& tensor, Arena& arena) {
  return copy_padded<int8_t>(tensor, num_elements(tensor), arena);
}

}  // namespace edgebert
