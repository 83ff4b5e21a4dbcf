#include "base/sha2.h"

#include <algorithm>
#include <cstring>

namespace edgebert {
namespace {

// The first 64 bits of the fractional parts of the cube roots of the first 80 primes, and of the square roots of the
// first 8. SHA-256 takes the first half of each, and 64 of the former.
constexpr uint64_t kRoundConstants[80] = {
    0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc, 0x3956c25bf348b538,
    0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118, 0xd807aa98a3030242, 0x12835b0145706fbe,
    0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2, 0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235,
    0xc19bf174cf692694, 0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
    0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5, 0x983e5152ee66dfab,
    0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4, 0xc6e00bf33da88fc2, 0xd5a79147930aa725,
    0x06ca6351e003826f, 0x142929670a0e6e70, 0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed,
    0x53380d139d95b3df, 0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
    0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30, 0xd192e819d6ef5218,
    0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8, 0x19a4c116b8d2d0c8, 0x1e376c085141ab53,
    0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8, 0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373,
    0x682e6ff3d6b2b8a3, 0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
    0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b, 0xca273eceea26619c,
    0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178, 0x06f067aa72176fba, 0x0a637dc5a2c898a6,
    0x113f9804bef90dae, 0x1b710b35131c471b, 0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc,
    0x431d67c49c100d4c, 0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817};
constexpr uint64_t kStart[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                                0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};

// By how much the four functions of FIPS 180-4, section 4.1, rotate; the third number of a small sigma shifts.
template <class Word>
struct Rotations;
template <>
struct Rotations<uint32_t> {
  static constexpr int kRounds = 64;
  static constexpr int kBig0[3] = {2, 13, 22}, kBig1[3] = {6, 11, 25}, kSmall0[3] = {7, 18, 3},
                       kSmall1[3] = {17, 19, 10};
};
template <>
struct Rotations<uint64_t> {
  static constexpr int kRounds = 80;
  static constexpr int kBig0[3] = {28, 34, 39}, kBig1[3] = {14, 18, 41}, kSmall0[3] = {1, 8, 7},
                       kSmall1[3] = {19, 61, 6};
};

template <class Word>
constexpr Word from_table(uint64_t value) {
  return static_cast<Word>(value >> (64 - 8 * sizeof(Word)));
}

template <class Word>
inline Word rotate_right(Word x, int bits) {
  return x >> bits | x << (8 * sizeof(Word) - bits);
}
template <class Word>
inline Word big_sigma(Word x, const int (&by)[3]) {
  return rotate_right(x, by[0]) ^ rotate_right(x, by[1]) ^ rotate_right(x, by[2]);
}
template <class Word>
inline Word small_sigma(Word x, const int (&by)[3]) {
  return rotate_right(x, by[0]) ^ rotate_right(x, by[1]) ^ x >> by[2];
}

}  // namespace

template <class Word>
Sha2<Word>::Sha2() {
  for (int i = 0; i < 8; ++i) state_[i] = from_table<Word>(kStart[i]);
}

template <class Word>
void Sha2<Word>::compress(const uint8_t* block) {
  using By = Rotations<Word>;
  Word w[By::kRounds];
  for (int i = 0; i < 16; ++i) {
    w[i] = 0;
    for (size_t k = 0; k < sizeof(Word); ++k) w[i] = w[i] << 8 | block[i * sizeof(Word) + k];
  }
  for (int i = 16; i < By::kRounds; ++i) {
    w[i] = w[i - 16] + small_sigma(w[i - 15], By::kSmall0) + w[i - 7] + small_sigma(w[i - 2], By::kSmall1);
  }
  Word v[8];
  std::copy(state_, state_ + 8, v);
  for (int i = 0; i < By::kRounds; ++i) {
    const Word choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
    const Word majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
    const Word t1 = v[7] + big_sigma(v[4], By::kBig1) + choice + from_table<Word>(kRoundConstants[i]) + w[i];
    const Word t2 = big_sigma(v[0], By::kBig0) + majority;
    std::copy_backward(v, v + 7, v + 8);
    v[4] += t1;
    v[0] = t1 + t2;
  }
  for (int i = 0; i < 8; ++i) state_[i] += v[i];
}

template <class Word>
void Sha2<Word>::update(const void* data, size_t size) {
  auto bytes = static_cast<const uint8_t*>(data);
  while (size > 0) {
    const size_t filled = num_bytes_ % kBlockSize;
    const size_t count = std::min(size, kBlockSize - filled);
    std::memcpy(buffer_ + filled, bytes, count);
    num_bytes_ += count;
    bytes += count;
    size -= count;
    if (filled + count == kBlockSize) compress(buffer_);
  }
}

template <class Word>
void Sha2<Word>::finish(uint8_t* digest) {
  // a one bit, then zeros up to two words before the end of a block, then the message's length in bits, big-endian
  const uint64_t num_bits = 8 * num_bytes_;
  constexpr size_t kLengthAt = kBlockSize - 8;
  uint8_t padding[2 * kBlockSize] = {0x80};
  const size_t filled = num_bytes_ % kBlockSize;
  const bool is_next = filled + 1 > kBlockSize - 2 * sizeof(Word);
  const size_t length_at = (is_next ? kBlockSize : 0) + kLengthAt - filled;
  for (int i = 0; i < 8; ++i) padding[length_at + i] = static_cast<uint8_t>(num_bits >> (56 - 8 * i));
  update(padding, length_at + 8);
  for (size_t i = 0; i < kDigestSize; ++i) {
    digest[i] = static_cast<uint8_t>(state_[i / sizeof(Word)] >> 8 * (sizeof(Word) - 1 - i % sizeof(Word)));
  }
}

template <class Word>
std::string Sha2<Word>::hex_digest() {
  uint8_t digest[kDigestSize];
  finish(digest);
  std::string hex;
  for (const uint8_t byte : digest) {
    for (const int digit : {byte >> 4, byte & 15}) hex += "0123456789abcdef"[digit];
  }
  return hex;
}

template class Sha2<uint32_t>;
template class Sha2<uint64_t>;

}  // namespace edgebert
