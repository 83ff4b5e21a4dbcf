// SHA-256 (FIPS 180-4), fed in pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace edgebert {

class Sha256 {
 public:
  void update(const void* data, size_t size);
  // The digest in lower-case hexadecimal; call once, last.
  std::string hex_digest();

 private:
  void compress(const uint8_t* block);

  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint64_t num_bytes_ = 0;
  uint8_t buffer_[64];
};

}  // namespace edgebert
