// A small strict JSON reader (RFC 8259) for the spec in a model file: text in, a tree out.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace edgebert {

struct Json {
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  double number = 0;
  bool is_integer = false;  // a number written without fraction or exponent
  std::string string;       // UTF-8
  std::vector<Json> array;
  std::map<std::string, Json> object;
};

// Throws Error(EB_MODEL_FORMAT), with the byte offset, on anything that is not one JSON value: also on duplicate
// keys, lone surrogates, numbers beyond a double, and more than 32 nested levels.
Json parse_json(std::string_view text);

}  // namespace edgebert
