#include "tasks/text_model.h"

#include "base/status.h"

namespace edgebert {

std::unique_ptr<TextPart> make_text_part(const EncoderSpec& spec, std::string_view tokenizer_json) {
  return std::make_unique<tasks::TextModel>(spec, tokenizer_json);
}

namespace tasks {

TextModel::TextModel(const EncoderSpec& spec, std::string_view tokenizer_json) {
  if (tokenizer_json.empty()) {
    refusal = EB_UNSUPPORTED;
    reason = "this file has no tokenizer, it takes token ids: use eb_run";
    return;
  }
  try {
    tokenizer = std::make_unique<const eb_tokenizer>(tokenizer_json);
  } catch (const Error& error) {
    refusal = error.status();
    reason = std::string("the file's tokenizer: ") + error.what();
    return;
  }
  const std::string& mask = spec.text.mask_token;
  mask_id = tokenizer->tokenizer.find(mask.empty() ? "[MASK]" : mask);
  if (mask_id < 0 && mask.empty()) mask_id = tokenizer->tokenizer.find("<mask>");
}

const TextModel& text_model_of(const eb_model& model) {
  if (model.text_part == nullptr) {
    throw Error(EB_INVALID_INPUT, "the model was loaded with ids_only: load it without, for texts");
  }
  const auto& found = static_cast<const TextModel&>(*model.text_part);
  if (found.tokenizer == nullptr) throw Error(found.refusal, found.reason);
  return found;
}

}  // namespace tasks
}  // namespace edgebert
