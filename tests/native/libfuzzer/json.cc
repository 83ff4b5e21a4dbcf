// libFuzzer: bytes as a tokenizer's JSON are refused or make a tokenizer that takes texts; never a crash.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "edgebert.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  eb_tokenizer* tokenizer = nullptr;
  if (eb_tokenizer_load(data, size, &tokenizer) != EB_OK) return 0;
  constexpr char kText[] = "a router,  \xC3\xA9 e\xCC\x81 \xE4\xB8\xAD\xF0\x9F\x98\x80[MASK]";
  const int64_t bounds[] = {0, 9, sizeof kText - 1};
  const int32_t row_bounds[] = {0, 1, 2};
  const eb_texts texts = {kText, bounds, row_bounds, 2};
  eb_tokenize_options options = {};
  options.max_length = 9;
  options.offset_unit = EB_OFFSETS_CODE_POINTS;
  options.num_threads = 1;
  eb_tokens* tokens = nullptr;
  if (eb_tokenize(tokenizer, &texts, &options, &tokens) == EB_OK) {
    char text[64];
    size_t text_size;
    eb_detokenize(tokenizer, tokens->input_ids, tokens->total_tokens, 0, text, sizeof text, &text_size);
    for (int32_t i = 0; i < 2 * tokens->total_tokens; ++i) {
      if (tokens->offsets[i] < 0 || tokens->offsets[i] > static_cast<int32_t>(sizeof kText)) std::abort();
    }
  }
  eb_tokens_free(tokens);
  eb_tokenizer_free(tokenizer);
  return 0;
}
