// ModelFile: an EdgeBERT model file in memory, verified; the spec and the weights are views of its bytes.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "format/encoder_spec.h"
#include "format/encoder_weights.h"

namespace edgebert {

// A whole file, mapped read-only for as long as the object lives.
class MappedFile {
 public:
  // Throws Error(EB_MODEL_FORMAT) if the path is not a readable file with at least one byte.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view bytes() const { return {data_, size_}; }

 private:
  const char* data_ = nullptr;
  size_t size_ = 0;
};

struct ModelFile {
  EncoderSpec spec;
  EncoderWeights weights;
  std::string_view tokenizer_json;  // nothing for a file that takes token ids alone
};

// Parses the bytes, verifies the graph hash, and checks every weight against the spec. Weights and tokenizer point into
// `bytes`. Throws Error(EB_MODEL_FORMAT or EB_UNSUPPORTED).
ModelFile read_model_file(std::string_view bytes);

}  // namespace edgebert
