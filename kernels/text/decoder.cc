#include "text/decoder.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/status.h"
#include "text/model.h"
#include "text/unicode.h"

namespace edgebert::text {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

bool starts_with(std::string_view text, std::string_view prefix) { return text.substr(0, prefix.size()) == prefix; }

void replace_all(std::string_view from, std::string_view to, std::string* text) {
  size_t found = text->find(from);
  if (found == std::string::npos) return;
  std::string replaced;
  size_t at = 0;
  for (; found != std::string::npos; found = text->find(from, at)) {
    replaced.append(*text, at, found - at);
    replaced += to;
    at = found + from.size();
  }
  replaced.append(*text, at);
  *text = std::move(replaced);
}

// English as it is written, where its tokens stood apart; in this order.
void clean_up(std::string* text) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kChanges = {{{" .", "."},
                                                                                       {" ?", "?"},
                                                                                       {" !", "!"},
                                                                                       {" ,", ","},
                                                                                       {" ' ", "'"},
                                                                                       {" n't", "n't"},
                                                                                       {" 'm", "'m"},
                                                                                       {" do not", " don't"},
                                                                                       {" 's", "'s"},
                                                                                       {" 've", "'ve"},
                                                                                       {" 're", "'re"}}};
  for (const auto& [from, to] : kChanges) replace_all(from, to, text);
}

// Bytes to UTF-8: what cannot begin or go on a character becomes U+FFFD, once for all bytes that began one.
std::string repair(std::string_view bytes) {
  std::string text;
  for (size_t at = 0; at < bytes.size();) {
    const auto byte = [&](size_t i) { return i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0u; };
    const unsigned first = byte(at);
    size_t size = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    // No overlong forms, surrogates, or code points beyond the last.
    const unsigned low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const unsigned high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    size_t end = at + 1;
    if (size > 1 && byte(end) >= low && byte(end) <= high) {
      ++end;
      while (end < at + size && (byte(end) & 0xC0) == 0x80) ++end;
    }
    text += end == at + size ? bytes.substr(at, size) : kReplacement;
    at = end;
  }
  return text;
}

// The byte that a token as <0x0A> stands for, or -1.
int read_byte(std::string_view token) {
  if (token.size() != 6 || !starts_with(token, "<0x") || token[5] != '>') return -1;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
  };
  const int high = token[3] == '+' ? 0 : digit(token[3]), low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::vector<std::string> fall_back(std::vector<std::string> tokens) {
  std::vector<std::string> made;
  std::string bytes;
  const auto flush = [&] {
    size_t at;
    if (is_utf8(bytes, &at)) {
      if (!bytes.empty()) made.push_back(bytes);
    } else {
      made.insert(made.end(), bytes.size(), std::string(kReplacement));
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    const int byte = read_byte(token);
    if (byte >= 0) {
      bytes += static_cast<char>(byte);
    } else {
      flush();
      made.push_back(std::move(token));
    }
  }
  flush();
  return made;
}

// The bytes that a token's letters stand for, or those of the token where it has others.
void add_bytes(const std::string& token, std::string* bytes) {
  const size_t before = bytes->size();
  for (size_t at = 0; at < token.size();) {
    const int byte = letter_byte(decode(token.data(), &at));
    if (byte < 0) {
      bytes->resize(before);
      *bytes += token;
      return;
    }
    *bytes += static_cast<char>(byte);
  }
}

std::string join(const std::vector<std::string>& tokens, std::string_view between) {
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) text += between;
    text += tokens[i];
  }
  return text;
}

std::string take_character(JsonObject* object, std::string_view name) {
  std::string character = object->take_string(name);
  if (character.empty() || length_of(character[0]) != character.size()) {
    object->fail("has a " + std::string(name) + " that is not one character");
  }
  return character;
}

}  // namespace

Decoder::Decoder(std::string_view json) {
  if (json == "null") return;
  is_null_ = false;
  JsonObject object(json, "decoder");
  try {
    add(&object);
  } catch (const Error& error) {
    if (error.status() != EB_UNSUPPORTED) throw;
    refusal_ = error.what();
  }
}

void Decoder::add(JsonObject* object) {
  const std::string type = object->take_string("type");
  Step step{};
  if (type == "Sequence") {
    std::vector<JsonObject> parts = object->take_objects("decoders");
    object->finish();
    for (JsonObject& part : parts) add(&part);
    return;
  }
  if (type == "WordPiece") {
    step.kind = Kind::kWordPiece;
    step.pattern = object->take_string("prefix");
    step.is_on = object->take_bool("cleanup");
  } else if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
    for (const char* unused : {"add_prefix_space", "trim_offsets", "use_regex"}) object->take(unused);
  } else if (type == "Metaspace") {
    step.kind = Kind::kMetaspace;
    step.pattern = take_character(object, "replacement");
    step.is_on = !object->has("prepend_scheme") || object->take_string("prepend_scheme") != "never";
    for (const char* unused : {"str_rep", "add_prefix_space", "split"}) object->take(unused);
  } else if (type == "BPEDecoder") {
    step.kind = Kind::kBpe;
    step.pattern = object->take_string("suffix");
    if (step.pattern.empty()) object->refuse("has an empty suffix");
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    JsonObject pattern(object->take("pattern"), object->what() + "'s pattern");
    if (!pattern.has("String")) pattern.refuse("is the expression " + pattern.take_string("Regex").substr(0, 100));
    step.pattern = pattern.take_string("String");
    if (step.pattern.empty()) pattern.refuse("is empty");
    pattern.finish();
    step.content = object->take_string("content");
  } else if (type == "Fuse") {
    step.kind = Kind::kFuse;
  } else if (type == "ByteFallback") {
    step.kind = Kind::kByteFallback;
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    step.pattern = take_character(object, "content");
    step.start = object->take_index("start", 0);
    step.stop = object->take_index("stop", 0);
  } else {
    object->refuse("is of the type " + type.substr(0, 100));
  }
  object->finish();
  steps_.push_back(std::move(step));
}

void Decoder::apply(const Step& step, std::vector<std::string>* tokens) {
  const std::string& pattern = step.pattern;
  switch (step.kind) {
    case Kind::kWordPiece:
      for (size_t i = 0; i < tokens->size(); ++i) {
        std::string& token = (*tokens)[i];
        if (i > 0 && starts_with(token, pattern)) {
          token.erase(0, pattern.size());
        } else if (i > 0) {
          token.insert(0, 1, ' ');
        }
        if (step.is_on) clean_up(&token);
      }
      break;
    case Kind::kByteLevel: {
      std::string bytes;
      for (const std::string& token : *tokens) add_bytes(token, &bytes);
      *tokens = {repair(bytes)};
      break;
    }
    case Kind::kMetaspace:
      for (size_t i = 0; i < tokens->size(); ++i) {
        replace_all(pattern, i == 0 && step.is_on ? "" : " ", &(*tokens)[i]);
      }
      break;
    case Kind::kBpe:
      for (size_t i = 0; i < tokens->size(); ++i) {
        replace_all(pattern, i + 1 == tokens->size() ? "" : " ", &(*tokens)[i]);
      }
      break;
    case Kind::kReplace:
      for (std::string& token : *tokens) replace_all(pattern, step.content, &token);
      break;
    case Kind::kFuse:
      *tokens = {join(*tokens, "")};
      break;
    case Kind::kByteFallback:
      *tokens = fall_back(std::move(*tokens));
      break;
    case Kind::kStrip:
      for (std::string& token : *tokens) {
        size_t begin = 0, end = token.size();
        for (uint32_t i = 0; i < step.start && token.compare(begin, pattern.size(), pattern) == 0; ++i) {
          begin += pattern.size();
        }
        for (uint32_t i = 0; i < step.stop && end >= begin + pattern.size() &&
                             token.compare(end - pattern.size(), pattern.size(), pattern) == 0;
             ++i) {
          end -= pattern.size();
        }
        token = token.substr(begin, end - begin);
      }
      break;
  }
}

std::string Decoder::decode(std::vector<std::string> tokens) const {
  if (!refusal_.empty()) throw Error(EB_UNSUPPORTED, refusal_);
  for (const Step& step : steps_) apply(step, &tokens);
  return join(tokens, is_null_ ? " " : "");
}

}  // namespace edgebert::text
