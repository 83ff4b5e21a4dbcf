// What a model's handle holds, for the rooms above: the encoder, and what the tasks made of the file.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "edgebert.h"
#include "engine/encoder.h"

namespace edgebert {

class TextPart {
 public:
  virtual ~TextPart() = default;
};

// Linked from tasks/. A tokenizer that is not understood is no reason for it to throw: whoever asks for it is told.
std::unique_ptr<TextPart> make_text_part(const EncoderSpec& spec, std::string_view tokenizer_json);

// eb_run without its guard: throws Error.
void run_checked(eb_model& model, const eb_batch& batch, eb_output* outputs, int32_t num_outputs);

}  // namespace edgebert

struct eb_model {
  std::unique_ptr<edgebert::Encoder> encoder;
  std::unique_ptr<edgebert::TextPart> text_part;  // nullptr: ids only
};
