// The C API's texts and answers: checks arguments, and keeps exceptions inside.
#include <algorithm>
#include <string>

#include "base/api_guard.h"
#include "edgebert.h"
#include "engine/model.h"
#include "tasks/session.h"
#include "tasks/tasks.h"
#include "tasks/text_model.h"

struct eb_session {
  eb_session(eb_model* model, const eb_session_options& options) : session(model, options) {}

  edgebert::tasks::Session session;
  edgebert::tasks::Embedding embedding;
  edgebert::tasks::TextClassification text_classification;
  edgebert::tasks::Reranking reranking;
  edgebert::tasks::TokenClassification token_classification;
  edgebert::tasks::QuestionAnswering question_answering;
  edgebert::tasks::FillMask fill_mask;
};

using edgebert::fail;
using edgebert::guard;

namespace {

const edgebert::EncoderSpec& spec_of(const eb_model* model) { return model->encoder->spec(); }

// What all calls have in common: *result is all zero where there is no answer.
template <class Options, class Result, class Body>
eb_status call(eb_session* session, const eb_text* texts, int32_t num_texts, const Options* options, Result* result,
               const Body& body, const char* name = "texts") {
  return guard([&] {
    if (result == nullptr) fail("there is no struct for the result: it is NULL");
    *result = Result{};
    if (session == nullptr) fail("session is NULL");
    if (num_texts < 0)
      fail("the number of " + std::string(name) + " is " + std::to_string(num_texts) + ", expected 0 or more");
    if (num_texts > 0 && texts == nullptr) fail(std::string(name) + " is NULL");
    *result = body(options != nullptr ? *options : Options{});
  });
}

}  // namespace

const char* eb_model_task(const eb_model* model) {
  return model == nullptr ? nullptr : spec_of(model).text.task.c_str();
}

int32_t eb_model_hidden_size(const eb_model* model) { return model == nullptr ? 0 : spec_of(model).hidden_size; }

int32_t eb_model_max_length(const eb_model* model) { return model == nullptr ? 0 : spec_of(model).text.max_length; }

int32_t eb_model_max_positions(const eb_model* model) {
  return model == nullptr ? 0 : spec_of(model).usable_positions();
}

int32_t eb_model_num_outputs(const eb_model* model) {
  return model == nullptr ? 0 : static_cast<int32_t>(spec_of(model).heads.size());
}

const char* eb_model_output(const eb_model* model, int32_t index) {
  if (index < 0 || index >= eb_model_num_outputs(model)) return nullptr;
  return spec_of(model).heads[static_cast<size_t>(index)].name.c_str();
}

int32_t eb_model_output_width(const eb_model* model, const char* name) {
  const edgebert::Head* head = model == nullptr || name == nullptr ? nullptr : spec_of(model).find_head(name);
  return head == nullptr ? 0 : head->width;
}

int32_t eb_model_num_labels(const eb_model* model) {
  return model == nullptr ? 0 : static_cast<int32_t>(spec_of(model).text.labels.size());
}

const char* eb_model_label(const eb_model* model, int32_t label) {
  if (label < 0 || label >= eb_model_num_labels(model)) return nullptr;
  return spec_of(model).text.labels[static_cast<size_t>(label)].c_str();
}

int32_t eb_model_find_label(const eb_model* model, const char* name) {
  if (model == nullptr || name == nullptr) return -1;
  const auto& labels = spec_of(model).text.labels;
  const auto found = std::find(labels.begin(), labels.end(), name);
  return found == labels.end() ? -1 : static_cast<int32_t>(found - labels.begin());
}

const eb_tokenizer* eb_model_tokenizer(const eb_model* model) {
  const eb_tokenizer* tokenizer = nullptr;
  guard([&] {
    if (model == nullptr) fail("model is NULL");
    tokenizer = edgebert::tasks::text_model_of(*model).tokenizer.get();
  });
  return tokenizer;
}

eb_status eb_session_open(eb_model* model, const eb_session_options* options, eb_session** session) {
  return guard([&] {
    if (session == nullptr) fail("session is NULL");
    *session = nullptr;
    if (model == nullptr) fail("model is NULL");
    *session = new eb_session(model, options != nullptr ? *options : eb_session_options{});
  });
}

void eb_session_free(eb_session* session) { delete session; }

void eb_session_cancel(eb_session* session, int32_t is_cancelled) {
  if (session != nullptr) session->session.cancel(is_cancelled != 0);
}

eb_status eb_embed(eb_session* session, const eb_text* texts, int32_t num_texts, const eb_embed_options* options,
                   eb_embeddings* embeddings) {
  return call(session, texts, num_texts, options, embeddings, [&](const eb_embed_options& chosen) {
    return session->embedding.run(&session->session, texts, num_texts, chosen);
  });
}

eb_status eb_classify(eb_session* session, const eb_text* texts, const eb_text* pairs, int32_t num_texts,
                      const eb_classify_options* options, eb_classes* classes) {
  return call(session, texts, num_texts, options, classes, [&](const eb_classify_options& chosen) {
    return session->text_classification.run(&session->session, texts, pairs, num_texts, chosen);
  });
}

eb_status eb_rank(eb_session* session, eb_text query, const eb_text* texts, int32_t num_texts,
                  const eb_rank_options* options, eb_ranking* ranking) {
  return call(session, texts, num_texts, options, ranking, [&](const eb_rank_options& chosen) {
    return session->reranking.run(&session->session, query, texts, num_texts, chosen);
  });
}

eb_status eb_label_tokens(eb_session* session, const eb_text* texts, int32_t num_texts, const eb_label_options* options,
                          eb_entities* entities) {
  return call(session, texts, num_texts, options, entities, [&](const eb_label_options& chosen) {
    return session->token_classification.run(&session->session, texts, num_texts, chosen);
  });
}

eb_status eb_answer(eb_session* session, const eb_text* questions, const eb_text* contexts, int32_t num_questions,
                    const eb_answer_options* options, eb_answers* answers) {
  return call(
      session, questions, num_questions, options, answers,
      [&](const eb_answer_options& chosen) {
        if (num_questions > 0 && contexts == nullptr) fail("contexts is NULL");
        return session->question_answering.run(&session->session, questions, contexts, num_questions, chosen);
      },
      "questions");
}

eb_status eb_fill_mask(eb_session* session, const eb_text* texts, int32_t num_texts, const eb_fill_options* options,
                       eb_fills* fills) {
  return call(session, texts, num_texts, options, fills, [&](const eb_fill_options& chosen) {
    return session->fill_mask.run(&session->session, texts, num_texts, chosen);
  });
}
