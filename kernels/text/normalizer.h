// Normalizer: the tokenizer's first part, from a text to the text that is split and looked up.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/json_object.h"
#include "text/scratch.h"

namespace edgebert::text {

// SentencePiece's compiled map from strings to strings: a double array, and the replacements.
class CharsMap {
 public:
  CharsMap() = default;
  // Takes base64. Throws Error(EB_MODEL_FORMAT).
  CharsMap(std::string_view base64, const JsonObject& owner);
  // Whether a prefix of `key` is in the map; if so, what the shortest stands for.
  bool find(std::string_view key, std::string_view* replacement) const;

 private:
  std::vector<uint32_t> units_;
  std::string replacements_;
};

class Normalizer {
 public:
  // Takes the JSON of one, or null. Throws Error: damaged, or refused by name.
  explicit Normalizer(std::string_view json);

  // Appends what `text`, whose first byte is byte `origin` of the original, becomes.
  void apply(std::string_view text, uint32_t origin, Scratch* scratch, Normalized* out) const;

  bool empty() const { return steps_.empty(); }

 private:
  enum class Kind {
    kBert,
    kNfc,
    kNfd,
    kNfkc,
    kNfkd,
    kLowercase,
    kStripAccents,
    kNmt,
    kReplace,
    kStrip,
    kPrepend,
    kPrecompiled
  };
  struct Step {
    Kind kind;
    bool cleans = false, spaces_cjk = false, strips_accents = false, lowers = false;  // kBert
    bool strips_left = false, strips_right = false;                                   // kStrip
    std::vector<uint32_t> pattern, content;  // kReplace and kPrepend; an empty pattern: two or more blanks
    bool takes_spaces = false;  // with that pattern: two or more of any white space, and \n, \r and \t alone
    CharsMap map;
  };

  void add(JsonObject* object);
  bool find_alone(uint32_t code, Scratch* scratch) const;
  size_t apply_ascii(std::string_view text, char* out) const;
  bool apply_alone(std::string_view text, size_t at, uint32_t origin, Scratch* scratch, Normalized* out) const;
  bool has_open_ends(std::string_view made) const;
  void apply_steps(std::string_view text, uint32_t origin, Scratch* scratch, Normalized* out) const;
  static void apply(const Step& step, Scratch* scratch);

  static constexpr unsigned char kNotAscii = 0x80;

  std::vector<Step> steps_;
  // What an ASCII character becomes wherever it stands, if that is one of ASCII, or kNotAscii.
  std::array<unsigned char, 128> ascii_{};
  bool joins_blanks_ = false, strips_left_ = false, strips_right_ = false;
};

}  // namespace edgebert::text
