// Writes the few protobuf messages that tests need to build or change a model file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace edgebert {

inline std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out + static_cast<char>(value);
}

inline std::string varint_field(int number, uint64_t value) { return varint(number << 3) + varint(value); }

inline std::string bytes_field(int number, std::string_view bytes) {
  return varint(number << 3 | 2) + varint(bytes.size()) + std::string(bytes);
}

// TensorProto.
inline std::string tensor(std::string_view name, int data_type, const std::vector<int64_t>& dims,
                          std::string_view raw) {
  std::string out;
  for (int64_t dim : dims) out += varint_field(1, static_cast<uint64_t>(dim));
  return out + varint_field(2, data_type) + bytes_field(8, name) + bytes_field(9, raw);
}

// ModelProto.metadata_props.
inline std::string metadata_field(std::string_view key, std::string_view value) {
  return bytes_field(14, bytes_field(1, key) + bytes_field(2, value));
}

}  // namespace edgebert
