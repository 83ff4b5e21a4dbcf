/* The C API from C99: what it answers without a model, and that bad arguments get an error and no crash. */
#include <edgebert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "c_api_test: %s (last error: %s)\n", what, eb_last_error());
  exit(1);
}

int main(void) {
  eb_model* model = (eb_model*)&model;
  eb_options options = {NULL, -1, 0, 0, NULL, 0, 0};
  eb_batch batch = {NULL, NULL, NULL, 0, NULL, 0};
  check(eb_last_error()[0] == '\0', "no error yet");
  check(strcmp(eb_version(), EDGEBERT_VERSION) == 0, "version");
  check(strstr(eb_built_isas(), "baseline") != NULL, "the baseline is always built");
  check(strstr(eb_usable_isas(), "baseline") != NULL, "the baseline always runs");
  check(eb_default_threads() >= 1, "default threads");

  check(eb_load("/nonexistent/model.onnx", NULL, &model) == EB_MODEL_FORMAT, "missing file");
  check(model == NULL, "a failed load leaves NULL");
  check(strstr(eb_last_error(), "/nonexistent/model.onnx: No such file") != NULL, "the error names the file");
  check(eb_load(NULL, NULL, &model) == EB_INVALID_INPUT, "NULL path");
  check(eb_load("/nonexistent/model.onnx", NULL, NULL) == EB_INVALID_INPUT, "NULL model");
  check(eb_load_memory(NULL, 0, NULL, &model) == EB_INVALID_INPUT, "NULL data");
  check(eb_load_memory("", 0, NULL, &model) == EB_MODEL_FORMAT, "empty file");
  const char pointer[] = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n";
  check(eb_load_memory(pointer, sizeof pointer - 1, NULL, &model) == EB_MODEL_FORMAT, "a Git LFS pointer");
  check(strstr(eb_last_error(), "git lfs pull") != NULL, "the error says how to get the file");
  check(eb_load_memory("x", 1, &options, &model) == EB_INVALID_INPUT, "negative threads");
  options.num_threads = 1;
  options.isa = "no_such_isa";
  check(eb_load_memory("x", 1, &options, &model) == EB_UNAVAILABLE, "unknown ISA");
  check(strstr(eb_last_error(), "no_such_isa") != NULL, "the error names the ISA");
  options.isa = NULL;
  options.device = 1;
  check(eb_load_memory("x", 1, &options, &model) == EB_UNAVAILABLE, "a GPU for the CPU's library");

  check(eb_run(NULL, &batch, NULL, 0) == EB_INVALID_INPUT, "NULL model");
  check(eb_model_isa(NULL)[0] == '\0' && eb_model_threads(NULL) == 0, "questions to no model");
  check(eb_model_workspace_bytes(NULL) == 0, "no model has no workspace");
  eb_free(NULL);

  eb_session* session = (eb_session*)&session;
  const eb_text text = {"a", -1};
  eb_embeddings embeddings = {1, 1, NULL, NULL};
  eb_classes classes;
  eb_ranking ranking;
  eb_entities entities;
  eb_answers answers;
  eb_fills fills;
  check(eb_abi_version() == EB_ABI_VERSION, "the header's ABI");
  check(eb_session_open(NULL, NULL, &session) == EB_INVALID_INPUT, "a session of no model");
  check(session == NULL, "a failed opening leaves NULL");
  check(eb_session_open(NULL, NULL, NULL) == EB_INVALID_INPUT, "no place for a session");
  check(eb_embed(NULL, &text, 1, NULL, &embeddings) == EB_INVALID_INPUT, "embeddings of no session");
  check(embeddings.num_texts == 0, "a failed call leaves an empty result");
  check(eb_embed(NULL, &text, 1, NULL, NULL) == EB_INVALID_INPUT, "no place for a result");
  check(eb_classify(NULL, &text, NULL, 1, NULL, &classes) == EB_INVALID_INPUT, "classes of no session");
  check(eb_rank(NULL, text, &text, 1, NULL, &ranking) == EB_INVALID_INPUT, "a ranking of no session");
  check(eb_label_tokens(NULL, &text, 1, NULL, &entities) == EB_INVALID_INPUT, "labels of no session");
  check(eb_answer(NULL, &text, &text, 1, NULL, &answers) == EB_INVALID_INPUT, "answers of no session");
  check(eb_fill_mask(NULL, &text, 1, NULL, &fills) == EB_INVALID_INPUT, "masks of no session");
  check(strstr(eb_last_error(), "session is NULL") != NULL, "the error says what is NULL");
  eb_session_cancel(NULL, 1);
  eb_session_free(NULL);
  check(eb_model_task(NULL) == NULL && eb_model_label(NULL, 0) == NULL, "no model has no task and no labels");
  check(eb_model_num_labels(NULL) == 0 && eb_model_find_label(NULL, "a") == -1, "none by number or name");
  check(eb_model_num_outputs(NULL) == 0 && eb_model_output(NULL, 0) == NULL, "no model has no outputs");
  check(eb_model_output_width(NULL, "logits") == 0 && eb_model_hidden_size(NULL) == 0, "no model has no sizes");
  check(eb_model_max_length(NULL) == 0 && eb_model_max_positions(NULL) == 0, "no model has no limits");
  check(eb_model_tokenizer(NULL) == NULL, "no model has no tokenizer");
  return 0;
}
