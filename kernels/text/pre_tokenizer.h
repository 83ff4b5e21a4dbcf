// PreTokenizer: the tokenizer's second part, from a normalized text to its words.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/json_object.h"
#include "text/scratch.h"

namespace edgebert::text {

class PreTokenizer {
 public:
  // Takes the JSON of one, or null. Throws Error: damaged, or refused by name.
  explicit PreTokenizer(std::string_view json);

  // Splits those of scratch->splits that are no tokens. The text itself may change: with Metaspace's blanks, and with
  // the blanks that ByteLevel puts in front. ByteLevel's letters for bytes are not made: the model knows the bytes.
  void apply(Scratch* scratch) const;

  bool is_byte_level() const { return is_byte_level_; }
  // Whether it depends on where the words stand in the original.
  bool needs_origins() const { return needs_origins_; }

 private:
  enum class Kind { kBert, kWhitespace, kWhitespaceSplit, kPunctuation, kDigits, kSplit, kMetaspace, kByteLevel };
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Scheme { kFirst, kNever, kAlways };
  struct Step {
    Kind kind;
    Behavior behavior = Behavior::kIsolated;
    bool is_inverted = false;  // kSplit
    std::string pattern;       // kSplit; kMetaspace: what stands for a blank
    Scheme scheme = Scheme::kNever;
    bool adds_prefix = false, splits = false;  // kByteLevel; kMetaspace has the second
  };

  void add(JsonObject* object);
  static Behavior read_behavior(JsonObject* object);
  static void apply(const Step& step, Scratch* scratch);
  static void put_prefixes(const Step& step, Scratch* scratch);

  std::vector<Step> steps_;
  bool is_byte_level_ = false, needs_origins_ = false;
};

}  // namespace edgebert::text
