// ModelFile: an EdgeBERT model file in memory, verified; the spec and the weights are views of its bytes.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/platform.h"
#include "format/encoder_spec.h"
#include "format/encoder_weights.h"

namespace edgebert {

struct ModelFile {
  EncoderSpec spec;
  EncoderWeights weights;
  std::string_view tokenizer_json;  // nothing for a file that takes token ids alone
};

// Parses the bytes, verifies the graph hash, and checks every weight against the spec. Weights and tokenizer point into
// `bytes`, and where these are of a file that the engine has mapped, weights may be forgotten. Throws
// Error(EB_MODEL_FORMAT or EB_UNSUPPORTED).
ModelFile read_model_file(std::string_view bytes, const MappedFile* file = nullptr);

}  // namespace edgebert
