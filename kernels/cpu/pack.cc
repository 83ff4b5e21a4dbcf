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
  tensor.forget();
  return out;
}

struct Sizes {
  int inputs, outputs;
};
Sizes sizes_of(const TensorView& weight, WeightLayout layout) {
  const int rows = static_cast<int>(weight.shape[0]), columns = static_cast<int>(weight.shape[1]);
  return layout == WeightLayout::kInputsByOutputs ? Sizes{rows, columns} : Sizes{columns, rows};
}

// out[c * kGroup + g] = row g's value c, of `rows` rows that lie `stride` bytes apart.
template <class T, int kGroup>
void interleave(const uint8_t* from, size_t stride, int rows, int columns, T* __restrict out) {
  if constexpr (kGroup == 1) {
    std::memcpy(out, from, columns * sizeof(T));
  } else if (rows == 4) {  // a loop that compilers make vectors of
    static_assert(kGroup == 4 && sizeof(T) == 1);
    const uint8_t *a = from, *b = a + stride, *c = b + stride, *d = c + stride;
    for (int i = 0; i < columns; ++i) {
      out[4 * i] = static_cast<T>(a[i]);
      out[4 * i + 1] = static_cast<T>(b[i]);
      out[4 * i + 2] = static_cast<T>(c[i]);
      out[4 * i + 3] = static_cast<T>(d[i]);
    }
  } else {
    for (int g = 0; g < rows; ++g) {
      for (int i = 0; i < columns; ++i) out[kGroup * i + g] = static_cast<T>(from[g * stride + i]);
    }
  }
}

size_t packed_size(Sizes sizes, int nr, int group) {
  return static_cast<size_t>(round_up(sizes.outputs, nr)) * round_up(sizes.inputs, group);
}

// Panels of nr outputs, groups of kGroup inputs innermost: [panels][inputs / kGroup][nr][kGroup], zeros in the padding.
template <class T, int kGroup>
T* pack_panels(const TensorView& weight, WeightLayout layout, int nr, Arena& arena) {
  const Sizes sizes = sizes_of(weight, layout);
  const int panels = (sizes.outputs + nr - 1) / nr, steps = (sizes.inputs + kGroup - 1) / kGroup;
  T* packed = arena.allocate<T>(packed_size(sizes, nr, kGroup));
  T* out = packed;
  const size_t row_bytes = sizeof(T) * static_cast<size_t>(weight.shape[1]);
  for (int p = 0; p < panels; ++p) {
    const int columns = std::min(nr, sizes.outputs - p * nr);
    for (int s = 0; s < steps; ++s, out += static_cast<size_t>(nr) * kGroup) {
      const int rows = std::min(kGroup, sizes.inputs - s * kGroup);
      if (columns < nr || rows < kGroup) std::memset(out, 0, sizeof(T) * nr * kGroup);
      const size_t input = static_cast<size_t>(s) * kGroup, output = static_cast<size_t>(p) * nr;
      if (layout == WeightLayout::kInputsByOutputs) {
        interleave<T, kGroup>(weight.data + input * row_bytes + output * sizeof(T), row_bytes, rows, columns, out);
      } else {
        for (int c = 0; c < columns; ++c)
          std::memcpy(out + c * kGroup, weight.data + (output + c) * row_bytes + input * sizeof(T), sizeof(T) * rows);
      }
    }
  }
  weight.forget();
  return packed;
}

}  // namespace

PackedLinearU8S8 pack_linear_u8s8(const TensorView& weight, const TensorView& scale, const TensorView& colsum,
                                  const TensorView& bias, WeightLayout layout, int nr, uint8_t narrow_offset,
                                  Arena& arena) {
  const Sizes sizes = sizes_of(weight, layout);
  const size_t padded = round_up(sizes.outputs, nr);
  const auto codes = reinterpret_cast<const int8_t*>(weight.data);
  const bool is_narrow = narrow_offset > 0 && std::all_of(codes, codes + weight.num_bytes,
                                                          [](int8_t code) { return code >= -63 && code <= 63; });
  int8_t* const packed = pack_panels<int8_t, 4>(weight, layout, nr, arena);
  const int offset = is_narrow ? narrow_offset : 0;
  for (size_t i = 0; is_narrow && i < packed_size(sizes, nr, 4); ++i)
    packed[i] = static_cast<int8_t>(packed[i] + offset);
  return {packed,
          copy_padded<float>(scale, padded, arena),
          copy_padded<int32_t>(colsum, padded, arena),
          copy_padded<float>(bias, padded, arena),
          sizes.inputs,
          sizes.outputs,
          offset};
}

PackedLinearF32 pack_linear_f32(const TensorView& weight, const TensorView& bias, WeightLayout layout, int nr,
                                Arena& arena) {
  const Sizes sizes = sizes_of(weight, layout);
  return {pack_panels<float, 1>(weight, layout, nr, arena),
          copy_padded<float>(bias, round_up(sizes.outputs, nr), arena), sizes.inputs, sizes.outputs};
}

const float* copy_f32(const TensorView& tensor, size_t padded, Arena& arena) {
  return copy_padded<float>(tensor, padded, arena);
}

const int8_t* copy_s8(const TensorView& tensor, Arena& arena) {
  return copy_padded<int8_t>(tensor, num_elements(tensor), arena);
}

}  // namespace edgebert
