// The C API's tokenizers: checks arguments, and keeps exceptions inside.
#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/api_guard.h"
#include "edgebert.h"
#include "text/handle.h"
#include "text/rows.h"
#include "text/unicode.h"

using edgebert::fail;
using edgebert::guard;

namespace {

void put(const std::string& from, char* text, size_t capacity, size_t* size) {
  *size = from.size();
  if (capacity == 0) return;
  const size_t count = std::min(from.size(), capacity - 1);
  std::memcpy(text, from.data(), count);
  text[count] = '\0';
}

void check(const eb_tokenizer* tokenizer, const char* text, size_t capacity, const size_t* size) {
  if (tokenizer == nullptr || size == nullptr) fail("tokenizer or size is NULL");
  if (text == nullptr && capacity > 0) fail("text is NULL");
}

}  // namespace

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
    const eb_tokenize_options chosen = options != nullptr ? *options : eb_tokenize_options{};
    *tokens = edgebert::text::tokenize_rows(tokenizer->tokenizer, *texts, chosen);
  });
}

eb_status eb_tokenizer_describe(const eb_tokenizer* tokenizer, eb_tokenizer_info* info) {
  return guard([&] {
    if (tokenizer == nullptr || info == nullptr) fail("tokenizer or info is NULL");
    const edgebert::text::Tokenizer& of = tokenizer->tokenizer;
    const auto& types = of.layout(2).text_types;
    *info = {of.vocab_size(),
             of.max_id(),
             of.unknown_id(),
             of.cuts_left() ? EB_SIDE_LEFT : EB_SIDE_RIGHT,
             std::any_of(types.begin(), types.end(), [](int32_t type) { return type != 0; }) ? 1 : 0,
             of.marks_subwords() ? 1 : 0,
             static_cast<int32_t>(of.special_ids().size()),
             of.special_ids().data(),
             of.special_tokens().data()};
  });
}

eb_status eb_tokenizer_token(const eb_tokenizer* tokenizer, int32_t id, char* text, size_t capacity, size_t* size) {
  return guard([&] {
    check(tokenizer, text, capacity, size);
    std::string token;
    if (!tokenizer->tokenizer.name(id, &token)) fail("the tokenizer has no token of the id " + std::to_string(id));
    put(token, text, capacity, size);
  });
}

eb_status eb_detokenize(const eb_tokenizer* tokenizer, const int32_t* ids, int32_t num_ids,
                        int32_t skips_special_tokens, char* text, size_t capacity, size_t* size) {
  return guard([&] {
    check(tokenizer, text, capacity, size);
    if (num_ids < 0 || (ids == nullptr && num_ids > 0)) fail("ids is NULL, or num_ids negative");
    put(tokenizer->tokenizer.detokenize(ids, static_cast<size_t>(num_ids), skips_special_tokens != 0), text, capacity,
        size);
  });
}

eb_status eb_join_tokens(const eb_tokenizer* tokenizer, const eb_texts* tokens, char* text, size_t capacity,
                         size_t* size) {
  return guard([&] {
    check(tokenizer, text, capacity, size);
    if (tokens == nullptr) fail("tokens is NULL");
    if (tokens->row_bounds != nullptr) fail("row_bounds has no meaning for tokens: leave it NULL");
    edgebert::text::check_texts(*tokens);
    std::vector<std::string> list;
    for (int32_t i = 0; i < tokens->num_rows; ++i) {
      const int64_t begin = tokens->text_bounds[i];
      list.emplace_back(tokens->data + begin, static_cast<size_t>(tokens->text_bounds[i + 1] - begin));
      size_t at;
      if (!edgebert::text::is_utf8(list.back(), &at)) fail("token " + std::to_string(i) + " is not valid UTF-8");
    }
    put(tokenizer->tokenizer.join(std::move(list)), text, capacity, size);
  });
}

void eb_tokens_free(eb_tokens* tokens) { edgebert::text::free_rows(tokens); }
