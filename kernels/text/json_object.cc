#include "text/json_object.h"

#include <utility>

#include "base/status.h"

namespace edgebert::text {

JsonObject::JsonObject(std::string_view text, std::string what) : JsonMembers(text), what_(std::move(what)) {}

void JsonObject::fail(const std::string& what) const {
  throw Error(EB_MODEL_FORMAT, "the tokenizer's " + what_ + " " + what + ": re-export the model");
}

void JsonObject::refuse(const std::string& what) const {
  throw Error(EB_UNSUPPORTED, "the tokenizer's " + what_ + " " + what +
                                  ", which the native tokenizer does not reproduce: use the tokenizers library");
}

std::string_view JsonObject::need(std::string_view name) {
  if (!has(name)) fail("has no \"" + std::string(name) + "\"");
  return take(name);
}

std::string JsonObject::take_string(std::string_view name) { return JsonCursor(need(name)).read_string(); }

bool JsonObject::take_bool(std::string_view name) { return JsonCursor(need(name)).read_bool(); }

bool JsonObject::take_bool(std::string_view name, bool otherwise) { return has(name) ? take_bool(name) : otherwise; }

uint32_t JsonObject::take_index(std::string_view name, uint32_t otherwise) {
  return has(name) ? JsonCursor(take(name)).read_index(0x7FFFFFFF) : otherwise;
}

std::vector<JsonObject> JsonObject::take_objects(std::string_view name) {
  std::vector<JsonObject> objects;
  JsonCursor cursor(need(name));
  cursor.read_array([&] {
    objects.emplace_back(cursor.skip(), what_ + "'s " + std::string(name) + "[" + std::to_string(objects.size()) + "]");
  });
  return objects;
}

void JsonObject::finish() const {
  const std::string* name = find_untaken();
  if (name != nullptr) refuse("has \"" + name->substr(0, 100) + "\"");
}

}  // namespace edgebert::text
