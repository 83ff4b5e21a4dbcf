// A model file's content hash and signature, twin of edgebert/artifact/integrity.py.
#pragma once

#include <cstdint>
#include <string_view>

namespace edgebert {

// Compares a file's content with its hash and, with a public key [32], the hash with its signature.
// Throws Error(EB_MODEL_FORMAT) if it has none of them, or another one.
void check_content(std::string_view bytes, const uint8_t* public_key);

}  // namespace edgebert
