// What the tokenizers library takes a code point for: classes, lower case, decomposition, graphemes. UTF-8 helpers.
//
// The tables are made by make_tables.py, which asks the library; the algorithms here know no list of characters.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

#include "base/utf8.h"

namespace edgebert::text {

// Twin of BITS in make_tables.py.
enum CharClass : uint32_t {
  kSpace = 1u << 0,        // Unicode White_Space
  kControl = 1u << 1,      // dropped by clean_text
  kCleanSpace = 1u << 2,   // made a blank by clean_text
  kCjk = 1u << 3,          // set apart by handle_chinese_chars
  kPunctuation = 1u << 4,  // ASCII's or Unicode's
  kNumeric = 1u << 5,      // Digits
  kWord = 1u << 6,         // \w of Whitespace and of single_word
  kLetter = 1u << 7,       // \p{L}, \p{N} and \s of ByteLevel's expression
  kNumber = 1u << 8,
  kRegexSpace = 1u << 9,
  kNonspacing = 1u << 10,  // dropped by strip_accents
  kMark = 1u << 11,        // dropped by StripAccents
  kHasLower = 1u << 12,
  kHasDecomposition = 1u << 13,
  kPictographic = 1u << 14,  // the last four: for graphemes
  kConjunctConsonant = 1u << 15,
  kConjunctLinker = 1u << 16,
  kConjunctExtend = 1u << 17,
};

// A two-stage table of classes, and in the bits above them what combining_class() and Graphemes look at.
struct ClassTables {
  static constexpr int kNumBits = 18, kBlockShift = 7;
  const uint32_t* bits;
  const uint16_t* blocks;
  const uint8_t* kinds;

  uint32_t all_bits(uint32_t code) const {
    return bits[kinds[blocks[code >> kBlockShift] << kBlockShift | (code & ((1u << kBlockShift) - 1))]];
  }
};
extern const ClassTables kClassTables;

// CharClass bits of a code point up to 0x10FFFF.
inline uint32_t class_of(uint32_t code) { return kClassTables.all_bits(code) & ((1u << ClassTables::kNumBits) - 1); }
// The rank of a code point's canonical combining class, 0 for starters.
int combining_class(uint32_t code);

constexpr int kMaxLower = 2, kMaxDecomposition = 18;
// Each writes one or more code points and returns how many.
int to_lower(uint32_t code, uint32_t* out);
int decompose(uint32_t code, bool is_compatible, uint32_t* out);
// The composition of two, or 0.
uint32_t compose(uint32_t first, uint32_t second);
// Whether a code point is the second of any composition.
bool composes_with_left(uint32_t code);

// Finds boundaries of extended grapheme clusters, fed one code point after another.
class Graphemes {
 public:
  // Whether a cluster begins with `code`.
  bool begins(uint32_t code);
  // Whether a code point is a cluster of its own beside any others of which this is true.
  static bool is_alone(uint32_t code);

 private:
  uint32_t last_ = 0;  // grapheme class
  bool is_first_ = true;
  bool after_pictographic_ = false;  // a pictograph and extending characters, perhaps a joiner at the end
  bool after_consonant_ = false;     // a consonant, extending characters and linkers
  bool after_linker_ = false;        // of which one was a linker
};

// Decodes the code point at `at` of valid UTF-8 and moves behind it.
inline uint32_t decode(const char* bytes, size_t* at) {
  const auto* p = reinterpret_cast<const unsigned char*>(bytes) + *at;
  if (p[0] < 0x80) {
    *at += 1;
    return p[0];
  }
  if (p[0] < 0xE0) {
    *at += 2;
    return (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu);
  }
  if (p[0] < 0xF0) {
    *at += 3;
    return (p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
  }
  *at += 4;
  return (p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
}

// The code point that ends before `end`, which is not the beginning.
inline uint32_t decode_before(const char* bytes, size_t end) {
  size_t at = end - 1;
  while ((static_cast<unsigned char>(bytes[at]) & 0xC0) == 0x80) --at;
  return decode(bytes, &at);
}

// Bytes of the code point that begins with this byte.
inline uint32_t length_of(char first) {
  const auto byte = static_cast<unsigned char>(first);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

inline bool is_ascii(std::string_view text) {
  const char* p = text.data();
  size_t left = text.size();
  for (; left >= 8; p += 8, left -= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    if ((word & 0x8080808080808080u) != 0) return false;
  }
  for (; left > 0; ++p, --left) {
    if (static_cast<unsigned char>(*p) >= 0x80) return false;
  }
  return true;
}

// Whether the bytes are valid UTF-8 (no overlong forms, no surrogates); else *at is where they are not.
bool is_utf8(std::string_view text, size_t* at);

}  // namespace edgebert::text
