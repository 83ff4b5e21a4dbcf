// The tasks, one file each as in edgebert/tasks/, whose rules they are. Each has the memory of its answers, which are
// valid until its next call. All throw Error(EB_INVALID_INPUT) for options that are not usable.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "edgebert.h"
#include "tasks/session.h"

namespace edgebert::tasks {

// An output of sequences, one row a text; of a text in windows the mean of theirs.
class TextRows {
 public:
  const std::vector<float>& gather(Session* session, const Inputs& inputs, const Head* head);

 private:
  std::vector<float> rows_;
  std::vector<const Head*> heads_;
};

class Embedding {
 public:
  eb_embeddings run(Session* session, const eb_text* texts, int32_t num_texts, const eb_embed_options& options);

 private:
  TextRows rows_;
  std::vector<float> embeddings_, whole_;
};

// What text classification and reranking share: logits, and scores of them.
class Scores {
 public:
  // Logits of all inputs, [n, labels].
  const std::vector<float>& find_logits(Session* session, const Inputs& inputs, const Head* head);
  // Of a row.
  const float* apply(const float* logits, size_t count, TextSpec::Function function);

 private:
  TextRows rows_;
  std::vector<float> scores_;
  std::vector<double> powers_;
};

// The function asked for, else the one for the file's kind of labels.
TextSpec::Function find_function(const TextSpec& spec, int32_t function);

class TextClassification {
 public:
  eb_classes run(Session* session, const eb_text* texts, const eb_text* pairs, int32_t num_texts,
                 const eb_classify_options& options);

 private:
  Scores scores_;
  std::vector<int32_t> labels_, order_;
  std::vector<float> best_;
};

class Reranking {
 public:
  eb_ranking run(Session* session, const eb_text& query, const eb_text* texts, int32_t num_texts,
                 const eb_rank_options& options);

 private:
  Scores scores_;
  std::vector<int32_t> order_;
  std::vector<double> keys_;
  std::vector<float> column_, best_;
};

class TokenClassification {
 public:
  eb_entities run(Session* session, const eb_text* texts, int32_t num_texts, const eb_label_options& options);

 private:
  void label(const Session& session, const Sequence& sequence, std::string_view text, int32_t aggregation);
  void group();
  void drop_overlaps(std::string_view text, size_t first);

  std::vector<const Head*> heads_;
  std::vector<float> scores_, word_scores_;
  std::vector<double> powers_;
  std::string token_;
  std::vector<size_t> order_;
  std::vector<int32_t> bounds_;
  std::vector<eb_entity> found_, entities_;  // of a sequence; of all texts
};

class QuestionAnswering {
 public:
  eb_answers run(Session* session, const eb_text* questions, const eb_text* contexts, int32_t num_questions,
                 const eb_answer_options& options);

 private:
  struct Candidate {
    float score;
    int32_t place;  // first token, and length beyond it
  };
  struct Span : eb_span {
    size_t fold_begin, fold_end;  // its text in lower case, in folds_
    int32_t place;                // in order of being found
  };
  void find_probabilities(const float* logits, const Sequence& sequence, std::vector<float>* probabilities);
  int32_t find_best(int32_t count, int32_t max_tokens, int64_t num_spans);
  void add(std::string_view context, int32_t begin, int32_t end, float score);

  std::vector<const Head*> heads_;
  std::vector<float> logits_, start_, end_;
  std::vector<double> powers_;
  std::vector<Candidate> candidates_;
  std::vector<Span> found_;
  std::string folds_;
  std::vector<int32_t> bounds_;
  std::vector<eb_span> spans_;
};

class FillMask {
 public:
  eb_fills run(Session* session, const eb_text* texts, int32_t num_texts, const eb_fill_options& options);

 private:
  std::vector<const Head*> heads_;
  std::vector<float> scores_, best_scores_;
  std::vector<double> powers_;
  std::vector<int32_t> order_, tokens_, bounds_, first_masks_;
};

// Places in a text, from bytes to another unit; forwards from one place to the next is cheap.
class Places {
 public:
  Places(std::string_view text, eb_offset_unit unit) : text_(text), unit_(unit) {}
  int32_t find(int32_t byte);

 private:
  std::string_view text_;
  eb_offset_unit unit_;
  int32_t byte_ = 0, place_ = 0;
};

int32_t count_characters(std::string_view text);

}  // namespace edgebert::tasks
