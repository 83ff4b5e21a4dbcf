// Bytes that JSON and metadata hold as text (RFC 4648).
#pragma once

#include <cstdint>
#include <string_view>

namespace edgebert {

// Appends what `text` stands for; returns whether it is base64. Padding may be left out.
template <class Bytes>
bool decode_base64(std::string_view text, Bytes* bytes) {
  uint32_t bits = 0;
  int num_bits = 0;
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  for (const char c : text) {
    const int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 26
                      : c >= '0' && c <= '9' ? c - '0' + 52
                      : c == '+'             ? 62
                      : c == '/'             ? 63
                                             : -1;
    if (value < 0) return false;
    bits = bits << 6 | static_cast<uint32_t>(value);
    num_bits += 6;
    if (num_bits >= 8) bytes->push_back(static_cast<typename Bytes::value_type>(bits >> (num_bits -= 8) & 0xFF));
  }
  return true;
}

}  // namespace edgebert
