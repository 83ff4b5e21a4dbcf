// Model: the tokenizer's third part, from a word to its tokens: WordPiece, WordLevel, BPE or Unigram.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/json_object.h"
#include "text/scratch.h"

namespace edgebert::text {

class Model {
 public:
  virtual ~Model() = default;
  // Sets scratch->pieces to those of a word, which is valid UTF-8 (for a byte-level model a part of it) and not empty.
  virtual void tokenize(std::string_view word, Scratch* scratch) const = 0;

  // Ids of the vocabulary's tokens; -1 for what it does not have.
  virtual int32_t find(std::string_view token) const = 0;
  int32_t vocab_size() const { return vocab_size_; }  // tokens the vocabulary lists
  // Blanks at a token's ends, for ByteLevel's trimmed offsets; learned for byte-level models.
  struct Blanks {
    uint16_t leading, trailing;
  };
  const std::vector<Blanks>& blanks() const { return blanks_; }

 protected:
  int32_t vocab_size_ = 0;
  std::vector<Blanks> blanks_;
};

// Takes a model's JSON. Throws Error: damaged, or refused by name.
std::unique_ptr<Model> make_model(std::string_view json, bool is_byte_level);

// The token of a byte in ByteLevel's alphabet.
uint32_t byte_letter(unsigned char byte);

}  // namespace edgebert::text
