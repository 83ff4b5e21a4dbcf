#include "base/json.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "base/utf8.h"

namespace edgebert {
namespace {

constexpr int kMaxPower = 308;

// 10^exponent, from 0 to kMaxPower, to the nearest double: literals, since products of powers would round twice.
double power_of_ten(int exponent) {
#define EB_TEN(tens)                                                                                                   \
  1e##tens##0, 1e##tens##1, 1e##tens##2, 1e##tens##3, 1e##tens##4, 1e##tens##5, 1e##tens##6, 1e##tens##7, 1e##tens##8, \
      1e##tens##9
#define EB_HUNDRED(h)                                                                                             \
  EB_TEN(h##0), EB_TEN(h##1), EB_TEN(h##2), EB_TEN(h##3), EB_TEN(h##4), EB_TEN(h##5), EB_TEN(h##6), EB_TEN(h##7), \
      EB_TEN(h##8), EB_TEN(h##9)
  static constexpr double kPowers[] = {EB_HUNDRED(0), EB_HUNDRED(1), EB_HUNDRED(2), 1e300, 1e301, 1e302,
                                       1e303,         1e304,         1e305,         1e306, 1e307, 1e308};
#undef EB_HUNDRED
#undef EB_TEN
  static_assert(std::size(kPowers) == kMaxPower + 1);
  return kPowers[exponent];
}

// Steps over what a string holds as it is, eight bytes at a time: to the first quote, escape or control character, or
// to fewer than eight bytes from the end.
size_t find_special(std::string_view text, size_t at) {
  constexpr uint64_t kOnes = 0x0101010101010101u, kHighs = 0x8080808080808080u;
  for (; text.size() - at >= 8; at += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    const uint64_t quote = word ^ kOnes * '"', escape = word ^ kOnes * '\\';
    const uint64_t found =
        (((quote - kOnes) & ~quote) | ((escape - kOnes) & ~escape) | ((word - kOnes * 0x20) & ~word)) & kHighs;
    if (found != 0) return at + static_cast<size_t>(__builtin_ctzll(found)) / 8;  // the lowest mark is never false
  }
  return at;
}

}  // namespace

void JsonCursor::fail(const std::string& what) const {
  size_t begin = at_ - std::min<size_t>(at_, 20);
  while (begin < at_ && (text_[begin] & 0xC0) == 0x80) ++begin;  // not from the middle of a character
  throw Error(EB_MODEL_FORMAT, "the spec or tokenizer is not valid JSON, or not of the form expected (" + what +
                                   " at byte " + std::to_string(at_) + ", at the end of '" +
                                   std::string(text_.substr(begin, at_ - begin)) + "'): re-export the model");
}

void JsonCursor::expect(char c) {
  if (!accept(c)) fail(std::string("expected ") + c);
}

void JsonCursor::expect_word(std::string_view word) {
  if (text_.substr(at_, word.size()) != word) fail("expected " + std::string(word));
  at_ += word.size();
}

void JsonCursor::enter(char c) {
  expect(c);
  if (++depth_ > kMaxDepth) fail("more than " + std::to_string(kMaxDepth) + " nested levels");
}

char JsonCursor::peek() {
  skip_space();
  return at();
}

std::string_view JsonCursor::read_string(std::string* scratch) {
  expect('"');
  const size_t begin = at_;
  at_ = find_special(text_, at_);
  for (; at_ < text_.size(); ++at_) {
    const char c = text_[at_];
    if (c == '"') return text_.substr(begin, at_++ - begin);
    if (c == '\\') break;
    if (static_cast<unsigned char>(c) < 0x20) fail("control character in a string");
  }
  scratch->assign(text_.substr(begin, at_ - begin));
  while (at() != '"') {
    if (at_ == text_.size()) fail("unterminated string");
    if (static_cast<unsigned char>(at()) < 0x20) fail("control character in a string");
    if (at() == '\\') {
      ++at_;
      read_escape(scratch);
    } else {
      *scratch += text_[at_++];
    }
  }
  ++at_;
  return *scratch;
}

void JsonCursor::read_escape(std::string* out) {
  static constexpr std::string_view kEscapes = "\"\\/bfnrt", kCharacters = "\"\\/\b\f\n\r\t";
  const char c = at();
  if (c == 'u') {
    ++at_;
    uint32_t code = read_hex4();
    if (code >= 0xD800 && code < 0xDC00) {
      expect_word("\\u");
      const uint32_t low = read_hex4();
      if (low < 0xDC00 || low > 0xDFFF) fail("a lone surrogate");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xDC00 && code <= 0xDFFF) {
      fail("a lone surrogate");
    }
    char bytes[4];
    out->append(bytes, static_cast<size_t>(encode(code, bytes)));
    return;
  }
  const size_t index = at_ < text_.size() ? kEscapes.find(c) : std::string_view::npos;
  if (index == std::string_view::npos) fail("an unknown escape");
  *out += kCharacters[index];
  ++at_;
}

uint32_t JsonCursor::read_hex4() {
  uint32_t code = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at();
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c - 'A' + 10;
    if (digit < 0 || digit > 15 || (c > '9' && c < 'A')) fail("expected four hexadecimal digits");
    code = code << 4 | static_cast<uint32_t>(digit);
  }
  return code;
}

double JsonCursor::read_number() {
  skip_space();
  const bool is_negative = at() == '-';
  if (is_negative) ++at_;
  if (at() < '0' || at() > '9') fail("expected a number");
  constexpr uint64_t kMost = ~uint64_t{0};
  uint64_t digits = 0;
  int exponent = 0;
  bool is_full = false;  // more digits than 64 bits hold: the rest counts for its places alone
  const auto gather = [&](int each_place) {
    if (at() < '0' || at() > '9') fail("expected a digit");
    for (; at() >= '0' && at() <= '9'; ++at_) {
      const auto digit = static_cast<uint64_t>(at() - '0');
      if (is_full || digits > (kMost - digit) / 10) {
        is_full = true;
        if (each_place == 0 && exponent < kMaxPower * 4) ++exponent;
        continue;
      }
      digits = digits * 10 + digit;
      exponent += each_place;
    }
  };
  if (at() == '0') {
    ++at_;
  } else {
    gather(0);
  }
  if (at() == '.') {
    ++at_;
    gather(-1);
  }
  if (at() == 'e' || at() == 'E') {
    ++at_;
    const bool is_down = at() == '-';
    if (at() == '-' || at() == '+') ++at_;
    if (at() < '0' || at() > '9') fail("expected a digit");
    int written = 0;
    for (; at() >= '0' && at() <= '9'; ++at_) written = written < 100000 ? written * 10 + (at() - '0') : written;
    exponent += is_down ? -written : written;
  }
  double value = static_cast<double>(digits);
  while (value != 0 && exponent < -kMaxPower) {
    value /= power_of_ten(kMaxPower);
    exponent += kMaxPower;
  }
  if (value != 0) {
    if (exponent > kMaxPower) fail("a number out of range");
    value = exponent < 0 ? value / power_of_ten(-exponent) : value * power_of_ten(exponent);
    if (value > 1.7976931348623157e308) fail("a number out of range");
  }
  return is_negative ? -value : value;
}

uint32_t JsonCursor::read_index(uint32_t limit) {
  skip_space();
  const size_t begin = at_;
  uint64_t value = 0;
  for (; at() >= '0' && at() <= '9'; ++at_) {
    value = value * 10 + static_cast<uint64_t>(at() - '0');
    if (value > limit) fail("a number out of range");
  }
  if (at_ == begin || at() == '.' || at() == 'e' || at() == 'E') fail("expected an integer of at least 0");
  return static_cast<uint32_t>(value);
}

bool JsonCursor::read_bool() {
  const bool value = peek() == 't';
  expect_word(value ? "true" : "false");
  return value;
}

bool JsonCursor::accept_null() {
  if (peek() != 'n') return false;
  expect_word("null");
  return true;
}

std::string_view JsonCursor::skip() {
  skip_space();
  const size_t begin = at_;
  std::string scratch;
  switch (peek()) {
    case '{':
      read_object([&](std::string_view) { skip(); });
      break;
    case '[':
      read_array([&] { skip(); });
      break;
    case '"':
      read_string(&scratch);
      break;
    case 't':
    case 'f':
      read_bool();
      break;
    case 'n':
      accept_null();
      break;
    default:
      if (!skip_small_integer()) read_number();
  }
  return text_.substr(begin, at_ - begin);
}

bool JsonCursor::skip_small_integer() {
  constexpr size_t kMaxDigits = 15;
  size_t end = at_;
  while (end - at_ <= kMaxDigits && end < text_.size() && text_[end] >= '0' && text_[end] <= '9') ++end;
  const size_t digits = end - at_;
  const char behind = end < text_.size() ? text_[end] : '\0';
  if (digits == 0 || digits > kMaxDigits || (text_[at_] == '0' && digits > 1)) return false;
  if (behind == '.' || behind == 'e' || behind == 'E') return false;
  at_ = end;
  return true;
}

void JsonCursor::finish() {
  skip_space();
  if (at_ != text_.size()) fail("text after the value");
}

JsonMembers::JsonMembers(std::string_view text) {
  JsonCursor cursor(text);
  cursor.read_object([&](std::string_view key) {
    if (has(key)) cursor.fail("a name given twice");
    std::string name(key);
    const std::string_view value = cursor.skip();
    members_.push_back({std::move(name), value, false});
  });
  cursor.finish();
}

bool JsonMembers::has(std::string_view name) const {
  return std::any_of(members_.begin(), members_.end(), [&](const Member& member) { return member.name == name; });
}

std::string_view JsonMembers::take(std::string_view name) {
  for (Member& member : members_) {
    if (member.name != name) continue;
    member.is_taken = true;
    return member.text;
  }
  return "null";
}

const std::string* JsonMembers::find_untaken() const {
  for (const Member& member : members_) {
    if (!member.is_taken) return &member.name;
  }
  return nullptr;
}

}  // namespace edgebert
