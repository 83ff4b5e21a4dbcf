// The C API's tokenizers: checks arguments, and keeps exceptions inside.
#include <string_view>

#include "base/api_guard.h"
#include "edgebert.h"
#include "text/rows.h"
#include "text/tokenizer.h"

struct eb_tokenizer {
  explicit eb_tokenizer(std::string_view json) : tokenizer(json) {}

  const edgebert::text::Tokenizer tokenizer;
};

using edgebert::fail;
using edgebert::guard;

eb_status eb_tokenizer_load(const void* json, size_t size, eb_tokenizer** tokenizer) {
  return guard([&] {
    if (tokenizer == nullptr) fail("tokenizer is NULL");
    *tokenizer = nullptr;
    if (json == nullptr) fail("json is NULL");
    *tokenizer = new eb_tokenizer({static_cast<const char*>(json), size});
  });
}

void eb_tokenizer_free(eb_tokenizer* tokenizer) { delete tokenizer; }

int32_t eb_tokenizer_find(const eb_tokenizer* tokenizer, const char* token) {
  return tokenizer == nullptr || token == nullptr ? -1 : tokenizer->tokenizer.find(token);
}

eb_status eb_tokenize(const eb_tokenizer* tokenizer, const eb_texts* texts, const eb_tokenize_options* options,
                      eb_tokens** tokens) {
  return guard([&] {
    if (tokens == nullptr) fail("tokens is NULL");
    *tokens = nullptr;
    if (tokenizer == nullptr || texts == nullptr) fail("tokenizer or texts is NULL");
    const eb_tokenize_options chosen = options != nullptr ? *options : eb_tokenize_options{0, -1, 0, 0, 0, 0, 0};
    *tokens = edgebert::text::tokenize_rows(tokenizer->tokenizer, *texts, chosen);
  });
}

void eb_tokens_free(eb_tokens* tokens) { edgebert::text::free_rows(tokens); }
