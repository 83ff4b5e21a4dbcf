// Ed25519 signatures, verified (RFC 8032, section 5.1.7, without the cofactor).
#pragma once

#include <cstdint>
#include <string_view>

namespace edgebert {

// Whether `signature` [64] is one of `message` by the owner of `public_key` [32].
bool is_signed(std::string_view message, const uint8_t* signature, const uint8_t* public_key);

}  // namespace edgebert
