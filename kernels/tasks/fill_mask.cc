#include <algorithm>

#include "tasks/scores.h"
#include "tasks/tasks.h"

namespace edgebert::tasks {

eb_fills FillMask::run(Session* session, const eb_text* texts, int32_t num_texts, const eb_fill_options& options) {
  session->require_task("eb_fill_mask", "fill-mask", "pretraining");
  if (options.top_k < 0) fail("top_k is negative");
  const int32_t mask_id = session->text_model().mask_id;
  if (mask_id < 0) fail("the file's tokenizer has no mask token, neither [MASK] nor <mask>");
  if (mask_id >= session->spec().vocab_size) fail("the model has no row for the mask token");
  const auto vocab_size = static_cast<size_t>(session->spec().vocab_size);
  const size_t top_k = std::min(vocab_size, static_cast<size_t>(options.top_k > 0 ? options.top_k : 5));
  heads_.assign(1, &session->spec().heads.front());
  bounds_.assign(1, 0);
  tokens_.clear();
  best_scores_.clear();
  session->begin({texts, nullptr, num_texts, {}}, true);
  while (session->next_chunk()) {
    session->choose_tokens(mask_id);
    first_masks_.clear();
    int32_t num_masks = bounds_.back();
    for (int32_t i = 0; i < session->num_sequences(); ++i) {
      const Sequence sequence = session->sequence(i);
      first_masks_.push_back(num_masks);
      num_masks += session->num_chosen(i);
      if (!sequence.is_last) continue;
      if (num_masks == bounds_.back()) {
        const bool is_cut = session->is_truncated()[static_cast<size_t>(sequence.input)] != 0;
        fail("text " + std::to_string(sequence.input) + " has no mask token" +
             (is_cut ? ", it is in what was cut off: use EB_LONG_WINDOWS" : ""));
      }
      bounds_.push_back(num_masks);
    }
    tokens_.resize(static_cast<size_t>(num_masks) * top_k);
    best_scores_.resize(tokens_.size());
    session->run(heads_, [&](int32_t index, const float* const* values) {
      const auto first = static_cast<size_t>(first_masks_[static_cast<size_t>(index)]);
      for (size_t k = 0; k < static_cast<size_t>(session->num_chosen(index)); ++k) {
        scores_.resize(vocab_size);
        softmax(values[0] + k * vocab_size, vocab_size, scores_.data(), &powers_);
        order_.resize(vocab_size);
        for (size_t id = 0; id < vocab_size; ++id) order_[id] = static_cast<int32_t>(id);
        std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(top_k), order_.end(),
                          [&](int32_t a, int32_t b) {
                            const float x = scores_[static_cast<size_t>(a)], y = scores_[static_cast<size_t>(b)];
                            return is_before(x, y) || (!is_before(y, x) && a < b);
                          });
        for (size_t j = 0; j < top_k; ++j) {
          tokens_[(first + k) * top_k + j] = order_[j];
          best_scores_[(first + k) * top_k + j] = scores_[static_cast<size_t>(order_[j])];
        }
      }
    });
  }
  return {num_texts,      static_cast<int32_t>(top_k), bounds_.data(),
          tokens_.data(), best_scores_.data(),         session->is_truncated().data()};
}

}  // namespace edgebert::tasks
