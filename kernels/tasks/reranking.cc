#include <algorithm>
#include <limits>

#include "tasks/scores.h"
#include "tasks/tasks.h"

namespace edgebert::tasks {

using Function = TextSpec::Function;

eb_ranking Reranking::run(Session* session, const eb_text& query, const eb_text* texts, int32_t num_texts,
                          const eb_rank_options& options) {
  session->require_task("eb_rank", "text-classification");
  const TextSpec& spec = session->text_spec();
  size_t column = 0;
  if (options.label != nullptr) {
    const auto found = std::find(spec.labels.begin(), spec.labels.end(), options.label);
    if (found == spec.labels.end()) fail("the file has no label '" + std::string(options.label).substr(0, 100) + "'");
    column = static_cast<size_t>(found - spec.labels.begin());
  } else if (spec.labels.size() != 1) {
    fail("the file has " + std::to_string(spec.labels.size()) + " labels, and label is NULL: the score of one ranks");
  }
  if (options.top_k < 0) fail("top_k is negative");
  const size_t count = spec.labels.size();
  Function function = find_function(spec, options.function);
  if (options.function == EB_FUNCTION_DEFAULT) {
    if (spec.rank_function != Function::kUnknown) {
      function = spec.rank_function;
    } else if (count == 1) {
      function = Function::kSigmoid;
    }
  }
  const Inputs inputs{&query, texts, num_texts, {"text", "the query", "text", true}};
  const std::vector<float>& logits = scores_.find_logits(session, inputs, &session->spec().heads.back());
  const auto n = static_cast<size_t>(num_texts);
  column_.resize(n);
  keys_.resize(n);
  order_.resize(n);
  for (size_t i = 0; i < n; ++i) {
    const float* row = logits.data() + i * count;
    order_[i] = static_cast<int32_t>(i);
    column_[i] = scores_.apply(row, count, function)[column];
    // Every function falls with these, a softmax with what the other labels have beside this one.
    keys_[i] = -static_cast<double>(row[column]);
    if (function != Function::kSoftmax) continue;
    double sum = 0;
    for (size_t k = 0; k < count; ++k) {
      const double lead = k == column ? -std::numeric_limits<double>::infinity()
                                      : static_cast<double>(row[k]) + -static_cast<double>(row[column]);
      sum = k == 0 ? exponential(lead) : sum + exponential(lead);
    }
    keys_[i] = sum;
  }
  std::sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
    const double x = keys_[static_cast<size_t>(a)], y = keys_[static_cast<size_t>(b)];
    return is_before(-x, -y) || (!is_before(-y, -x) && a < b);
  });
  if (options.top_k > 0) order_.resize(std::min(n, static_cast<size_t>(options.top_k)));
  best_.clear();
  for (const int32_t i : order_) best_.push_back(column_[static_cast<size_t>(i)]);
  return {static_cast<int32_t>(order_.size()), order_.data(), best_.data(), session->is_truncated().data()};
}

}  // namespace edgebert::tasks
