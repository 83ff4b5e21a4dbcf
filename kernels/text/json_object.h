// JsonObject: a part of a tokenizer's JSON, such as its normalizer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace edgebert::text {

// Each member is asked for once; finish() refuses by name what nobody asked for.
class JsonObject : public JsonMembers {
 public:
  // `what` names it in errors, as "normalizer".
  JsonObject(std::string_view text, std::string what);

  const std::string& what() const { return what_; }
  std::string take_string(std::string_view name);
  bool take_bool(std::string_view name, bool otherwise);
  bool take_bool(std::string_view name);  // must be there
  uint32_t take_index(std::string_view name, uint32_t otherwise);
  // Objects in an array, as "the normalizer's normalizers[0]".
  std::vector<JsonObject> take_objects(std::string_view name);
  void finish() const;

  [[noreturn]] void fail(const std::string& what) const;    // damaged
  [[noreturn]] void refuse(const std::string& what) const;  // sound, but not understood here

 private:
  std::string_view need(std::string_view name);

  std::string what_;
};

}  // namespace edgebert::text
