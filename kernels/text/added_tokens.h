// AddedTokens: tokens that are cut out of a text before anything else sees it, as [MASK] is.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/scratch.h"
#include "text/trie.h"

namespace edgebert::text {

struct AddedToken {
  std::string content;
  int32_t id;
  bool is_single_word, strips_left, strips_right, is_normalized, is_special;
};

// Finds some added tokens in a text, the leftmost first and of those that begin together the longest.
class AddedTokens {
 public:
  AddedTokens() = default;
  // Tokens, each with the text it is found by. Throws Error(EB_MODEL_FORMAT) if two have the same, or one has none.
  explicit AddedTokens(const std::vector<std::pair<AddedToken, std::string>>& tokens);

  bool empty() const { return tokens_.empty(); }
  // Appends the parts of text[begin, end): tokens, with the blanks that they take along, and what lies between.
  void split(const char* text, uint32_t begin, uint32_t end, Buffer<Split>* parts) const;

 private:
  std::vector<AddedToken> tokens_;
  Trie trie_;                         // texts to indices into tokens_
  std::array<bool, 256> is_first_{};  // bytes with which one begins
  std::array<char, 3> firsts_{};      // the same where they are few
  int num_firsts_ = 0;
};

}  // namespace edgebert::text
