// Tokenizer: the tokenizers library's JSON, read once; texts to tokens with the ids, offsets and words of that library.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/decoder.h"
#include "text/model.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/scratch.h"

namespace edgebert::text {

// Where a token comes from, in bytes of the text.
struct Span {
  uint32_t begin, end;
};

// Tokens of texts, one after another.
struct Tokens {
  Buffer<int32_t> ids;
  Buffer<Span> spans;     // empty unless asked for
  Buffer<int32_t> words;  // as the spans
};

// Where special tokens stand in a row: ids and types before the first text, between the texts and after the last.
struct Layout {
  std::vector<std::vector<int32_t>> special_ids, special_types;  // one more than there are texts
  std::vector<int32_t> text_types;

  int64_t num_special() const {
    int64_t count = 0;
    for (const auto& ids : special_ids) count += static_cast<int64_t>(ids.size());
    return count;
  }
};

class Tokenizer {
 public:
  // Throws Error: EB_MODEL_FORMAT if it is damaged, EB_UNSUPPORTED for what is not reproduced to the letter.
  explicit Tokenizer(std::string_view json);
  ~Tokenizer();

  // Appends the tokens of a text, which is valid UTF-8, without special tokens.
  void tokenize(std::string_view text, bool has_spans, Scratch* scratch, Tokens* tokens) const;

  // The id of a token, added or of the vocabulary; -1 for none.
  int32_t find(std::string_view token) const;
  // Sets *token to the token of an id, as a text has it once it is normalized. Returns whether there is one.
  bool name(int32_t id, std::string* token) const;
  // Ids as a text. Ids without a token are left out. Throws Error(EB_UNSUPPORTED) for a decoder not reproduced.
  std::string detokenize(const int32_t* ids, size_t count, bool skips_special) const;
  // Tokens as a text, the way the decoder writes it. Throws as detokenize().
  std::string join(std::vector<std::string> tokens) const { return decoder_->decode(std::move(tokens)); }

  int32_t max_id() const;                        // of all tokens
  int32_t vocab_size() const;                    // different tokens, added ones included
  int32_t unknown_id() const;                    // of the token for what the vocabulary cannot spell; -1: none
  bool cuts_left() const { return cuts_left_; }  // whether the JSON has the beginning cut off
  bool marks_subwords() const { return model_->marks_subwords(); }
  // Special tokens by ascending id, and their texts before they are normalized.
  const std::vector<int32_t>& special_ids() const { return special_ids_; }
  const std::vector<const char*>& special_tokens() const { return special_texts_; }

  // Of one text, or of a pair.
  const Layout& layout(size_t num_texts) const { return layouts_[num_texts - 1]; }

  std::unique_ptr<Scratch> borrow_scratch() const;
  void return_scratch(std::unique_ptr<Scratch> scratch) const;

 private:
  struct Trim {  // a post-processor that takes blanks off offsets
    bool adds_prefix;
  };

  void read_truncation(std::string_view json);
  void read_added(std::string_view json);
  void read_post_processor(std::string_view json);
  void add_post_processor(JsonObject* object);
  void split(std::string_view text, bool has_spans, Scratch* scratch) const;
  template <bool kHasSpans>
  void look_up(Scratch* scratch, Tokens* tokens) const;
  void trim(std::string_view text, const Scratch& scratch, size_t first, Tokens* tokens) const;

  std::unique_ptr<Normalizer> normalizer_;
  std::unique_ptr<PreTokenizer> pre_tokenizer_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Decoder> decoder_;
  bool cuts_left_ = false;
  std::map<std::string, int32_t, std::less<>> added_ids_;
  std::map<int32_t, std::string> added_names_;
  std::set<std::string, std::less<>> specials_;
  std::vector<int32_t> special_ids_;
  std::vector<std::string> special_tokens_;
  std::vector<const char*> special_texts_;
  AddedTokens raw_added_, normalized_added_;
  std::vector<Trim> trims_;
  std::vector<Layout> layouts_;
  const Normalizer no_normalizer_{"null"};
  // Idle ones. No lock: a child forked while it is held could never take it.
  mutable std::array<std::atomic<Scratch*>, 64> scratches_{};
};

}  // namespace edgebert::text
