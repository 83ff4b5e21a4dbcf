#include "base/json.h"

#include <cstdint>
#include <locale>
#include <sstream>
#include <utility>

#include "base/status.h"

namespace edgebert {
namespace {

constexpr int kMaxDepth = 32;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json parse() {
    Json value = parse_value(0);
    skip_space();
    if (at_ != text_.size()) fail("text after the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(EB_MODEL_FORMAT,
                "the spec is not valid JSON (" + what + " at byte " + std::to_string(at_) + "): re-export the model");
  }

  // '\0' at the end: no JSON token holds it.
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool accept(char c) {
    if (peek() != c || at_ == text_.size()) return false;
    ++at_;
    return true;
  }

  void expect(std::string_view token) {
    if (text_.substr(at_, token.size()) != token) fail("expected " + std::string(token));
    at_ += token.size();
  }

  void skip_space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
  }

  Json parse_value(int depth) {
    if (depth > kMaxDepth) fail("more than " + std::to_string(kMaxDepth) + " nested levels");
    skip_space();
    Json value;
    switch (peek()) {
      case '{':
        parse_object(&value, depth);
        break;
      case '[':
        parse_array(&value, depth);
        break;
      case '"':
        value.kind = Json::Kind::kString;
        value.string = parse_string();
        break;
      case 't':
        expect("true");
        value.kind = Json::Kind::kBool;
        value.boolean = true;
        break;
      case 'f':
        expect("false");
        value.kind = Json::Kind::kBool;
        break;
      case 'n':
        expect("null");
        break;
      default:
        parse_number(&value);
    }
    return value;
  }

  void parse_object(Json* value, int depth) {
    value->kind = Json::Kind::kObject;
    expect("{");
    skip_space();
    if (accept('}')) return;
    do {
      skip_space();
      std::string key = parse_string();
      skip_space();
      expect(":");
      Json member = parse_value(depth + 1);
      if (!value->object.emplace(std::move(key), std::move(member)).second) fail("a key given twice");
      skip_space();
    } while (accept(','));
    expect("}");
  }

  void parse_array(Json* value, int depth) {
    value->kind = Json::Kind::kArray;
    expect("[");
    skip_space();
    if (accept(']')) return;
    do {
      value->array.push_back(parse_value(depth + 1));
      skip_space();
    } while (accept(','));
    expect("]");
  }

  bool accept_digits() {
    const size_t start = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ > start;
  }

  void parse_number(Json* value) {
    const size_t start = at_;
    value->kind = Json::Kind::kNumber;
    value->is_integer = true;
    accept('-');
    if (!accept('0') && !accept_digits()) fail("expected a value");
    if (accept('.')) {
      value->is_integer = false;
      if (!accept_digits()) fail("expected a digit");
    }
    if (accept('e') || accept('E')) {
      value->is_integer = false;
      if (!accept('+')) accept('-');
      if (!accept_digits()) fail("expected a digit");
    }
    std::istringstream digits{std::string(text_.substr(start, at_ - start))};
    digits.imbue(std::locale::classic());  // a decimal point, whatever the process's locale says
    if (!(digits >> value->number)) fail("a number out of range");
  }

  std::string parse_string() {
    std::string out;
    expect("\"");
    while (!accept('"')) {
      if (at_ == text_.size()) fail("unterminated string");
      if (static_cast<uint8_t>(peek()) < 0x20) fail("control character in a string");
      if (accept('\\')) {
        parse_escape(&out);
      } else {
        out += text_[at_++];
      }
    }
    return out;
  }

  void parse_escape(std::string* out) {
    static constexpr std::string_view kEscapes = "\"\\/bfnrt", kCharacters = "\"\\/\b\f\n\r\t";
    if (accept('u')) {
      uint32_t code = parse_hex4();
      if (code >= 0xD800 && code < 0xDC00) {
        expect("\\u");
        const uint32_t low = parse_hex4();
        if (low < 0xDC00 || low > 0xDFFF) fail("a lone surrogate");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      } else if (code >= 0xDC00 && code <= 0xDFFF) {
        fail("a lone surrogate");
      }
      append_utf8(code, out);
      return;
    }
    const size_t index = at_ < text_.size() ? kEscapes.find(peek()) : std::string_view::npos;
    if (index == std::string_view::npos) fail("an unknown escape");
    *out += kCharacters[index];
    ++at_;
  }

  uint32_t parse_hex4() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c - 'A' + 10;
      if (digit < 0 || digit > 15 || (c > '9' && c < 'A')) fail("expected four hexadecimal digits");
      code = code << 4 | static_cast<uint32_t>(digit);
      ++at_;
    }
    return code;
  }

  static void append_utf8(uint32_t code, std::string* out) {
    const auto tail = [&](int shift) { *out += static_cast<char>(0x80 | (code >> shift & 0x3F)); };
    if (code < 0x80) {
      *out += static_cast<char>(code);
    } else if (code < 0x800) {
      *out += static_cast<char>(0xC0 | code >> 6);
      tail(0);
    } else if (code < 0x10000) {
      *out += static_cast<char>(0xE0 | code >> 12);
      tail(6);
      tail(0);
    } else {
      *out += static_cast<char>(0xF0 | code >> 18);
      tail(12);
      tail(6);
      tail(0);
    }
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

Json parse_json(std::string_view text) { return Parser(text).parse(); }

}  // namespace edgebert
