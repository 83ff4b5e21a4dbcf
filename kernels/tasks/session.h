// Session: texts to rows of tokens, in chunks that bound memory; rows through the model in micro-batches. Tasks decode.
//
// The twin of edgebert/runner.py and of what edgebert/tasks/base.py shares. All memory is kept between calls.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/api_guard.h"
#include "edgebert.h"
#include "engine/model.h"
#include "tasks/text_model.h"
#include "text/rows.h"

namespace edgebert::tasks {

// What a call is given: `second` may be nullptr. A text is `prefix` and first[i].
struct Inputs {
  const eb_text* first;
  const eb_text* second;
  int32_t count;
  text::RowNames names;  // with has_one_first `first` is one text, of every pair
  std::string_view prefix = {};
};

// A row of tokens, or a window of one.
struct Sequence {
  int32_t input;           // of the call
  bool is_first, is_last;  // of the input's
  int32_t size;
  const int32_t* ids;
  int32_t first, count;            // the last text's tokens
  const int32_t* offsets;          // [count, 2], in bytes of that text
  const int32_t* words;            // [count]
  int32_t owned_begin, owned_end;  // among `count`
};

std::string_view view(const eb_text& text);

class Session {
 public:
  Session(eb_model* model, const eb_session_options& options);

  const EncoderSpec& spec() const { return model_->encoder->spec(); }
  const TextSpec& text_spec() const { return spec().text; }
  const TextModel& text_model() const { return text_model_; }
  const eb_session_options& options() const { return options_; }
  void cancel(bool is_cancelled) { is_cancelled_.store(is_cancelled, std::memory_order_relaxed); }

  // Throws Error(EB_INVALID_INPUT) if the file's head is not of one of the two tasks.
  void require_task(const char* call, std::string_view task, std::string_view other = "") const;
  bool has_windows() const { return tokenize_options_.long_texts == EB_LONG_WINDOWS; }

  // A call: begin(), then while next_chunk() gives more, run() or keep(), and the chunk's sequences in their order.
  void begin(const Inputs& inputs, bool has_offsets);
  bool next_chunk();
  int32_t num_sequences() const { return tokens_->num_sequences; }
  Sequence sequence(int32_t index) const;

  // Runs the chunk and calls take(index, values), in any order: of each sequence, for each output the row, or the rows
  // of its tokens. With `output_tokens` these are of the chosen tokens alone: choose(index, &places) appends them; of a
  // sequence that chooses none nothing is run.
  template <class Take>
  void run(const std::vector<const Head*>& heads, const Take& take) {
    start_run(heads);
    while (run_batch()) give(take);
  }
  // Runs it and keeps the values: value(index, output).
  void keep(const std::vector<const Head*>& heads);
  const float* value(int32_t index, size_t output) const {
    return kept_[output].data() + kept_bounds_[output][static_cast<size_t>(index)];
  }
  // For fill-mask: the places of `token`, each where it has most around it, are the output tokens.
  void choose_tokens(int32_t token);
  int32_t num_chosen(int32_t index) const;

  const std::vector<uint8_t>& is_truncated() const { return is_truncated_; }

 private:
  void copy_text(const eb_text& text, int32_t index, size_t place);
  void check_tokens() const;
  void start_run(const std::vector<const Head*>& heads);
  bool run_batch();
  template <class Take>
  void give(const Take& take) {
    for (size_t k = 0; k < batch_.size(); ++k) {
      for (size_t o = 0; o < outputs_.size(); ++o) {
        const size_t width = static_cast<size_t>((*heads_)[o]->width);
        const auto row = static_cast<size_t>((*heads_)[o]->is_per_token() ? batch_rows_[k] : static_cast<int32_t>(k));
        values_[o] = data_[o].data() + row * width;
      }
      take(batch_[k], values_.data());
    }
  }
  void check_cancelled() const;

  eb_model* const model_;
  const TextModel& text_model_;
  const eb_session_options options_;
  eb_tokenize_options tokenize_options_{};
  std::atomic<bool> is_cancelled_{false};

  // Of a call.
  Inputs inputs_{};
  int32_t next_input_ = 0, first_input_ = 0;
  std::vector<uint8_t> is_truncated_;

  // Of a chunk.
  std::vector<char> bytes_;
  std::vector<int64_t> text_bounds_;
  std::vector<int32_t> row_bounds_;
  text::RowMaker rows_;
  const eb_tokens* tokens_ = nullptr;
  std::vector<int32_t> chosen_, chosen_bounds_;  // places in the rows
  bool is_choosing_ = false;
  std::vector<std::vector<float>> kept_;
  std::vector<std::vector<size_t>> kept_bounds_;

  // Of a run.
  const std::vector<const Head*>* heads_ = nullptr;
  std::vector<int32_t> order_;
  size_t next_ = 0;
  std::vector<int32_t> batch_, batch_rows_;  // sequences, and the first row of each among those of tokens
  std::vector<int32_t> input_ids_, token_type_ids_, cu_seqlens_, output_tokens_;
  std::vector<eb_output> outputs_;
  std::vector<std::vector<float>> data_;
  std::vector<const float*> values_;
};

}  // namespace edgebert::tasks
