// Rows: texts and pairs to sequences with special tokens, truncated or cut into windows; on several threads.
#pragma once

#include <cstdint>
#include <memory>

#include "edgebert.h"
#include "text/tokenizer.h"

namespace edgebert::text {

// Throws Error(EB_INVALID_INPUT) for what is not text, and limits that leave no room. eb_tokens_free takes the result.
eb_tokens* tokenize_rows(const Tokenizer& tokenizer, const eb_texts& texts, const eb_tokenize_options& options);
void free_rows(eb_tokens* tokens);
// Throws Error(EB_INVALID_INPUT) for bounds that are none.
void check_texts(const eb_texts& texts);

// Rows for a caller who asks again and again: memory is kept, and once it is large enough nothing is allocated.
class RowMaker {
 public:
  RowMaker();
  ~RowMaker();
  // As tokenize_rows, on the calling thread; what comes out is valid until the next call. Errors count rows from
  // `first_row`.
  const eb_tokens& make(const Tokenizer& tokenizer, const eb_texts& texts, const eb_tokenize_options& options,
                        int32_t first_row);

 private:
  struct Memory;
  std::unique_ptr<Memory> memory_;
};

}  // namespace edgebert::text
