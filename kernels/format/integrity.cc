#include "format/integrity.h"

#include <string>

#include "base/ed25519.h"
#include "base/status.h"
#include "format/onnx_proto.h"

namespace edgebert {
namespace {

constexpr std::string_view kHash = "edgebert.content_hash", kSignature = "edgebert.signature";

std::string_view find(const OnnxModel& model, std::string_view key) {
  const auto found = model.metadata.find(std::string(key));
  return found == model.metadata.end() ? std::string_view() : found->second;
}

// The bytes of `size` pairs of hexadecimal digits; false for anything else.
bool read_hexadecimal(std::string_view text, size_t size, uint8_t* bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  if (text.size() != 2 * size) return false;
  for (size_t i = 0; i < size; ++i) {
    const size_t high = kDigits.find(text[2 * i]), low = kDigits.find(text[2 * i + 1]);
    if (high == kDigits.npos || low == kDigits.npos) return false;
    bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

}  // namespace

void check_content(std::string_view bytes, const uint8_t* public_key) {
  const auto fail = [](const std::string& what) { throw Error(EB_MODEL_FORMAT, what); };
  const OnnxModel model = parse_onnx(bytes);
  const std::string_view stored = find(model, kHash);
  if (stored.empty()) fail("no content hash to verify: export it again, or sign it with `edgebert sign`");
  const std::string hash = hash_without_metadata(bytes, {kHash, kSignature});
  if (hash != stored) {
    fail("changed or damaged since it was written: its content hashes to " + hash + ", it says " +
         std::string(stored.substr(0, 64)) + ": get the file again");
  }
  if (public_key == nullptr) return;
  const std::string_view text = find(model, kSignature);
  if (text.empty()) fail("not signed: sign it with `edgebert sign`, or load it without a public key");
  uint8_t signature[64];
  if (!read_hexadecimal(text, 64, signature) || !is_signed("EdgeBERT content hash: " + hash, signature, public_key)) {
    fail("not signed with this key: do not use it, or give the public key of who signed it");
  }
}

}  // namespace edgebert
