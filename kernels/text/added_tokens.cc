#include "text/added_tokens.h"

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "text/unicode.h"

namespace edgebert::text {

AddedTokens::AddedTokens(const std::vector<std::pair<AddedToken, std::string>>& tokens) {
  std::vector<Trie::Entry> entries;
  for (const auto& [token, text] : tokens) {
    if (text.empty()) {
      throw Error(EB_UNSUPPORTED, "nothing is left of the tokenizer's added token " + token.content.substr(0, 100) +
                                      " once it is normalized: use the tokenizers library");
    }
    entries.push_back({text, static_cast<int32_t>(tokens_.size())});
    tokens_.push_back(token);
    const auto first = static_cast<unsigned char>(text[0]);
    if (is_first_[first]) continue;
    is_first_[first] = true;
    if (num_firsts_ < static_cast<int>(firsts_.size())) firsts_[static_cast<size_t>(num_firsts_)] = text[0];
    ++num_firsts_;
  }
  trie_ = Trie(entries);
  if (trie_.size() != tokens_.size()) {
    throw Error(
        EB_UNSUPPORTED,
        "two of the tokenizer's added tokens are the same once they are normalized: use the tokenizers library");
  }
}

void AddedTokens::split(const char* text, uint32_t begin, uint32_t end, Buffer<Split>* parts) const {
  uint32_t done = begin;
  // With few first bytes, memchr finds where each stands next.
  std::array<size_t, 3> next;
  const bool is_few = num_firsts_ <= static_cast<int>(next.size());
  const auto find = [&](char byte, size_t from) {
    const void* found = from < end ? std::memchr(text + from, byte, end - from) : nullptr;
    return found == nullptr ? size_t{end} : static_cast<size_t>(static_cast<const char*>(found) - text);
  };
  for (int i = 0; is_few && i < num_firsts_; ++i)
    next[static_cast<size_t>(i)] = find(firsts_[static_cast<size_t>(i)], begin);
  for (size_t at = begin; !tokens_.empty();) {
    if (is_few) {
      size_t nearest = end;
      for (size_t i = 0; i < static_cast<size_t>(num_firsts_); ++i) {
        if (next[i] < at) next[i] = find(firsts_[i], at);
        nearest = std::min(nearest, next[i]);
      }
      at = nearest;
    } else {
      while (at < end && !is_first_[static_cast<unsigned char>(text[at])]) ++at;
    }
    if (at >= end) break;
    uint32_t node = Trie::kRoot;
    int32_t index = -1;
    size_t stop = at;
    for (size_t i = at; i < end;) {
      node = trie_.step(node, static_cast<unsigned char>(text[i++]));
      if (node == Trie::kNone) break;
      if (trie_.value(node) >= 0) {
        index = trie_.value(node);
        stop = i;
      }
    }
    if (index < 0) {
      ++at;
      continue;
    }
    size_t start = at;
    at = stop;
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    if (token.is_single_word) {
      size_t behind = stop;
      const bool joins_left = start > begin && (class_of(decode_before(text, start)) & kWord) != 0;
      const bool joins_right = stop < end && (class_of(decode(text, &behind)) & kWord) != 0;
      if (joins_left || joins_right) continue;
    }
    if (token.strips_left) {
      while (start > begin) {
        if ((class_of(decode_before(text, start)) & kSpace) == 0) break;
        --start;
        while ((static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
      }
      start = std::max(start, size_t{done});
    }
    if (token.strips_right) {
      for (size_t behind = stop; behind < end && (class_of(decode(text, &behind)) & kSpace) != 0;) stop = behind;
    }
    if (done < start) parts->push({done, static_cast<uint32_t>(start), -1});
    // Nothing may be left where the token before it took its blanks along.
    if (start < stop) parts->push({static_cast<uint32_t>(start), static_cast<uint32_t>(stop), token.id});
    done = static_cast<uint32_t>(stop);
  }
  if (done != end) parts->push({done, end, -1});
}

}  // namespace edgebert::text
