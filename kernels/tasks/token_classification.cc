#include <algorithm>
#include <cstring>

#include "tasks/scores.h"
#include "tasks/tasks.h"

namespace edgebert::tasks {
namespace {

constexpr const char* kOutside = "O";  // what is ignored unless told otherwise

bool has_prefix(const char* label, const char* prefix) { return std::strncmp(label, prefix, 2) == 0; }

const char* type_of(const char* label) {
  return has_prefix(label, "B-") || has_prefix(label, "I-") ? label + 2 : label;
}

// What an entity of this label is called.
const char* without_prefix(const char* label) {
  const char* dash = std::strchr(label, '-');
  return dash == nullptr ? label : dash + 1;
}

void check_ignored(const std::vector<std::string>& labels, const eb_label_options& options) {
  if (options.num_ignored < 0) fail("num_ignored is negative");
  if (options.ignored == nullptr && options.num_ignored > 0) {
    fail("num_ignored is " + std::to_string(options.num_ignored) + ", and ignored is NULL");
  }
  for (int32_t i = 0; i < options.num_ignored; ++i) {
    const char* name = options.ignored[i];
    const std::string place = "ignored[" + std::to_string(i) + "] is ";
    if (name == nullptr) fail(place + "NULL");
    const bool is_known = std::any_of(labels.begin(), labels.end(), [&](const std::string& label) {
      return label == name || std::strcmp(without_prefix(label.c_str()), name) == 0;
    });
    if (is_known || std::strcmp(name, kOutside) == 0) continue;
    std::string known;
    for (const std::string& label : labels) known += (known.empty() ? "" : ", ") + label;
    fail(place + "'" + std::string(name).substr(0, 100) + "', which is no label of this file: it has " +
         known.substr(0, 1000));
  }
}

}  // namespace

eb_entities TokenClassification::run(Session* session, const eb_text* texts, int32_t num_texts,
                                     const eb_label_options& options) {
  session->require_task("eb_label_tokens", "token-classification");
  const int32_t aggregation = options.aggregation;
  if (aggregation < EB_AGGREGATION_NONE || aggregation > EB_AGGREGATION_MAX) {
    fail("aggregation is not one of eb_aggregation");
  }
  check_ignored(session->text_spec().labels, options);
  if (session->has_windows() && aggregation == EB_AGGREGATION_NONE) {
    fail("windows need an aggregation that joins what they have in common: EB_AGGREGATION_SIMPLE or another");
  }
  const char* const outside = kOutside;
  const char* const* ignored = options.ignored != nullptr ? options.ignored : &outside;
  const int32_t num_ignored = options.ignored != nullptr ? options.num_ignored : 1;
  const auto is_ignored = [&](const eb_entity& entity) {
    return std::any_of(ignored, ignored + num_ignored,
                       [&](const char* name) { return std::strcmp(name, entity.label) == 0; });
  };
  const Head* head = &session->spec().heads.back();
  const auto width = static_cast<size_t>(head->width);
  const auto unit = static_cast<eb_offset_unit>(session->options().offset_unit);
  heads_.assign(1, head);
  bounds_.assign(1, 0);
  entities_.clear();
  session->begin({texts, nullptr, num_texts, {}}, true);
  while (session->next_chunk()) {
    session->keep(heads_);
    size_t first = 0;
    for (int32_t i = 0; i < session->num_sequences(); ++i) {
      const Sequence sequence = session->sequence(i);
      if (sequence.is_first) first = entities_.size();
      const auto count = static_cast<size_t>(sequence.count);
      scores_.resize(count * width);
      const float* logits = session->value(i, 0) + static_cast<size_t>(sequence.first) * width;
      for (size_t t = 0; t < count; ++t) softmax(logits + t * width, width, scores_.data() + t * width, &powers_);
      const std::string_view text = texts[sequence.input].size == 0 ? std::string_view() : view(texts[sequence.input]);
      label(*session, sequence, text, aggregation);
      if (aggregation != EB_AGGREGATION_NONE) group();
      for (const eb_entity& entity : found_) {
        if (!is_ignored(entity)) entities_.push_back(entity);
      }
      if (!sequence.is_last) continue;
      if (!sequence.is_first) drop_overlaps(text, first);
      Places places(text, unit);
      for (size_t k = first; k < entities_.size(); ++k) {
        entities_[k].begin = places.find(entities_[k].begin);
        entities_[k].end = places.find(entities_[k].end);
      }
      bounds_.push_back(static_cast<int32_t>(entities_.size()));
    }
  }
  return {num_texts, bounds_.data(), entities_.data(), session->is_truncated().data()};
}

// A label and score for each token, or for each word. Where the tokenizer does not mark the tokens inside words, words
// end at blanks.
void TokenClassification::label(const Session& session, const Sequence& sequence, std::string_view text,
                                int32_t aggregation) {
  const text::Tokenizer& tokenizer = session.text_model().tokenizer->tokenizer;
  const int32_t unknown_id = tokenizer.unknown_id();
  const bool has_words = aggregation > EB_AGGREGATION_SIMPLE;
  const size_t width = session.text_spec().labels.size();
  found_.clear();
  for (int32_t begin = 0, end; begin < sequence.count; begin = end) {
    end = begin + 1;
    for (; has_words && end < sequence.count; ++end) {
      const int32_t id = sequence.ids[sequence.first + end];
      const auto from = static_cast<size_t>(sequence.offsets[2 * end]);
      const auto to = static_cast<size_t>(sequence.offsets[2 * end + 1]);
      bool is_subword = false;
      if (id == unknown_id) {
        is_subword = false;
      } else if (tokenizer.marks_subwords()) {
        if (!tokenizer.name(id, &token_)) token_.clear();
        is_subword = count_characters(token_) != count_characters(text.substr(from, to - from));
      } else {
        is_subword = from > 0 && text[from - 1] != ' ' && (from == text.size() || text[from] != ' ');
      }
      if (!is_subword) break;
    }
    const auto num_tokens = static_cast<size_t>(end - begin);
    const float* scores = scores_.data() + static_cast<size_t>(begin) * width;
    if (aggregation == EB_AGGREGATION_AVERAGE) {
      word_scores_.resize(width);
      for (size_t k = 0; k < width; ++k) {
        double sum = scores[k];
        for (size_t t = 1; t < num_tokens; ++t) sum += static_cast<double>(scores[t * width + k]);
        word_scores_[k] = static_cast<float>(sum / static_cast<double>(num_tokens));
      }
      scores = word_scores_.data();
    } else if (aggregation == EB_AGGREGATION_MAX) {
      word_scores_.resize(num_tokens);
      for (size_t t = 0; t < num_tokens; ++t) {
        word_scores_[t] = scores[t * width + find_greatest(scores + t * width, width)];
      }
      scores += find_greatest(word_scores_.data(), num_tokens) * width;
    }
    const size_t best = find_greatest(scores, width);
    found_.push_back({session.text_spec().labels[best].c_str(), static_cast<int32_t>(best),
                      has_words ? -1 : sequence.first + begin, sequence.offsets[2 * begin],
                      sequence.offsets[2 * (end - 1) + 1], static_cast<double>(scores[best])});
  }
}

// Neighbours of one type joined, a B- prefix beginning a new one; the score is the mean of theirs.
void TokenClassification::group() {
  size_t count = 0;
  for (size_t begin = 0, end; begin < found_.size(); begin = end) {
    double sum = found_[begin].score;
    for (end = begin + 1; end < found_.size(); ++end) {
      const char* label = found_[end].label;
      if (has_prefix(label, "B-") || std::strcmp(type_of(label), type_of(found_[end - 1].label)) != 0) break;
      sum += found_[end].score;
    }
    eb_entity entity = found_[begin];
    entity.label = without_prefix(entity.label);
    entity.token = -1;
    entity.end = found_[end - 1].end;
    entity.score = sum / static_cast<double>(end - begin);
    found_[count++] = entity;
  }
  found_.resize(count);
}

// Of entities of several windows that overlap, the longest, then the one of the best score.
void TokenClassification::drop_overlaps(std::string_view text, size_t first) {
  order_.clear();
  for (size_t i = first; i < entities_.size(); ++i) order_.push_back(i);
  std::sort(order_.begin(), order_.end(), [&](size_t a, size_t b) {
    return entities_[a].begin != entities_[b].begin ? entities_[a].begin < entities_[b].begin : a < b;
  });
  const auto size_of = [&](const eb_entity& entity) {
    return count_characters(
        text.substr(static_cast<size_t>(entity.begin), static_cast<size_t>(std::max(0, entity.end - entity.begin))));
  };
  found_.clear();
  for (const size_t i : order_) {
    const eb_entity& entity = entities_[i];
    if (found_.empty() || entity.begin >= found_.back().end) {
      found_.push_back(entity);
      continue;
    }
    const int32_t size = size_of(entity), kept = size_of(found_.back());
    if (size > kept || (size == kept && entity.score > found_.back().score)) found_.back() = entity;
  }
  entities_.resize(first);
  entities_.insert(entities_.end(), found_.begin(), found_.end());
}

int32_t count_characters(std::string_view text) {
  return static_cast<int32_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

int32_t Places::find(int32_t byte) {
  if (unit_ == EB_OFFSETS_NONE || unit_ == EB_OFFSETS_BYTES) return byte;
  if (byte < byte_) byte_ = place_ = 0;
  for (; byte_ < byte; ++byte_) {
    const auto c = static_cast<unsigned char>(text_[static_cast<size_t>(byte_)]);
    if ((c & 0xC0) == 0x80) continue;
    place_ += unit_ == EB_OFFSETS_UTF16 && c >= 0xF0 ? 2 : 1;
  }
  return place_;
}

}  // namespace edgebert::tasks
