// Rows: texts and pairs to sequences with special tokens, truncated or cut into windows; on several threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "edgebert.h"
#include "text/tokenizer.h"

namespace edgebert::text {

// What errors call a row and its texts: these words, and the row's number.
struct RowNames {
  const char* row = "text";
  const char* first = "text";
  const char* second = "";
  bool has_one_first = false;  // all rows have one first text, whose name has no number
  size_t prefix_size = 0;      // bytes before each first text that are not the caller's

  std::string name_row(int32_t index) const { return std::string(row) + " " + std::to_string(index); }
  std::string name(int32_t index, size_t place) const {  // of the first text or, with place 1, of the second
    if (place == 0 && has_one_first) return first;
    return std::string(place == 0 ? first : second) + " " + std::to_string(index);
  }
};

// Throws Error(EB_INVALID_INPUT) for what is not text, and limits that leave no room. eb_tokens_free takes the result.
eb_tokens* tokenize_rows(const Tokenizer& tokenizer, const eb_texts& texts, const eb_tokenize_options& options);
void free_rows(eb_tokens* tokens);
// Throws Error(EB_INVALID_INPUT) for bounds that are none.
void check_texts(const eb_texts& texts);
// Throws Error(EB_INVALID_INPUT) for a text of too many bytes.
void check_size(int64_t size, const RowNames& names, int32_t index, size_t place);
// Throws Error(EB_INVALID_INPUT) for options that are not usable for rows of `num_texts` texts or more.
void check_options(const Tokenizer& tokenizer, const eb_tokenize_options& options, size_t num_texts);

// Rows for a caller who asks again and again: memory is kept, and once it is large enough nothing is allocated.
class RowMaker {
 public:
  RowMaker();
  ~RowMaker();
  // As tokenize_rows, on the calling thread, with options that are checked; what comes out is valid until the next
  // call. Errors count rows from `first_row`.
  const eb_tokens& make(const Tokenizer& tokenizer, const eb_texts& texts, const eb_tokenize_options& options,
                        const RowNames& names, int32_t first_row);

 private:
  struct Memory;
  std::unique_ptr<Memory> memory_;
};

}  // namespace edgebert::text
