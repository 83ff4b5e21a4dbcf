// EncoderWeights: views of a model file's tensors by canonical name, each checked against the spec, and of what is
// computed from them.
// The Python twin of the list of names and shapes is edgebert/artifact/names.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/platform.h"
#include "base/status.h"
#include "format/encoder_spec.h"

namespace edgebert {

enum class DType { kF32, kS8, kS32 };

// Bytes of a tensor inside the file. The data may be unaligned: read it with memcpy or unaligned loads.
struct TensorView {
  const uint8_t* data = nullptr;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  size_t num_bytes = 0;
  const MappedFile* file = nullptr;  // that the bytes are mapped from, if it is the engine's

  // After the bytes were read, if they are many: they stay valid.
  void forget() const {
    constexpr size_t kMany = 1 << 16;
    if (file != nullptr && num_bytes >= kMany) file->forget();
  }
};

class EncoderWeights {
 public:
  // Checks that `tensors` and the metadata `edgebert.exits` hold exactly the weights that names.py lists for `spec`,
  // each with the right dtype, shape and byte count; throws Error(EB_MODEL_FORMAT) otherwise. Sums that the file leaves
  // out are added.
  EncoderWeights(const EncoderSpec& spec, std::unordered_map<std::string, TensorView> tensors, std::string_view exits);
  EncoderWeights(EncoderWeights&&) = default;  // a copy's views would be of the original's sums

  // nullptr if the spec has no such tensor.
  const TensorView* find(const std::string& name) const {
    auto it = tensors_.find(name);
    return it == tensors_.end() ? nullptr : &it->second;
  }
  // Of all tensors, each with room to be aligned.
  size_t num_bytes() const;

 private:
  std::unordered_map<std::string, TensorView> tensors_;
  std::vector<std::vector<int32_t>> sums_;  // of a weight-only file's codes
  std::vector<uint8_t> exits_;              // weights of the exits' heads, one after the other
};

}  // namespace edgebert
