// Model: the tokenizer's third part, from a word to its tokens: WordPiece, WordLevel, BPE or Unigram.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/json_object.h"
#include "text/scratch.h"
#include "text/trie.h"

namespace edgebert::text {

class Model {
 public:
  Model() = default;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  virtual ~Model() { delete places_.load(); }
  // Sets scratch->pieces to those of a word, which is valid UTF-8 (for a byte-level model a part of it) and not empty.
  virtual void tokenize(std::string_view word, Scratch* scratch) const = 0;

  // Ids of the vocabulary's tokens; -1 for what it does not have.
  int32_t find(std::string_view token) const { return trie_.find(token); }
  // Sets *token to the token of an id. Returns whether the vocabulary has it. Threads call it at once.
  bool name(int32_t id, std::string* token) const;
  int32_t max_id() const { return max_id_; }          // -1: none
  int32_t vocab_size() const { return vocab_size_; }  // tokens the vocabulary lists
  int32_t unknown_id() const { return unknown_id_; }  // of the token for what it cannot spell; -1: none
  bool marks_subwords() const { return has_marks_; }  // whether tokens that continue a word carry a mark
  // Blanks at a token's ends, for ByteLevel's trimmed offsets; learned for byte-level models.
  struct Blanks {
    uint16_t leading, trailing;
  };
  const std::vector<Blanks>& blanks() const { return blanks_; }

 protected:
  // Of equal tokens the last counts; in a list, where places are ids, the others keep their names.
  void set_vocabulary(const std::vector<Trie::Entry>& entries, bool is_list);

  Trie trie_;
  int32_t unknown_id_ = -1;
  bool has_marks_ = false;
  std::vector<Blanks> blanks_;

 private:
  int32_t vocab_size_ = 0, max_id_ = -1;
  std::map<int32_t, std::string> hidden_;  // names that the trie does not give
  // The trie's nodes by id, made when first asked for. No lock: a child forked while it is held could never take it.
  mutable std::atomic<const std::vector<Trie::Place>*> places_{nullptr};
};

// Takes a model's JSON. Throws Error: damaged, or refused by name.
std::unique_ptr<Model> make_model(std::string_view json, bool is_byte_level);

// The letter of a byte in ByteLevel's alphabet.
constexpr uint32_t byte_letter(unsigned char byte) {
  if ((byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD)) return byte;
  // The others in order: 0 to 32, 127 to 160, 173.
  return 256u + (byte <= 32 ? byte : byte == 0xAD ? 67u : byte - 127u + 33u);
}
// And back: -1 for what is no such letter.
inline int letter_byte(uint32_t letter) {
  constexpr uint32_t kEnd = 0x144;
  static constexpr auto kBytes = [] {
    std::array<int16_t, kEnd> bytes{};
    for (uint32_t i = 0; i < kEnd; ++i) bytes[i] = -1;
    for (int i = 0; i < 256; ++i) bytes[byte_letter(static_cast<unsigned char>(i))] = static_cast<int16_t>(i);
    return bytes;
  }();
  return letter < kEnd ? kBytes[letter] : -1;
}

}  // namespace edgebert::text
