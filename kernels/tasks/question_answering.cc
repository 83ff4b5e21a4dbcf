#include <algorithm>

#include "base/utf8.h"
#include "tasks/scores.h"
#include "tasks/tasks.h"
#include "text/unicode.h"

namespace edgebert::tasks {

eb_answers QuestionAnswering::run(Session* session, const eb_text* questions, const eb_text* contexts,
                                  int32_t num_questions, const eb_answer_options& options) {
  session->require_task("eb_answer", "question-answering");
  if (options.top_k < 0 || options.max_answer_tokens < 0) fail("top_k or max_answer_tokens is negative");
  const int32_t top_k = options.top_k > 0 ? options.top_k : 1;
  const int32_t max_tokens = options.max_answer_tokens > 0 ? options.max_answer_tokens : 15;
  for (int32_t i = 0; i < num_questions; ++i) {
    for (const eb_text* text : {&questions[i], &contexts[i]}) {
      if (text->size == 0 || (text->size == -1 && text->data != nullptr && text->data[0] == '\0')) {
        fail((text == &questions[i] ? "question " : "context ") + std::to_string(i) + " is empty");
      }
    }
  }
  const auto unit = static_cast<eb_offset_unit>(session->options().offset_unit);
  const bool aligns = options.keeps_tokens == 0;
  heads_.clear();
  for (const Head& head : session->spec().heads) heads_.push_back(&head);
  bounds_.assign(1, 0);
  spans_.clear();
  session->begin({questions, contexts, num_questions, {"question", "question", "context"}}, true);
  while (session->next_chunk()) {
    session->keep(heads_);
    double null_score = 1;
    for (int32_t i = 0; i < session->num_sequences(); ++i) {
      const Sequence sequence = session->sequence(i);
      const eb_text& context = contexts[sequence.input];
      if (sequence.is_first) {
        null_score = 1;
        found_.clear();
        folds_.clear();
      }
      find_probabilities(session->value(i, 0), sequence, &start_);
      find_probabilities(session->value(i, 1), sequence, &end_);
      const auto null_here = static_cast<double>(start_[0] * end_[0]);
      if (null_here < null_score) null_score = null_here;
      const int64_t num_spans = aligns ? int64_t{2} * top_k + 10 : top_k;  // some become equal when widened to words
      const int32_t longest = find_best(sequence.count, max_tokens, num_spans);
      for (const Candidate& candidate : candidates_) {
        int32_t first = candidate.place / longest, last = first + candidate.place % longest;
        if (last >= sequence.count) continue;
        if (aligns && sequence.words[first] >= 0 && sequence.words[last] >= 0) {
          const int32_t* words = sequence.words;
          const int32_t first_word = words[first], last_word = words[last];
          first = static_cast<int32_t>(std::find(words, words + sequence.count, first_word) - words);
          last = sequence.count - 1;
          while (words[last] != last_word) --last;
        }
        add(view(context), sequence.offsets[2 * first], sequence.offsets[2 * last + 1], candidate.score);
      }
      if (!sequence.is_last) continue;
      if (options.allows_no_answer != 0 || found_.empty()) {
        if (options.allows_no_answer == 0) null_score = 0;  // nothing was there to answer with
        found_.push_back({{0, 0, null_score}, 0, 0, static_cast<int32_t>(found_.size())});
      }
      std::sort(found_.begin(), found_.end(), [](const Span& a, const Span& b) {
        return is_before(a.score, b.score) || (!is_before(b.score, a.score) && a.place < b.place);
      });
      if (found_.size() > static_cast<size_t>(top_k)) found_.resize(static_cast<size_t>(top_k));
      Places places(view(context), unit);
      for (const Span& span : found_) {
        const int32_t begin = places.find(span.begin);
        spans_.push_back({begin, places.find(span.end), span.score});
      }
      bounds_.push_back(static_cast<int32_t>(spans_.size()));
    }
  }
  return {num_questions, bounds_.data(), spans_.data(), session->is_truncated().data()};
}

// Of the row's first token (no answer) and of the context's; the question's are left out.
void QuestionAnswering::find_probabilities(const float* logits, const Sequence& sequence,
                                           std::vector<float>* probabilities) {
  logits_.assign(1, logits[0]);
  logits_.insert(logits_.end(), logits + sequence.first, logits + sequence.first + sequence.count);
  probabilities->resize(logits_.size());
  softmax(logits_.data(), logits_.size(), probabilities->data(), &powers_);
}

// Sets candidates_ to the best spans of up to max_tokens tokens, best first, and returns how many tokens places count.
int32_t QuestionAnswering::find_best(int32_t count, int32_t max_tokens, int64_t num_spans) {
  const int32_t longest = std::min(max_tokens, count);
  candidates_.clear();
  for (int32_t first = 0; first < count; ++first) {
    for (int32_t k = 0; k < longest; ++k) {  // what ends behind the last token is below every span that exists
      const float end = first + k < count ? end_[static_cast<size_t>(1 + first + k)] : -1.0f;
      candidates_.push_back({start_[static_cast<size_t>(1 + first)] * end, first * longest + k});
    }
  }
  const auto better = [](const Candidate& a, const Candidate& b) {
    return is_before(a.score, b.score) || (!is_before(b.score, a.score) && a.place < b.place);
  };
  if (static_cast<int64_t>(candidates_.size()) > num_spans) {
    std::nth_element(candidates_.begin(), candidates_.begin() + num_spans, candidates_.end(), better);
    candidates_.resize(static_cast<size_t>(num_spans));
  }
  std::sort(candidates_.begin(), candidates_.end(), better);
  return longest;
}

// Scores of answers that are equal but for their case are added.
void QuestionAnswering::add(std::string_view context, int32_t begin, int32_t end, float score) {
  const size_t fold_begin = folds_.size();
  for (auto at = static_cast<size_t>(begin); at < static_cast<size_t>(end);) {
    constexpr uint32_t kFinalSigma = 0x3C2, kSigma = 0x3C3;  // one letter
    uint32_t lower[text::kMaxLower];
    const int count = text::to_lower(text::decode(context.data(), &at), lower);
    for (int k = 0; k < count; ++k) {
      char bytes[4];
      const uint32_t code = lower[k] == kFinalSigma ? kSigma : lower[k];
      folds_.append(bytes, static_cast<size_t>(encode(code, bytes)));
    }
  }
  const auto fold_of = [&](size_t from, size_t to) { return std::string_view(folds_).substr(from, to - from); };
  for (Span& span : found_) {
    if (fold_of(span.fold_begin, span.fold_end) == fold_of(fold_begin, folds_.size())) {
      span.score += static_cast<double>(score);
      folds_.resize(fold_begin);
      return;
    }
  }
  found_.push_back(
      {{begin, end, static_cast<double>(score)}, fold_begin, folds_.size(), static_cast<int32_t>(found_.size())});
}

}  // namespace edgebert::tasks
