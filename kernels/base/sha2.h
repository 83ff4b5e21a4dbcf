// SHA-256 and SHA-512 (FIPS 180-4), fed in pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace edgebert {

// One algorithm over words of 32 or 64 bits.
template <class Word>
class Sha2 {
 public:
  static constexpr size_t kDigestSize = 8 * sizeof(Word);

  Sha2();
  void update(const void* data, size_t size);
  // Writes the kDigestSize bytes of the digest; call once, last.
  void finish(uint8_t* digest);
  // The same in lower-case hexadecimal.
  std::string hex_digest();

 private:
  static constexpr size_t kBlockSize = 16 * sizeof(Word);

  void compress(const uint8_t* block);

  Word state_[8];
  uint64_t num_bytes_ = 0;
  uint8_t buffer_[kBlockSize];
};

using Sha256 = Sha2<uint32_t>;
using Sha512 = Sha2<uint64_t>;

}  // namespace edgebert
