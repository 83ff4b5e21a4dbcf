// Decoder: the tokenizer's last part, from tokens back to a text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/json_object.h"

namespace edgebert::text {

class Decoder {
 public:
  // Throws Error(EB_MODEL_FORMAT) if it is damaged. What is not reproduced to the letter is refused by decode() alone,
  // because most uses never need it.
  explicit Decoder(std::string_view json);

  // Throws Error(EB_UNSUPPORTED), naming what is not reproduced.
  std::string decode(std::vector<std::string> tokens) const;

 private:
  enum class Kind { kWordPiece, kByteLevel, kMetaspace, kBpe, kReplace, kFuse, kByteFallback, kStrip };

  struct Step {
    Kind kind;
    std::string pattern, content;  // WordPiece: prefix; Metaspace, Strip: the character; Bpe: suffix; Replace
    bool is_on = false;            // WordPiece: cleans up; Metaspace: drops a leading blank
    uint32_t start = 0, stop = 0;  // Strip: how many at most
  };

  void add(JsonObject* object);
  static void apply(const Step& step, std::vector<std::string>* tokens);

  bool is_null_ = true;
  std::string refusal_;
  std::vector<Step> steps_;
};

}  // namespace edgebert::text
