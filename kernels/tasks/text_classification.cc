#include <algorithm>

#include "tasks/scores.h"
#include "tasks/tasks.h"

namespace edgebert::tasks {

using Function = TextSpec::Function;

const std::vector<float>& Scores::find_logits(Session* session, const Inputs& inputs, const Head* head) {
  return rows_.gather(session, inputs, head);
}

const float* Scores::apply(const float* logits, size_t count, Function function) {
  scores_.resize(count);
  if (function == Function::kSoftmax) {
    softmax(logits, count, scores_.data(), &powers_);
    return scores_.data();
  }
  for (size_t i = 0; i < count; ++i) {
    scores_[i] = function == Function::kSigmoid ? sigmoid(logits[i])
                 : function == Function::kTanh  ? hyperbolic_tangent(logits[i])
                                                : logits[i];
  }
  return scores_.data();
}

Function find_function(const TextSpec& spec, int32_t function) {
  constexpr Function kFunctions[] = {Function::kNone, Function::kSigmoid, Function::kTanh, Function::kSoftmax};
  if (function < EB_FUNCTION_DEFAULT || function > EB_FUNCTION_SOFTMAX) fail("function is not one of eb_function");
  if (function != EB_FUNCTION_DEFAULT) return kFunctions[function - 1];
  if (spec.problem_type == TextSpec::ProblemType::kRegression) return Function::kNone;
  const bool is_sigmoid = spec.problem_type == TextSpec::ProblemType::kMultiLabel || spec.labels.size() == 1;
  return is_sigmoid ? Function::kSigmoid : Function::kSoftmax;
}

eb_classes TextClassification::run(Session* session, const eb_text* texts, const eb_text* pairs, int32_t num_texts,
                                   const eb_classify_options& options) {
  const TextSpec& spec = session->text_spec();
  const bool is_next_sentence = spec.task == "next-sentence" || spec.task == "pretraining";
  if (!is_next_sentence) session->require_task("eb_classify", "text-classification");
  if (is_next_sentence && pairs == nullptr && num_texts > 0) fail("this file takes pairs of texts, and pairs is NULL");
  if (options.top_k < 0) fail("top_k is negative");
  const Function function = is_next_sentence ? Function::kSoftmax : find_function(spec, options.function);
  const std::vector<float>& logits = scores_.find_logits(
      session, {texts, pairs, num_texts, {"text", "text", "the pair of text"}}, &session->spec().heads.back());
  const size_t count = spec.labels.size();
  const size_t top_k = options.top_k > 0 ? std::min(count, static_cast<size_t>(options.top_k)) : count;
  labels_.clear();
  best_.clear();
  for (size_t i = 0; i < static_cast<size_t>(num_texts); ++i) {
    const float* scores = scores_.apply(logits.data() + i * count, count, function);
    order_.resize(count);
    for (size_t k = 0; k < count; ++k) order_[k] = static_cast<int32_t>(k);
    std::sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
      return is_before(scores[a], scores[b]) || (!is_before(scores[b], scores[a]) && a < b);
    });
    for (size_t k = 0; k < top_k; ++k) {
      labels_.push_back(order_[k]);
      best_.push_back(scores[order_[k]]);
    }
  }
  return {num_texts, static_cast<int32_t>(top_k), labels_.data(), best_.data(), session->is_truncated().data()};
}

}  // namespace edgebert::tasks
