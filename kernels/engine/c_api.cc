// The C API: checks arguments, and keeps exceptions inside.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "base/api_guard.h"
#include "base/platform.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "edgebert.h"
#include "engine/model.h"
#include "format/integrity.h"
#include "format/model_file.h"

namespace edgebert {
namespace {

constexpr int kMaxThreads = EDGEBERT_THREADS ? 1024 : 1;

thread_local char last_error[2048] = "";

std::string range(int last) { return "0 to " + std::to_string(last); }

void check_ids(const char* name, const int32_t* ids, int32_t count, int limit) {
  for (int32_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= limit) {
      fail(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(ids[i]) + ", expected " +
           range(limit - 1));
    }
  }
}

void check_batch(const EncoderSpec& spec, const eb_batch& batch) {
  if (batch.num_sequences < 0) fail("num_sequences is " + std::to_string(batch.num_sequences) + ", expected 0 or more");
  if (batch.cu_seqlens == nullptr) fail("cu_seqlens is NULL");
  if (batch.cu_seqlens[0] != 0) fail("cu_seqlens[0] is " + std::to_string(batch.cu_seqlens[0]) + ", expected 0");
  for (int32_t i = 0; i < batch.num_sequences; ++i) {
    const int64_t length = int64_t{batch.cu_seqlens[i + 1]} - batch.cu_seqlens[i];
    if (length < 1 || length > spec.usable_positions()) {
      fail("sequence " + std::to_string(i) + " has " + std::to_string(length) + " tokens, the model takes 1 to " +
           std::to_string(spec.usable_positions()) + ": truncate it, or drop it if empty");
    }
  }
  const int32_t total_tokens = batch.cu_seqlens[batch.num_sequences];
  if (total_tokens == 0) return;
  if (batch.input_ids == nullptr) fail("input_ids is NULL");
  check_ids("input_ids", batch.input_ids, total_tokens, spec.vocab_size);
  if (batch.token_type_ids != nullptr) {
    check_ids("token_type_ids", batch.token_type_ids, total_tokens, spec.num_token_types);
  }
}

// After check_batch. Without output_tokens their number counts for nothing.
void check_output_tokens(const eb_batch& batch) {
  if (batch.output_tokens == nullptr) return;
  if (batch.num_output_tokens < 0) fail("num_output_tokens is negative");
  const int32_t total_tokens = batch.cu_seqlens[batch.num_sequences];
  for (int32_t i = 0, next = 0; i < batch.num_output_tokens; next = batch.output_tokens[i++] + 1) {
    if (batch.output_tokens[i] < next || batch.output_tokens[i] >= total_tokens) {
      fail("output_tokens[" + std::to_string(i) + "] is " + std::to_string(batch.output_tokens[i]) +
           ", expected tokens of the batch in ascending order, here " + std::to_string(next) +
           " or more and less than " + std::to_string(total_tokens));
    }
  }
}

void check_output(const EncoderSpec& spec, const eb_batch& batch, const eb_output& output) {
  if (output.name == nullptr) fail("an output's name is NULL");
  const Head* head = spec.find_head(output.name);
  if (head == nullptr) {
    fail("unknown output '" + std::string(output.name).substr(0, 100) + "': the model's task has none of that name");
  }
  const int32_t rows = !head->is_per_token()            ? batch.num_sequences
                       : batch.output_tokens != nullptr ? batch.num_output_tokens
                                                        : batch.cu_seqlens[batch.num_sequences];
  const size_t needed = static_cast<size_t>(rows) * static_cast<size_t>(head->width);
  if (needed > output.capacity) {
    fail("output " + std::string(output.name) + " needs room for " + std::to_string(needed) + " floats, got " +
         std::to_string(output.capacity));
  }
  if (needed > 0 && output.data == nullptr) fail("output " + std::string(output.name) + " has no data pointer");
}

// The weights are laid out and the tokenizer is made side by side, unless one thread is all that was asked for.
std::unique_ptr<eb_model> make_model(const ModelFile& file, const eb_options& options) {
  auto model = std::make_unique<eb_model>();
  const std::function<void()> parts[] = {
      [&] { model->encoder = std::make_unique<Encoder>(file, options); },
      [&] {
        if (options.ids_only == 0) model->text_part = make_text_part(file.spec, file.tokenizer_json);
      },
  };
  std::exception_ptr errors[2];
  std::atomic<size_t> next{0};
  run_on_threads(options.num_threads == 1 || options.ids_only != 0 ? 1 : 2, [&] {
    for (size_t i; (i = next.fetch_add(1)) < 2;) {
      try {
        parts[i]();
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  });
  for (const std::exception_ptr& error : errors) {
    if (error != nullptr) std::rethrow_exception(error);
  }
  return model;
}

void load_model(std::string_view bytes, const MappedFile* file, const eb_options* options, eb_model** model) {
  const eb_options chosen = options != nullptr ? *options : eb_options{};
  if (chosen.num_threads < 0 || chosen.num_threads > kMaxThreads) {
    fail("num_threads is " + std::to_string(chosen.num_threads) + ", expected " + range(kMaxThreads) +
         " (0: one for each CPU this process may use)");
  }
  if (chosen.verify != 0 || chosen.public_key != nullptr) check_content(bytes, chosen.public_key);
  Encoder::require(chosen);
  ModelFile read = read_model_file(bytes, file);
  if (chosen.full_depth != 0) read.spec.exits.clear();
  *model = make_model(read, chosen).release();
}

}  // namespace

void run_checked(eb_model& model, const eb_batch& batch, eb_output* outputs, int32_t num_outputs) {
  const EncoderSpec& spec = model.encoder->spec();
  eb_batch checked = batch;
  // With one token type its row is added to every token, with none nothing is: either way types carry nothing.
  if (spec.num_token_types < 2) checked.token_type_ids = nullptr;
  check_batch(spec, checked);
  check_output_tokens(checked);
  for (int32_t i = 0; i < num_outputs; ++i) check_output(spec, checked, outputs[i]);
  if (checked.num_sequences == 0 || num_outputs == 0) return;
  model.encoder->run(checked, outputs, num_outputs);
}

eb_status report(eb_status status, const char* message) noexcept {
  std::snprintf(last_error, sizeof last_error, "%s", message);
  return status;
}

}  // namespace edgebert

using edgebert::fail;
using edgebert::guard;

const char* eb_version(void) { return EDGEBERT_VERSION; }

int32_t eb_abi_version(void) { return EB_ABI_VERSION; }

const char* eb_last_error(void) { return edgebert::last_error; }

const char* eb_built_isas(void) { return edgebert::Encoder::built_isas(); }

const char* eb_usable_isas(void) {
  const char* names = "";
  guard([&] { names = edgebert::Encoder::usable_isas(); });
  return names;
}

int32_t eb_default_threads(void) { return edgebert::Encoder::default_threads(); }

eb_status eb_load(const char* path, const eb_options* options, eb_model** model) {
  return guard([&] {
    if (model == nullptr) fail("model is NULL");
    *model = nullptr;
    if (path == nullptr) fail("path is NULL");
    const edgebert::MappedFile file(path);
    try {
      edgebert::load_model(file.bytes(), &file, options, model);
    } catch (const edgebert::Error& error) {
      if (error.status() != EB_MODEL_FORMAT && error.status() != EB_UNSUPPORTED) throw;
      throw edgebert::Error(error.status(), std::string(path) + ": " + error.what());
    }
  });
}

eb_status eb_load_memory(const void* data, size_t size, const eb_options* options, eb_model** model) {
  return guard([&] {
    if (model == nullptr) fail("model is NULL");
    *model = nullptr;
    if (data == nullptr) fail("data is NULL");
    edgebert::load_model({static_cast<const char*>(data), size}, nullptr, options, model);
  });
}

void eb_free(eb_model* model) { delete model; }

const char* eb_model_isa(const eb_model* model) { return model != nullptr ? model->encoder->isa() : ""; }

int32_t eb_model_threads(const eb_model* model) { return model != nullptr ? model->encoder->num_threads() : 0; }

size_t eb_model_workspace_bytes(const eb_model* model) {
  return model != nullptr ? model->encoder->workspace_bytes() : 0;
}

eb_status eb_run(eb_model* model, const eb_batch* batch, eb_output* outputs, int32_t num_outputs) {
  return guard([&] {
    if (model == nullptr || batch == nullptr) fail("model or batch is NULL");
    if (num_outputs < 0 || (outputs == nullptr && num_outputs > 0)) fail("outputs is NULL, or num_outputs negative");
    edgebert::run_checked(*model, *batch, outputs, num_outputs);
  });
}
