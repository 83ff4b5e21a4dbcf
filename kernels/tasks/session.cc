#include "tasks/session.h"

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "text/unicode.h"

namespace edgebert::tasks {
namespace {

// Of a chunk of texts; more than fill a few micro-batches are of no use.
constexpr int32_t kChunkTexts = 1024;
constexpr size_t kChunkBytes = size_t{1} << 18;
constexpr int32_t kBatchTokens = 4096;
constexpr int32_t kAnswerLength = 384, kAnswerStride = 128;  // as transformers' pipeline cuts contexts
constexpr size_t kMaxLogits = size_t{1} << 22;  // floats that a micro-batch gives, unless a single row gives more

int32_t check_range(const char* name, int32_t value, int32_t low, int32_t high) {
  if (value < low || value > high) {
    fail(std::string(name) + " is " + std::to_string(value) + ", expected " + std::to_string(low) + " to " +
         std::to_string(high));
  }
  return value;
}

}  // namespace

std::string_view view(const eb_text& text) {
  return {text.data, text.size < 0 ? std::strlen(text.data) : static_cast<size_t>(text.size)};
}

Session::Session(eb_model* model, const eb_session_options& options)
    : model_(model), text_model_(text_model_of(*model)), options_(options) {
  check_range("max_length", options.max_length, 0, spec().usable_positions());
  check_range("long_texts", options.long_texts, EB_LONG_DEFAULT, EB_LONG_WINDOWS);
  check_range("offset_unit", options.offset_unit, 0, EB_OFFSETS_UTF16);
  check_range("batch_tokens", options.batch_tokens, 0, 1 << 24);
  const std::string& task = text_spec().task;
  const bool is_answering = task == "question-answering";
  eb_tokenize_options& chosen = tokenize_options_;
  chosen.max_length = options.max_length > 0 ? options.max_length
                      : is_answering         ? std::min(text_spec().max_length, kAnswerLength)
                                             : text_spec().max_length;
  chosen.long_texts = options.long_texts;
  chosen.stride = options.stride;
  chosen.cuts_last_text = is_answering ? 1 : 0;
  chosen.num_threads = 1;
  text::check_options(text_model_.tokenizer->tokenizer, chosen, is_answering || task == "next-sentence" ? 2 : 1);
  if (is_answering && options.long_texts == EB_LONG_DEFAULT) {
    chosen.long_texts = EB_LONG_WINDOWS;
    chosen.stride = std::min(chosen.max_length / 2, kAnswerStride);
    chosen.lowers_stride = 1;
  }
}

void Session::require_task(const char* call, std::string_view task, std::string_view other) const {
  const std::string& head = text_spec().task;
  if (head == task || (!other.empty() && head == other)) return;
  fail(std::string(call) + " does not fit this file: its head is " + head + ", not " + std::string(task));
}

void Session::begin(const Inputs& inputs, bool has_offsets) {
  inputs_ = inputs;
  inputs_.names.prefix_size = inputs.prefix.size();
  size_t at;
  if (!text::is_utf8(inputs.prefix, &at)) fail("the prompt is not valid UTF-8 at byte " + std::to_string(at));
  tokenize_options_.offset_unit = has_offsets ? EB_OFFSETS_BYTES : EB_OFFSETS_NONE;
  next_input_ = 0;
  is_truncated_.clear();
  is_choosing_ = false;
}

void Session::copy_text(const eb_text& text, int32_t index, size_t place) {
  if (text.size < -1 || (text.data == nullptr && text.size != 0)) {
    fail(inputs_.names.name(index, place) + ": data is NULL, or size less than -1");
  }
  text::check_size(text.size, inputs_.names, index, place);
  const std::string_view bytes = text.size == 0 ? std::string_view() : view(text);
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
}

bool Session::next_chunk() {
  check_cancelled();
  if (next_input_ == inputs_.count) return false;
  first_input_ = next_input_;
  bytes_.clear();
  text_bounds_.assign(1, 0);
  row_bounds_.assign(1, 0);
  const bool has_pairs = inputs_.second != nullptr;
  while (next_input_ < inputs_.count && next_input_ - first_input_ < kChunkTexts && bytes_.size() < kChunkBytes) {
    const int32_t i = next_input_++;
    bytes_.insert(bytes_.end(), inputs_.prefix.begin(), inputs_.prefix.end());
    copy_text(inputs_.first[inputs_.names.has_one_first ? 0 : i], i, 0);
    text_bounds_.push_back(static_cast<int64_t>(bytes_.size()));
    if (has_pairs) {
      copy_text(inputs_.second[i], i, 1);
      text_bounds_.push_back(static_cast<int64_t>(bytes_.size()));
    }
    row_bounds_.push_back(static_cast<int32_t>(text_bounds_.size()) - 1);
  }
  const eb_texts texts{bytes_.data(), text_bounds_.data(), row_bounds_.data(), next_input_ - first_input_};
  tokens_ = &rows_.make(text_model_.tokenizer->tokenizer, texts, tokenize_options_, inputs_.names, first_input_);
  is_truncated_.insert(is_truncated_.end(), tokens_->is_truncated, tokens_->is_truncated + texts.num_rows);
  check_tokens();
  return true;
}

void Session::check_tokens() const {
  const int32_t vocab_size = spec().vocab_size;
  for (int32_t s = 0; s < tokens_->num_sequences; ++s) {
    const int32_t begin = tokens_->cu_seqlens[s], end = tokens_->cu_seqlens[s + 1];
    const int32_t row = first_input_ + tokens_->rows[s];
    if (begin == end) {
      fail(inputs_.names.name_row(row) + " gives no tokens: the tokenizer adds none of its own, leave it out");
    }
    for (int32_t t = begin; t < end; ++t) {
      if (tokens_->input_ids[t] < vocab_size) continue;
      fail(inputs_.names.name_row(row) + ": the tokenizer gives a token the id " +
           std::to_string(tokens_->input_ids[t]) + ", and the model has the ids 0 to " +
           std::to_string(vocab_size - 1) + " alone: leave that token out");
    }
  }
}

Sequence Session::sequence(int32_t index) const {
  const eb_tokens& t = *tokens_;
  const int32_t begin = t.cu_seqlens[index], first = t.last_texts[2 * index];
  Sequence sequence{};
  sequence.input = first_input_ + t.rows[index];
  sequence.is_first = index == 0 || t.rows[index - 1] != t.rows[index];
  sequence.is_last = index + 1 == t.num_sequences || t.rows[index + 1] != t.rows[index];
  sequence.size = t.cu_seqlens[index + 1] - begin;
  sequence.ids = t.input_ids + begin;
  sequence.first = first;
  sequence.count = t.last_texts[2 * index + 1];
  if (t.offsets != nullptr) sequence.offsets = t.offsets + 2 * (begin + first);
  if (t.word_ids != nullptr) sequence.words = t.word_ids + begin + first;
  sequence.owned_begin = t.owned[2 * index];
  sequence.owned_end = t.owned[2 * index + 1];
  return sequence;
}

void Session::choose_tokens(int32_t token) {
  is_choosing_ = true;
  chosen_.clear();
  chosen_bounds_.assign(1, 0);
  for (int32_t i = 0; i < num_sequences(); ++i) {
    const Sequence s = sequence(i);
    for (int32_t place = s.first + s.owned_begin; place < s.first + s.owned_end; ++place) {
      if (s.ids[place] == token) chosen_.push_back(place);
    }
    chosen_bounds_.push_back(static_cast<int32_t>(chosen_.size()));
  }
}

int32_t Session::num_chosen(int32_t index) const {
  return chosen_bounds_[static_cast<size_t>(index) + 1] - chosen_bounds_[static_cast<size_t>(index)];
}

// Longest first: neighbours are of like length, and memory does not grow after the first batch.
void Session::start_run(const std::vector<const Head*>& heads) {
  heads_ = &heads;
  next_ = 0;
  order_.clear();
  for (int32_t i = 0; i < num_sequences(); ++i) {
    if (!is_choosing_ || num_chosen(i) > 0) order_.push_back(i);
  }
  const int32_t* bounds = tokens_->cu_seqlens;
  std::sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
    const int32_t size_a = bounds[a + 1] - bounds[a], size_b = bounds[b + 1] - bounds[b];
    return size_a != size_b ? size_a > size_b : a < b;
  });
  if (data_.size() < heads.size()) data_.resize(heads.size());
  outputs_.resize(heads.size());
  values_.resize(heads.size());
}

bool Session::run_batch() {
  check_cancelled();
  if (next_ == order_.size()) return false;
  const int32_t batch_tokens = options_.batch_tokens > 0 ? options_.batch_tokens : kBatchTokens;
  size_t token_width = 0;
  for (const Head* head : *heads_) token_width += head->is_per_token() ? static_cast<size_t>(head->width) : 0;
  batch_.clear();
  batch_rows_.clear();
  input_ids_.clear();
  token_type_ids_.clear();
  cu_seqlens_.assign(1, 0);
  output_tokens_.clear();
  int32_t num_rows = 0;
  for (; next_ < order_.size(); ++next_) {
    const int32_t i = order_[next_], begin = tokens_->cu_seqlens[i], end = tokens_->cu_seqlens[i + 1];
    const int32_t rows = is_choosing_ ? num_chosen(i) : end - begin;
    if (!batch_.empty() && (static_cast<int64_t>(input_ids_.size()) + end - begin > batch_tokens ||
                            static_cast<size_t>(num_rows + rows) * token_width > kMaxLogits)) {
      break;
    }
    if (is_choosing_) {
      const int32_t* places = chosen_.data() + chosen_bounds_[static_cast<size_t>(i)];
      for (int32_t k = 0; k < rows; ++k) output_tokens_.push_back(static_cast<int32_t>(input_ids_.size()) + places[k]);
    }
    batch_.push_back(i);
    batch_rows_.push_back(num_rows);
    num_rows += rows;
    input_ids_.insert(input_ids_.end(), tokens_->input_ids + begin, tokens_->input_ids + end);
    token_type_ids_.insert(token_type_ids_.end(), tokens_->token_type_ids + begin, tokens_->token_type_ids + end);
    cu_seqlens_.push_back(static_cast<int32_t>(input_ids_.size()));
  }
  const auto num_sequences = static_cast<int32_t>(batch_.size());
  for (size_t o = 0; o < outputs_.size(); ++o) {
    const Head& head = *(*heads_)[o];
    const size_t floats =
        static_cast<size_t>(head.is_per_token() ? num_rows : num_sequences) * static_cast<size_t>(head.width);
    if (data_[o].size() < floats) data_[o].resize(floats);
    outputs_[o] = {head.name.c_str(), data_[o].data(), data_[o].size()};
  }
  const eb_batch batch{input_ids_.data(),
                       token_type_ids_.data(),
                       cu_seqlens_.data(),
                       num_sequences,
                       is_choosing_ ? output_tokens_.data() : nullptr,
                       static_cast<int32_t>(output_tokens_.size())};
  run_checked(*model_, batch, outputs_.data(), static_cast<int32_t>(outputs_.size()));
  return true;
}

void Session::keep(const std::vector<const Head*>& heads) {
  if (kept_.size() < heads.size()) {
    kept_.resize(heads.size());
    kept_bounds_.resize(heads.size());
  }
  const auto count = static_cast<size_t>(num_sequences());
  for (size_t o = 0; o < heads.size(); ++o) {
    kept_bounds_[o].assign(1, 0);
    for (size_t i = 0; i < count; ++i) {
      const int32_t rows = heads[o]->is_per_token() ? tokens_->cu_seqlens[i + 1] - tokens_->cu_seqlens[i] : 1;
      kept_bounds_[o].push_back(kept_bounds_[o].back() +
                                static_cast<size_t>(rows) * static_cast<size_t>(heads[o]->width));
    }
    if (kept_[o].size() < kept_bounds_[o].back()) kept_[o].resize(kept_bounds_[o].back());
  }
  run(heads, [&](int32_t index, const float* const* values) {
    const auto i = static_cast<size_t>(index);
    for (size_t o = 0; o < heads.size(); ++o) {
      const size_t begin = kept_bounds_[o][i], end = kept_bounds_[o][i + 1];
      std::copy(values[o], values[o] + (end - begin), kept_[o].data() + begin);
    }
  });
}

void Session::check_cancelled() const {
  if (is_cancelled_.load(std::memory_order_relaxed)) throw Error(EB_CANCELLED, "cancelled by eb_session_cancel");
}

}  // namespace edgebert::tasks
