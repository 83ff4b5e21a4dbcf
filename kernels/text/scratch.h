// What a thread keeps between texts: a text in the making, its splits, and the caches. Nothing here changes a result.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/platform.h"
#include "base/status.h"

namespace edgebert::text {

// A growing array of plain values that leaves new room unwritten, and always has kSlack values of it behind the end.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  static constexpr size_t kSlack = 32;

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  size_t capacity() const { return capacity_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  T* end() { return data_.get() + size_; }
  void clear() { size_ = 0; }
  // Room for `count` more values, and the slack.
  void reserve_more(size_t count) {
    if (size_ + count + kSlack > capacity_) grow(count);
  }
  void set_size(size_t size) { size_ = size; }
  void push(const T& value) {
    reserve_more(1);
    data_[size_++] = value;
  }
  void append(const T* values, size_t count) {
    reserve_more(count);
    if (count > 0) std::memcpy(end(), values, count * sizeof(T));
    size_ += count;
  }

 private:
  void grow(size_t count) {
    size_t capacity = capacity_ * 2;
    if (capacity < size_ + count + kSlack) capacity = size_ + count + kSlack + 64;
    std::unique_ptr<T[]> data(new T[capacity]);
    if (size_ > 0) std::memcpy(data.get(), data_.get(), size_ * sizeof(T));
    data_ = std::move(data);
    capacity_ = capacity;
  }

  std::unique_ptr<T[]> data_;
  size_t size_ = 0, capacity_ = 0;
};

// A fixed array of plain values, zeros at first, of which the untouched ones need no memory.
template <class T>
class Zeros {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit Zeros(size_t count) : memory_(allocate_zeros(count * sizeof(T))) {}
  T& operator[](size_t i) { return static_cast<T*>(memory_.get())[i]; }

 private:
  ZeroBytes memory_;
};

// A text as the steps leave it, in UTF-8. Every byte comes from one character of the original, or was put in beside it.
struct Normalized {
  Buffer<char> bytes;
  Buffer<uint32_t> origins;  // for each byte, where its original character begins; written if has_origins
  bool has_origins = false;  // else byte i comes from byte i of the original
  bool is_tracking = false;  // origins are asked for

  void start(bool tracks) {
    bytes.clear();
    origins.clear();
    has_origins = false;
    is_tracking = tracks;
  }
  // From here on bytes may differ from the original in number.
  void leave_identity() {
    if (!is_tracking || has_origins) return;
    has_origins = true;
    origins.reserve_more(bytes.size());
    // Each byte up to here is one of the original's, at the same place.
    for (size_t i = 0; i < bytes.size(); ++i) {
      const bool is_inside = (static_cast<unsigned char>(bytes[i]) & 0xC0) == 0x80;
      origins[i] = is_inside ? origins[i - 1] : static_cast<uint32_t>(i);
    }
    origins.set_size(bytes.size());
  }
  // Places in a text have 32 bits. To be called behind whatever lets it grow.
  void check_size() const {
    if (bytes.size() >= size_t{1} << 31) {
      throw Error(EB_INVALID_INPUT, "a text is too long for the tokenizer once it is normalized: split it");
    }
  }
  uint32_t origin(size_t i) const { return has_origins ? origins[i] : static_cast<uint32_t>(i); }
};

// A part of a Normalized text: a word to be, or an added token.
struct Split {
  uint32_t begin, end;
  int32_t token;  // its id, or -1
};

struct Match {
  uint32_t begin, end;
  bool is_match;
};

struct Piece {
  int32_t id;
  uint32_t size;  // bytes of the word
};

// A character and the original one it comes from.
struct Character {
  uint32_t code, origin;
};

// A character that takes the place of an old one. As in the tokenizers library: 0 for the next old one, -n for it and
// the n behind it, 1 where it is put in behind what was taken last.
struct Change {
  uint32_t code;
  int32_t kind;
};

// What a normalizer makes of a character.
struct CachedCharacter {
  uint32_t key;  // the code point and one; 0: none yet
  uint8_t size;
  uint8_t is_alone;  // 0: it depends on its neighbours
  char bytes[18];
};

// The pieces of a short word. A word's bytes beyond its size are 0.
struct alignas(64) CachedWord {
  static constexpr size_t kMaxSize = 24, kMaxPieces = 6;
  uint64_t bytes[3];
  int32_t ids[kMaxPieces];
  uint8_t sizes[kMaxPieces];
  uint8_t size;  // 0: none yet
  uint8_t num_pieces;
};
static_assert(sizeof(CachedWord) == 64);

struct PathNode {
  double score;
  int32_t id;
  uint32_t begin;  // kUnreached: no path ends here
};

struct Symbol {
  int32_t id;
  int32_t before, after;  // -1: none
  uint32_t size;          // 0: merged away
};

struct Merge {
  uint32_t rank;
  int32_t at;
  int32_t merged;
};

struct Scratch {
  static constexpr size_t kNumCharacters = 8192, kNumWords = 16384;

  Normalized text, other;
  Buffer<Split> splits, other_splits;
  Buffer<Match> matches;
  std::vector<Character> characters, other_characters;  // copied, not swapped: a text that is met again finds room
  std::vector<Change> changes, other_changes;
  Buffer<Piece> pieces;
  Buffer<PathNode> path;
  Buffer<Symbol> symbols;
  std::vector<Merge> merges;
  Buffer<uint32_t> positions;
  Zeros<CachedCharacter> cached_characters{kNumCharacters};
  Zeros<CachedWord> cached_words{kNumWords};

  void reserve_characters(size_t count) {
    if (changes.capacity() >= count) return;
    count = count < 2 * changes.capacity() ? 2 * changes.capacity() : count;
    characters.reserve(count);
    other_characters.reserve(count);
    changes.reserve(count);
  }

  // Whether a long text has left more behind than is worth keeping.
  bool is_large() const {
    constexpr size_t kLarge = 1 << 20;
    return text.bytes.capacity() > kLarge || other.bytes.capacity() > kLarge || splits.capacity() > kLarge ||
           changes.capacity() > 2 * kLarge || path.capacity() > kLarge || symbols.capacity() > kLarge;
  }
};

}  // namespace edgebert::text
