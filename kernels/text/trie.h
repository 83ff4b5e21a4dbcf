// Trie: a double array over byte strings, for the longest and for all prefixes that are in a vocabulary.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace edgebert::text {

class Trie {
 public:
  struct Entry {
    std::string_view key;
    int32_t value;  // 0 or more
  };

  static constexpr uint32_t kRoot = 0, kNone = ~uint32_t{0};

  Trie() : units_(kBlock) {}
  // Of equal keys the last counts; the empty key is left out. Throws Error(EB_UNSUPPORTED) if it would be too large.
  explicit Trie(const std::vector<Entry>& entries);

  // Different keys.
  uint32_t size() const { return size_; }

  // The node behind `node` for a byte, or kNone.
  uint32_t step(uint32_t node, unsigned char byte) const {
    const uint32_t next = units_[node].base ^ byte;
    return units_[next].parent == node ? next : kNone;
  }
  // The value of the key that ends at a node, or -1.
  int32_t value(uint32_t node) const { return units_[node].value; }

  uint32_t walk(uint32_t node, std::string_view bytes) const {
    for (size_t i = 0; i < bytes.size() && node != kNone; ++i) node = step(node, static_cast<unsigned char>(bytes[i]));
    return node;
  }
  int32_t find(std::string_view key) const {
    const uint32_t node = walk(kRoot, key);
    return node == kNone ? -1 : value(node);
  }

  // Where keys end, by their values.
  struct Place {
    int32_t value;
    uint32_t node;
  };
  std::vector<Place> list() const;
  // The bytes on the way to a node.
  std::string spell(uint32_t node) const;

 private:
  // The child for byte b of a node with base B is at B ^ b, if that names the node as its parent. The first block has
  // the root and no children, so that leaves have base 0.
  static constexpr uint32_t kBlock = 256;
  struct Unit {
    uint32_t base = 0, parent = kNone;
    int32_t value = -1;
  };

  std::vector<Unit> units_;
  uint32_t size_ = 0;
};

}  // namespace edgebert::text
