#include <algorithm>

#include "tasks/scores.h"
#include "tasks/tasks.h"

namespace edgebert::tasks {

const std::vector<float>& TextRows::gather(Session* session, const Inputs& inputs, const Head* head) {
  const auto width = static_cast<size_t>(head->width);
  rows_.assign(static_cast<size_t>(inputs.count) * width, 0.0f);
  heads_.assign(1, head);
  const auto row_of = [&](int32_t index) {
    return rows_.data() + static_cast<size_t>(session->sequence(index).input) * width;
  };
  session->begin(inputs, false);
  while (session->next_chunk()) {
    if (!session->has_windows()) {
      session->run(heads_, [&](int32_t index, const float* const* values) {
        std::copy(values[0], values[0] + width, row_of(index));
      });
      continue;
    }
    session->keep(heads_);
    float num_windows = 0;
    for (int32_t i = 0; i < session->num_sequences(); ++i) {
      const Sequence sequence = session->sequence(i);
      float* row = row_of(i);
      const float* value = session->value(i, 0);
      for (size_t k = 0; k < width; ++k) row[k] += value[k];
      num_windows = sequence.is_first ? 1 : num_windows + 1;
      if (!sequence.is_last) continue;
      for (size_t k = 0; k < width; ++k) row[k] /= num_windows;
    }
  }
  return rows_;
}

eb_embeddings Embedding::run(Session* session, const eb_text* texts, int32_t num_texts,
                             const eb_embed_options& options) {
  session->require_task("eb_embed", "embedding");
  const TextSpec& spec = session->text_spec();
  const Head* head = session->spec().find_head("sentence_embedding");
  if (head == nullptr) fail("this file has hidden states and no pooling: use eb_run");
  std::string_view prompt = spec.default_prompt;
  if (options.prompt != nullptr) {
    prompt = options.prompt;
  } else if (options.prompt_name != nullptr) {
    const auto found = spec.prompts.find(options.prompt_name);
    if (found == spec.prompts.end()) {
      std::string known;
      for (const auto& [name, text] : spec.prompts) known += (known.empty() ? "" : ", ") + name;
      fail("unknown prompt_name '" + std::string(options.prompt_name).substr(0, 100) + "': this file has " +
           (known.empty() ? "none" : known));
    }
    prompt = found->second;
  }
  if (options.width < 0 || options.width > head->width) {
    fail("width is " + std::to_string(options.width) + ", the embeddings have " + std::to_string(head->width) +
         " dimensions");
  }
  const std::vector<float>& rows = rows_.gather(session, {texts, nullptr, num_texts, {}, prompt}, head);
  const auto whole = static_cast<size_t>(head->width);
  const size_t width = options.width > 0 ? static_cast<size_t>(options.width) : whole;
  embeddings_.resize(static_cast<size_t>(num_texts) * width);
  whole_.resize(whole);
  for (size_t i = 0; i < static_cast<size_t>(num_texts); ++i) {
    const float* row = rows.data() + i * whole;
    float* to = embeddings_.data() + i * width;
    if (session->has_windows() && spec.is_normalized) {
      normalize(row, whole, whole_.data());
      row = whole_.data();
    }
    if (options.normalize != 0) {
      normalize(row, width, to);
    } else {
      std::copy(row, row + width, to);
    }
  }
  return {num_texts, static_cast<int32_t>(width), embeddings_.data(), session->is_truncated().data()};
}

}  // namespace edgebert::tasks
