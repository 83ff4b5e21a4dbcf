#include "text/model.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "text/trie.h"
#include "text/unicode.h"

namespace edgebert::text {
namespace {

constexpr uint32_t kMaxId = 0x7FFFFFFE;

// Keeps the strings that had escapes; the others are read where they stand in the JSON.
class Strings {
 public:
  explicit Strings(std::string_view source) : source_(source) {}
  std::string_view keep(std::string_view read) {
    if (read.data() >= source_.data() && read.data() < source_.data() + source_.size()) return read;
    kept_.push_back(std::make_unique<std::string>(read));
    return *kept_.back();
  }

 private:
  std::string_view source_;
  std::vector<std::unique_ptr<std::string>> kept_;
};

struct Vocabulary {
  std::string_view source;
  Strings strings;
  std::vector<Trie::Entry> entries;

  // {"token": id, ...}
  explicit Vocabulary(JsonObject* object) : source(object->take("vocab")), strings(source) {
    JsonCursor cursor(source);
    entries.reserve(source.size() / 8);
    cursor.read_object([&](std::string_view token) {
      const std::string_view kept = strings.keep(token);
      entries.push_back({kept, static_cast<int32_t>(cursor.read_index(kMaxId))});
    });
  }
};

int32_t need_token(const Trie& trie, const std::string& token, const JsonObject& object) {
  const int32_t id = trie.find(token);
  if (id < 0) object.refuse("has no token " + token.substr(0, 100) + " for what is unknown");
  return id;
}

// WordPiece: the longest token that begins the word, then the longest that continues it, and so on.
class WordPiece : public Model {
 public:
  explicit WordPiece(JsonObject* object) {
    const std::string unknown = object->take_string("unk_token");
    const std::string prefix = object->take_string("continuing_subword_prefix");
    max_characters_ = object->take_index("max_input_chars_per_word", 100);
    Vocabulary vocabulary(object);
    set_vocabulary(vocabulary.entries, false);
    object->finish();
    unknown_id_ = need_token(trie_, unknown, *object);
    inner_ = trie_.walk(Trie::kRoot, prefix);
    has_marks_ = !prefix.empty();
  }

  void tokenize(std::string_view word, Scratch* scratch) const override {
    Buffer<Piece>& pieces = scratch->pieces;
    pieces.clear();
    if (!is_too_long(word)) {
      uint32_t first = Trie::kRoot;
      size_t begin = 0;
      while (begin < word.size() && first != Trie::kNone) {
        uint32_t node = first;
        int32_t id = -1;
        size_t end = begin;
        for (size_t at = begin; at < word.size();) {
          node = trie_.step(node, static_cast<unsigned char>(word[at++]));
          if (node == Trie::kNone) break;
          if (trie_.value(node) >= 0) {
            id = trie_.value(node);
            end = at;
          }
        }
        if (id < 0) break;
        pieces.push({id, static_cast<uint32_t>(end - begin)});
        begin = end;
        first = inner_;
      }
      if (begin == word.size()) return;
    }
    pieces.clear();
    pieces.push({unknown_id_, static_cast<uint32_t>(word.size())});
  }

 private:
  bool is_too_long(std::string_view word) const {
    if (word.size() <= max_characters_) return false;
    size_t count = 0;
    for (const char c : word) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80 ? 1 : 0;
    return count > max_characters_;
  }

  uint32_t inner_;  // the node behind the prefix of tokens that continue a word
  uint32_t max_characters_;
};

class WordLevel : public Model {
 public:
  explicit WordLevel(JsonObject* object) {
    const std::string unknown = object->take_string("unk_token");
    Vocabulary vocabulary(object);
    set_vocabulary(vocabulary.entries, false);
    object->finish();
    unknown_id_ = need_token(trie_, unknown, *object);
  }

  void tokenize(std::string_view word, Scratch* scratch) const override {
    const int32_t id = trie_.find(word);
    scratch->pieces.clear();
    scratch->pieces.push({id >= 0 ? id : unknown_id_, static_cast<uint32_t>(word.size())});
  }
};

// BPE: a word's characters, or its bytes, merged two by two, the merge learned first going first.
class Bpe : public Model {
 public:
  Bpe(JsonObject* object, bool is_byte_level) : is_byte_level_(is_byte_level) {
    for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const std::string_view value = object->take(name);
      if (value != "null" && value != "\"\"") object->refuse(std::string("has a ") + name);
    }
    const std::string_view dropout = object->take("dropout");
    if (dropout != "null" && JsonCursor(dropout).read_number() != 0) object->refuse("has a dropout");
    if (object->take_bool("byte_fallback", false)) object->refuse("has a byte_fallback");
    fuses_unknown_ = object->take_bool("fuse_unk", false);
    ignores_merges_ = object->take_bool("ignore_merges", false);
    const std::string_view unknown = object->take("unk_token");
    Vocabulary vocabulary(object);
    set_vocabulary(vocabulary.entries, false);
    if (unknown != "null") unknown_id_ = need_token(trie_, JsonCursor(unknown).read_string(), *object);
    read_merges(object);
    object->finish();
    if (is_byte_level) learn_bytes(vocabulary.entries);
    // What is left out moves the offsets of what comes behind it, letter by letter.
    if (unknown_id_ < 0 && !(is_byte_level && has_all_bytes())) object->refuse("has no token for what is unknown");
  }

  void tokenize(std::string_view word, Scratch* scratch) const override {
    Buffer<Piece>& pieces = scratch->pieces;
    pieces.clear();
    if (ignores_merges_) {
      const int32_t id = (is_byte_level_ ? byte_trie_ : trie_).find(word);
      if (id >= 0) {
        pieces.push({id, static_cast<uint32_t>(word.size())});
        return;
      }
    }
    start(word, &scratch->symbols);
    merge(scratch);
    const Buffer<Symbol>& symbols = scratch->symbols;
    for (size_t i = 0; i < symbols.size(); ++i) {
      if (symbols[i].size > 0) pieces.push({symbols[i].id, symbols[i].size});
    }
  }

 private:
  struct Slot {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    int32_t merged = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  static uint64_t pair_of(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t pair) const { return static_cast<size_t>(pair * 0x9E3779B97F4A7C15u >> slot_shift_); }

  const Slot* find_merge(int32_t left, int32_t right) const {
    const uint64_t pair = pair_of(left, right);
    for (size_t i = slot_of(pair);; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i].pair == pair) return &slots_[i];
      if (slots_[i].pair == kNoPair) return nullptr;
    }
  }

  void read_merges(JsonObject* object) {
    struct Read {
      int32_t left, right, merged;
    };
    std::vector<Read> merges;
    JsonCursor cursor(object->take("merges"));
    std::string joined, scratch;
    const auto need = [&](std::string_view token) {
      const int32_t id = trie_.find(token);
      if (id < 0)
        object->fail("has a merge with a token that is not in its vocabulary, " + std::string(token.substr(0, 100)));
      return id;
    };
    cursor.read_array([&] {
      std::string left, right;
      if (cursor.peek() == '[') {  // ["a", "b"]
        int count = 0;
        cursor.read_array([&] {
          if (count > 1) object->fail("has a merge of more than two");
          (count == 0 ? left : right) = cursor.read_string(&scratch);
          ++count;
        });
        if (count != 2) object->fail("has a merge of less than two");
      } else {  // "a b"
        const std::string_view line = cursor.read_string(&scratch);
        if (line.substr(0, 8) == "#version") return;
        const size_t space = line.find(' ');
        if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
          object->fail("has a merge that is not two tokens and a blank");
        }
        left = line.substr(0, space);
        right = line.substr(space + 1);
      }
      joined = left + right;
      merges.push_back({need(left), need(right), need(joined)});
    });
    size_t size = 16;
    while (size < merges.size() * 2) size *= 2;
    slots_.resize(size);
    slot_shift_ = 64;
    for (; size > 1; size /= 2) --slot_shift_;
    for (size_t rank = 0; rank < merges.size(); ++rank) {
      const uint64_t pair = pair_of(merges[rank].left, merges[rank].right);
      size_t i = slot_of(pair);
      while (slots_[i].pair != kNoPair && slots_[i].pair != pair) i = (i + 1) & (slots_.size() - 1);
      slots_[i] = {pair, static_cast<uint32_t>(rank), merges[rank].merged};
    }
  }

  // The vocabulary in bytes, without tokens that have letters no byte has.
  void learn_bytes(const std::vector<Trie::Entry>& entries) {
    byte_ids_.fill(-1);
    std::vector<std::string> spelled;
    std::vector<Trie::Entry> kept;
    if (ignores_merges_) spelled.reserve(entries.size());
    uint32_t max_id = 0;
    for (const Trie::Entry& entry : entries) max_id = std::max(max_id, static_cast<uint32_t>(entry.value));
    if (max_id > entries.size() * 4 + 1000000) {
      throw Error(EB_UNSUPPORTED, "the tokenizer's ids are far apart: use the tokenizers library");
    }
    blanks_.assign(size_t{max_id} + 1, {0, 0});
    for (const Trie::Entry& entry : entries) {
      std::string word;
      size_t leading = 0, trailing = 0, count = 0;
      bool is_spelled = true;
      for (size_t at = 0; at < entry.key.size(); ++count) {
        const uint32_t code = decode(entry.key.data(), &at);
        const int byte = letter_byte(code);
        is_spelled = is_spelled && byte >= 0;
        if (is_spelled) word += static_cast<char>(byte);
        const bool is_blank = code == byte_letter(' ') || (class_of(code) & kSpace) != 0;
        if (is_blank && leading == count) ++leading;
        trailing = is_blank ? trailing + 1 : 0;
      }
      constexpr size_t kMost = 0xFFFF;
      blanks_[static_cast<size_t>(entry.value)] = {static_cast<uint16_t>(std::min(leading, kMost)),
                                                   static_cast<uint16_t>(std::min(trailing, kMost))};
      if (!is_spelled) continue;
      if (word.size() == 1) byte_ids_[static_cast<unsigned char>(word[0])] = entry.value;
      if (ignores_merges_) {
        spelled.push_back(std::move(word));
        kept.push_back({spelled.back(), entry.value});
      }
    }
    if (ignores_merges_) byte_trie_ = Trie(kept);
  }

  // Whether every byte that UTF-8 has is a token.
  bool has_all_bytes() const {
    for (int i = 0; i < 0xF5; ++i) {
      if (i != 0xC0 && i != 0xC1 && byte_ids_[static_cast<size_t>(i)] < 0) return false;
    }
    return true;
  }

  // A symbol for each byte or character; what the vocabulary lacks is the unknown token.
  void start(std::string_view word, Buffer<Symbol>* symbols) const {
    symbols->clear();
    symbols->reserve_more(word.size());
    uint32_t unknown = 0;  // bytes of the unknown token in the making
    const auto add = [&](int32_t id, uint32_t size) {
      const auto count = static_cast<int32_t>(symbols->size());
      symbols->push({id, count - 1, count + 1, size});
    };
    const auto flush = [&] {
      if (unknown > 0) add(unknown_id_, unknown);
      unknown = 0;
    };
    for (size_t at = 0; at < word.size();) {
      // A character of a byte-level word is one byte, but what is unknown is whole letters: also one byte each.
      const uint32_t size = is_byte_level_ ? 1 : length_of(word[at]);
      const int32_t id =
          is_byte_level_ ? byte_ids_[static_cast<unsigned char>(word[at])] : trie_.find(word.substr(at, size));
      at += size;
      if (id >= 0) {
        flush();
        add(id, size);
      } else {
        if (!fuses_unknown_) flush();
        unknown += size;
      }
    }
    flush();
    if (symbols->size() > 0) (*symbols)[symbols->size() - 1].after = -1;
  }

  void merge(Scratch* scratch) const {
    Buffer<Symbol>& symbols = scratch->symbols;
    std::vector<Merge>& heap = scratch->merges;
    heap.clear();
    const auto is_later = [](const Merge& a, const Merge& b) {
      return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
    };
    const auto find = [&](int32_t at) {
      const int32_t after = symbols[static_cast<size_t>(at)].after;
      return after < 0 ? nullptr
                       : find_merge(symbols[static_cast<size_t>(at)].id, symbols[static_cast<size_t>(after)].id);
    };
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const Slot* slot = find(static_cast<int32_t>(i));
      if (slot != nullptr) heap.push_back({slot->rank, static_cast<int32_t>(i), slot->merged});
    }
    std::make_heap(heap.begin(), heap.end(), is_later);
    const auto push = [&](int32_t at) {
      const Slot* slot = find(at);
      if (slot == nullptr) return;
      heap.push_back({slot->rank, at, slot->merged});
      std::push_heap(heap.begin(), heap.end(), is_later);
    };
    while (!heap.empty()) {
      const Merge next = heap.front();
      std::pop_heap(heap.begin(), heap.end(), is_later);
      heap.pop_back();
      Symbol& left = symbols[static_cast<size_t>(next.at)];
      if (left.size == 0 || left.after < 0) continue;
      const Slot* slot = find(next.at);
      if (slot == nullptr || slot->merged != next.merged) continue;  // one of the two was merged otherwise meanwhile
      Symbol& right = symbols[static_cast<size_t>(left.after)];
      left.id = next.merged;
      left.size += right.size;
      left.after = right.after;
      right.size = 0;
      if (left.after >= 0) symbols[static_cast<size_t>(left.after)].before = next.at;
      if (left.before >= 0) push(left.before);
      push(next.at);
    }
  }

  const bool is_byte_level_;
  bool fuses_unknown_ = false, ignores_merges_ = false;
  Trie byte_trie_;
  std::array<int32_t, 256> byte_ids_{};
  std::vector<Slot> slots_;
  int slot_shift_ = 0;
};

// Unigram: the path of tokens with the highest sum of scores, the first found on a tie.
class Unigram : public Model {
 public:
  explicit Unigram(JsonObject* object) {
    if (object->take_bool("byte_fallback", false)) object->refuse("has a byte_fallback");
    for (const char* name : {"alpha", "nbest_size"}) {
      if (object->take(name) != "null") object->refuse(std::string("has an ") + name);
    }
    const std::string_view unknown = object->take("unk_id");
    if (unknown == "null") object->refuse("has no unk_id");
    unknown_id_ = static_cast<int32_t>(JsonCursor(unknown).read_index(kMaxId));
    const std::string_view source = object->take("vocab");
    object->finish();
    Strings strings(source);
    std::vector<Trie::Entry> entries;
    entries.reserve(source.size() / 24);
    scores_.reserve(source.size() / 24);
    JsonCursor cursor(source);
    std::string scratch;
    double lowest = std::numeric_limits<double>::infinity();
    cursor.read_array([&] {  // ["token", score]
      int count = 0;
      cursor.read_array([&] {
        if (count == 0) {
          entries.push_back({strings.keep(cursor.read_string(&scratch)), static_cast<int32_t>(scores_.size())});
        } else if (count == 1) {
          scores_.push_back(cursor.read_number());
          lowest = std::min(lowest, scores_.back());
        } else {
          cursor.fail("expected a token and a score");
        }
        ++count;
      });
      if (count != 2) cursor.fail("expected a token and a score");
    });
    if (static_cast<size_t>(unknown_id_) >= scores_.size()) object->fail("has an unk_id beyond its vocabulary");
    set_vocabulary(entries, true);
    unknown_score_ = lowest - kUnknownPenalty;
  }

  void tokenize(std::string_view word, Scratch* scratch) const override {
    Buffer<PathNode>& path = scratch->path;
    const size_t size = word.size();
    path.clear();
    path.reserve_more(size + 1);
    path.set_size(size + 1);
    for (size_t i = 0; i <= size; ++i) path[i] = {0, 0, kUnreached};
    for (size_t begin = 0; begin < size;) {
      const double before = path[begin].score;
      const size_t single = begin + length_of(word[begin]);
      bool has_single = false;
      const auto offer = [&](size_t end, int32_t id, double score) {
        PathNode& node = path[end];
        if (node.begin == kUnreached || score > node.score) node = {score, id, static_cast<uint32_t>(begin)};
      };
      uint32_t node = Trie::kRoot;
      for (size_t at = begin; at < size;) {
        node = trie_.step(node, static_cast<unsigned char>(word[at++]));
        if (node == Trie::kNone) break;
        const int32_t id = trie_.value(node);
        if (id < 0) continue;
        offer(at, id, scores_[static_cast<size_t>(id)] + before);
        has_single |= at == single;
      }
      if (!has_single) offer(single, unknown_id_, unknown_score_ + before);
      begin = single;
    }
    Buffer<Piece>& pieces = scratch->pieces;
    pieces.clear();
    // From the end: neighbouring unknown pieces become one, which may be a token after all.
    size_t unknown_end = 0;
    const auto flush = [&](size_t begin) {
      if (unknown_end == 0) return;
      const int32_t id = trie_.find(word.substr(begin, unknown_end - begin));
      pieces.push({id >= 0 ? id : unknown_id_, static_cast<uint32_t>(unknown_end - begin)});
      unknown_end = 0;
    };
    for (size_t end = size; end > 0;) {
      const PathNode& node = path[end];
      if (node.id == unknown_id_) {
        if (unknown_end == 0) unknown_end = end;
      } else {
        flush(end);
        // The token's own text is looked up again by the library, and so has the last id that the text was given.
        pieces.push({node.id, static_cast<uint32_t>(end - node.begin)});
      }
      end = node.begin;
    }
    flush(0);
    std::reverse(pieces.data(), pieces.end());
  }

 private:
  static constexpr double kUnknownPenalty = 10;
  static constexpr uint32_t kUnreached = ~uint32_t{0};

  std::vector<double> scores_;
  double unknown_score_;
};

}  // namespace

void Model::set_vocabulary(const std::vector<Trie::Entry>& entries, bool is_list) {
  trie_ = Trie(entries);
  vocab_size_ = static_cast<int32_t>(is_list ? entries.size() : trie_.size());
  for (const Trie::Entry& entry : entries) max_id_ = std::max(max_id_, entry.value);
  if (trie_.size() == entries.size()) return;
  for (const Trie::Entry& entry : entries) {
    if (entry.key.empty()) {
      if (!is_list) hidden_.clear();  // of equal ones the last; nothing else is hidden
      hidden_[entry.value] = "";
    } else if (is_list && trie_.find(entry.key) != entry.value) {
      hidden_[entry.value] = entry.key;
    }
  }
  if (!is_list) vocab_size_ += static_cast<int32_t>(hidden_.size());
}

bool Model::name(int32_t id, std::string* token) const {
  const std::vector<Trie::Place>* places = places_.load();
  if (places == nullptr) {
    auto made = std::make_unique<const std::vector<Trie::Place>>(trie_.list());
    if (places_.compare_exchange_strong(places, made.get())) places = made.release();
  }
  const auto found = std::lower_bound(places->begin(), places->end(), id,
                                      [](const Trie::Place& place, int32_t value) { return place.value < value; });
  if (found != places->end() && found->value == id) {
    *token = trie_.spell(found->node);
    return true;
  }
  const auto hidden = hidden_.find(id);
  if (hidden == hidden_.end()) return false;
  *token = hidden->second;
  return true;
}

std::unique_ptr<Model> make_model(std::string_view json, bool is_byte_level) {
  JsonObject object(json, "model");
  const std::string type = object.take_string("type");
  std::unique_ptr<Model> model;
  if (type == "BPE") return std::make_unique<Bpe>(&object, is_byte_level);
  if (is_byte_level) object.refuse("is " + type.substr(0, 100) + " behind ByteLevel");
  if (type == "WordPiece") return std::make_unique<WordPiece>(&object);
  if (type == "WordLevel") return std::make_unique<WordLevel>(&object);
  if (type == "Unigram") return std::make_unique<Unigram>(&object);
  object.refuse("is of the type " + type.substr(0, 100));
}

}  // namespace edgebert::text
