// JsonCursor: reads JSON from one end to the other without a tree, because vocabularies have 250,000 entries.
//
// Its numbers are those of the tokenizers library, whose parser does not round to the nearest double: digits are
// gathered in 64 bits, converted, and divided by a power of ten. Ties between paths of a Unigram model depend on it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace edgebert {

class JsonCursor {
 public:
  explicit JsonCursor(std::string_view text) : text_(text) {}

  // All of them throw Error(EB_MODEL_FORMAT) where something else stands.

  // Calls member(key) for each; it must read the value. The key is valid until then.
  template <class Member>
  void read_object(const Member& member) {
    enter('{');
    std::string scratch;
    if (!accept('}')) {
      do {
        const std::string_view key = read_string(&scratch);
        expect(':');
        member(key);
      } while (accept(','));
      expect('}');
    }
    --depth_;
  }

  template <class Item>
  void read_array(const Item& item) {
    enter('[');
    if (!accept(']')) {
      do {
        item();
      } while (accept(','));
      expect(']');
    }
    --depth_;
  }

  // UTF-8; a part of the text where it has no escapes, else of `scratch`.
  std::string_view read_string(std::string* scratch);
  std::string read_string() {
    std::string scratch;
    return std::string(read_string(&scratch));
  }
  double read_number();
  // A number from 0 to `limit` without fraction or exponent.
  uint32_t read_index(uint32_t limit);
  bool read_bool();
  bool accept_null();
  // The next value's first character: { [ " t f n, or one of a number.
  char peek();
  // Steps over a value and returns its text.
  std::string_view skip();
  // Nothing but space may be left.
  void finish();

  [[noreturn]] void fail(const std::string& what) const;

 private:
  static constexpr int kMaxDepth = 64;

  char at() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void skip_space() {
    while (at() == ' ' || at() == '\t' || at() == '\n' || at() == '\r') ++at_;
  }
  bool accept(char c) {
    skip_space();
    if (at() != c || at_ == text_.size()) return false;
    ++at_;
    return true;
  }
  void expect(char c);
  void expect_word(std::string_view word);
  void enter(char c);
  bool skip_small_integer();
  void read_escape(std::string* out);
  uint32_t read_hex4();

  std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
};

// The members of a small object, to be taken by name.
class JsonMembers {
 public:
  // Throws Error(EB_MODEL_FORMAT) on anything but one object, and on a name given twice.
  explicit JsonMembers(std::string_view text);

  bool has(std::string_view name) const;
  // The member's text; "null" where there is none.
  std::string_view take(std::string_view name);
  // A member that nobody took: what is not understood might mean another result. nullptr if there is none.
  const std::string* find_untaken() const;

 private:
  struct Member {
    std::string name;
    std::string_view text;
    bool is_taken;
  };
  std::vector<Member> members_;
};

}  // namespace edgebert
