#include "text/trie.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <utility>

#include "base/status.h"

namespace edgebert::text {
namespace {

// Where units are free, as a list through the array.
class Places {
 public:
  explicit Places(uint32_t block) : block_(block), size_(block) {}

  // A base for children with these labels: each label's place is free.
  template <class Grow>
  uint32_t find_base(const std::vector<unsigned char>& labels, const Grow& grow) {
    // A single child fits anywhere, and so fills the oldest gaps; several look where much is free, at the end, and not
    // for long.
    constexpr int kMaxTries = 64;
    if (labels.size() == 1 && head_ != 0) return head_ ^ labels[0];
    uint32_t place = tail_;
    for (int tries = 0; place != 0 && tries < kMaxTries; ++tries, place = before_[place]) {
      const uint32_t base = place ^ labels[0];
      if (fits(base, labels)) return base;
    }
    const uint32_t begin = size_;
    size_ += block_;
    grow(size_);
    next_.resize(size_);
    before_.resize(size_);
    is_free_.resize(size_);
    for (uint32_t i = begin; i < size_; ++i) append(i);
    return begin;
  }

  void take(uint32_t place) {
    const uint32_t before = before_[place], next = next_[place];
    (before != 0 ? next_[before] : head_) = next;
    (next != 0 ? before_[next] : tail_) = before;
    is_free_[place] = 0;
  }

 private:
  bool fits(uint32_t base, const std::vector<unsigned char>& labels) const {
    for (const unsigned char label : labels) {
      if (is_free_[base ^ label] == 0) return false;
    }
    return true;
  }

  void append(uint32_t place) {
    before_[place] = tail_;
    next_[place] = 0;
    (tail_ != 0 ? next_[tail_] : head_) = place;
    tail_ = place;
    is_free_[place] = 1;
  }

  uint32_t block_, size_, head_ = 0, tail_ = 0;  // 0: none; the first block has no free places
  std::vector<uint32_t> next_, before_;
  std::vector<uint8_t> is_free_;
};

struct Item {
  uint64_t first;  // eight bytes of the key
  const Trie::Entry* entry;
};

// Stable. By the first eight bytes, one after another, which is far quicker than comparing keys.
std::vector<Item> sort(const std::vector<Trie::Entry>& entries) {
  std::vector<Item> items;
  items.reserve(entries.size());
  for (const Trie::Entry& entry : entries) {
    uint64_t first = 0;
    for (size_t i = 0; i < 8; ++i) {
      first = first << 8 | (i < entry.key.size() ? static_cast<unsigned char>(entry.key[i]) : 0u);
    }
    items.push_back({first, &entry});
  }
  std::vector<Item> moved(items.size());
  for (int shift = 0; shift < 64; shift += 8) {
    std::array<size_t, 256> begins{};
    const auto begin_of = [&](const Item& item) -> size_t& { return begins[item.first >> shift & 0xFF]; };
    for (const Item& item : items) ++begin_of(item);
    size_t begin = 0;
    for (size_t& count : begins) begin += std::exchange(count, begin);
    for (const Item& item : items) moved[begin_of(item)++] = item;
    items.swap(moved);
  }
  for (size_t i = 0, end; i < items.size(); i = end) {
    for (end = i + 1; end < items.size() && items[end].first == items[i].first;) ++end;
    if (end - i == 1) continue;
    const auto at = [&](size_t k) { return items.begin() + static_cast<std::ptrdiff_t>(k); };
    std::stable_sort(at(i), at(end), [](const Item& a, const Item& b) { return a.entry->key < b.entry->key; });
  }
  return items;
}

}  // namespace

Trie::Trie(const std::vector<Entry>& entries) : units_(kBlock) {
  constexpr uint32_t kMaxUnits = 1u << 30;
  const std::vector<Item> items = sort(entries);
  size_t num_bytes = 0;
  for (const Entry& entry : entries) num_bytes += entry.key.size();
  // About as many as there can be nodes, where that is not absurd: growing would touch more memory.
  units_.reserve(std::min(num_bytes, size_t{1} << 20) + kBlock);
  Places places(kBlock);
  struct Range {  // of items that begin with a node's `depth` bytes
    uint32_t node;
    size_t begin, end, depth;
  };
  std::vector<Range> open = {{kRoot, 0, items.size(), 0}};
  std::vector<unsigned char> labels;
  std::vector<size_t> begins;
  while (!open.empty()) {
    Range range = open.back();
    open.pop_back();
    while (range.begin < range.end && items[range.begin].entry->key.size() == range.depth) {
      if (range.depth > 0) {
        size_ += units_[range.node].value < 0 ? 1 : 0;
        units_[range.node].value = items[range.begin].entry->value;
      }
      ++range.begin;
    }
    if (range.begin == range.end) continue;
    const auto label_of = [&](size_t i) { return static_cast<unsigned char>(items[i].entry->key[range.depth]); };
    labels.clear();
    begins.clear();
    for (size_t i = range.begin; i < range.end;) {
      const unsigned char label = label_of(i);
      labels.push_back(label);
      begins.push_back(i);
      if (label == label_of(range.end - 1)) break;
      // entries with the same byte stand together: gallop to the first that has another
      size_t step = 1, low = i, high = i;
      while (high < range.end && label_of(high) == label) {
        low = high;
        high += step;
        step *= 2;
      }
      high = std::min(high, range.end);
      while (low + 1 < high) {
        const size_t middle = low + (high - low) / 2;
        (label_of(middle) == label ? low : high) = middle;
      }
      i = low + 1;
    }
    begins.push_back(range.end);
    const uint32_t base = places.find_base(labels, [&](uint32_t size) {
      if (size > kMaxUnits) {
        throw Error(EB_UNSUPPORTED,
                    "the tokenizer's vocabulary is too large for the native tokenizer: use the tokenizers library");
      }
      units_.resize(size);
    });
    units_[range.node].base = base;
    for (const unsigned char label : labels) {
      places.take(base ^ label);
      units_[base ^ label].parent = range.node;
    }
    for (size_t i = labels.size(); i-- > 0;) {
      open.push_back({base ^ labels[i], begins[i], begins[i + 1], range.depth + 1});
    }
  }
  units_.shrink_to_fit();
}

std::vector<Trie::Place> Trie::list() const {
  std::vector<Place> places;
  places.reserve(size_);
  for (uint32_t node = 0; node < units_.size(); ++node) {
    if (units_[node].value >= 0) places.push_back({units_[node].value, node});
  }
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.value < b.value; });
  return places;
}

std::string Trie::spell(uint32_t node) const {
  std::string key;
  for (; node != kRoot; node = units_[node].parent) {
    key += static_cast<char>(node ^ units_[units_[node].parent].base);
  }
  std::reverse(key.begin(), key.end());
  return key;
}

}  // namespace edgebert::text
