// TextModel: what the tasks made of a model's file: its tokenizer, and what they ask of it. Shared by all sessions.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "engine/model.h"
#include "text/handle.h"

namespace edgebert::tasks {

struct TextModel : TextPart {
  TextModel(const EncoderSpec& spec, std::string_view tokenizer_json);

  std::unique_ptr<const eb_tokenizer> tokenizer;  // nullptr: none that can be used, and
  eb_status refusal = EB_OK;                      // why
  std::string reason;

  int32_t mask_id = -1;  // of the token that stands for one to be filled in; -1: none
};

// The one of a model. Throws Error where it has none that can be used.
const TextModel& text_model_of(const eb_model& model);

}  // namespace edgebert::tasks
