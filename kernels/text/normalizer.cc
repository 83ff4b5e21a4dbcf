#include "text/normalizer.h"

#include <algorithm>
#include <array>

#include "base/base64.h"
#include "text/unicode.h"

namespace edgebert::text {
namespace {

std::vector<uint32_t> decode_all(std::string_view text) {
  std::vector<uint32_t> codes;
  for (size_t at = 0; at < text.size();) codes.push_back(decode(text.data(), &at));
  return codes;
}

// Carries origins over to the characters that take the old ones' places; `num_removed` old ones are gone at the start.
void transform(size_t num_removed, Scratch* scratch) {
  std::vector<Character>& old = scratch->characters;
  if (old.empty()) return;
  std::vector<Character>& made = scratch->other_characters;
  made.clear();
  size_t at = std::min(num_removed, old.size());
  for (const Change& change : scratch->changes) {
    const size_t from = change.kind > 0 && at > 0 ? at - 1 : std::min(at, old.size() - 1);
    made.push_back({change.code, old[from].origin});
    if (change.kind <= 0) at = std::min(at + 1 + static_cast<size_t>(-change.kind), old.size());
  }
  old = made;
}

template <class Keep>
void filter(const Keep& keep, Scratch* scratch) {
  auto& characters = scratch->characters;
  characters.erase(std::remove_if(characters.begin(), characters.end(),
                                  [&](const Character& character) { return !keep(character.code); }),
                   characters.end());
}

template <class Map>
void map_characters(const Map& map, Scratch* scratch) {
  for (Character& character : scratch->characters) character.code = map(character.code);
}

// Sorts the changes from `first` on by their classes, equal ones in their order.
void sort_marks(size_t first, Scratch* scratch) {
  constexpr size_t kFew = 16;
  std::vector<Change>& changes = scratch->changes;
  const size_t count = changes.size() - first;
  if (count <= kFew) {
    for (size_t i = first + 1; i < changes.size(); ++i) {
      const Change change = changes[i];
      const int mark_class = combining_class(change.code);
      size_t at = i;
      for (; at > first && combining_class(changes[at - 1].code) > mark_class; --at) changes[at] = changes[at - 1];
      changes[at] = change;
    }
    return;
  }
  std::array<size_t, 257> begins{};  // of each class
  for (size_t i = first; i < changes.size(); ++i) ++begins[static_cast<size_t>(combining_class(changes[i].code)) + 1];
  for (size_t i = 1; i < begins.size(); ++i) begins[i] += begins[i - 1];
  std::vector<Change>& sorted = scratch->other_changes;
  sorted.resize(count);
  for (size_t i = first; i < changes.size(); ++i) {
    sorted[begins[static_cast<size_t>(combining_class(changes[i].code))]++] = changes[i];
  }
  std::copy(sorted.begin(), sorted.end(), changes.begin() + static_cast<std::ptrdiff_t>(first));
}

// Canonical or compatible decomposition; marks in the order of their classes, each with the change it came with.
void list_decomposed(bool is_compatible, Scratch* scratch) {
  std::vector<Change>& changes = scratch->changes;
  changes.clear();
  size_t marks = 0;  // where the marks behind the last starter begin
  uint32_t codes[kMaxDecomposition];
  for (const Character& character : scratch->characters) {
    const int count = decompose(character.code, is_compatible, codes);
    for (int i = 0; i < count; ++i) {
      if (combining_class(codes[i]) == 0) {
        sort_marks(marks, scratch);
        marks = changes.size() + 1;
      }
      changes.push_back({codes[i], i > 0 ? 1 : 0});
      marks = std::min(marks, changes.size());
    }
  }
  sort_marks(marks, scratch);
}

// Composes what list_decomposed left. A composed character's change is the sum of its parts', less one for each added.
void list_composed(Scratch* scratch) {
  std::vector<Change>& changes = scratch->changes;
  size_t size = 0;
  size_t starter = changes.size();  // index of the last one, in what is kept
  int last_class = -1;              // of the last mark kept behind it; -1: none
  for (const Change change : changes) {
    const int mark_class = combining_class(change.code);
    if (starter < size) {
      const bool is_blocked = last_class >= 0 && last_class >= mark_class;
      const uint32_t composed = is_blocked ? 0 : compose(changes[starter].code, change.code);
      if (composed != 0) {
        changes[starter] = {composed, changes[starter].kind + change.kind - 1};
        continue;
      }
    }
    if (mark_class == 0) {
      starter = size;
      last_class = -1;
    } else if (starter < size) {
      last_class = mark_class;
    }
    changes[size++] = change;
  }
  changes.resize(size);
}

bool is_line_space(uint32_t code) { return code == '\n' || code == '\r' || code == '\t'; }

void replace_all(const std::vector<uint32_t>& pattern, const std::vector<uint32_t>& content, bool takes_spaces,
                 Scratch* scratch) {
  std::vector<Character>& characters = scratch->characters;
  const size_t count = characters.size();
  const auto match = [&](size_t at) -> size_t {
    if (pattern.empty()) {
      size_t end = at;
      const auto is_blank = [&](uint32_t code) { return takes_spaces ? (class_of(code) & kSpace) != 0 : code == ' '; };
      while (end < count && is_blank(characters[end].code)) ++end;
      if (takes_spaces && end - at == 1 && is_line_space(characters[at].code)) return 1;
      return end - at >= 2 ? end - at : 0;
    }
    if (pattern.size() > count - at) return 0;
    for (size_t i = 0; i < pattern.size(); ++i) {
      if (characters[at + i].code != pattern[i]) return 0;
    }
    return pattern.size();
  };
  std::vector<Character>& made = scratch->other_characters;
  made.clear();
  for (size_t at = 0; at < count;) {
    const size_t size = match(at);
    if (size == 0) {
      made.push_back(characters[at++]);
      continue;
    }
    at += size;
    for (const uint32_t code : content) made.push_back({code, characters[at - 1].origin});
  }
  characters = made;
}

void strip(bool left, bool right, Scratch* scratch) {
  std::vector<Character>& characters = scratch->characters;
  const auto is_space = [](const Character& character) { return (class_of(character.code) & kSpace) != 0; };
  auto begin = characters.begin(), end = characters.end();
  if (left) begin = std::find_if_not(begin, end, is_space);
  if (right) {
    while (end != begin && is_space(*(end - 1))) --end;
  }
  characters.erase(end, characters.end());
  characters.erase(characters.begin(), begin);
}

void prepend(const std::vector<uint32_t>& content, Scratch* scratch) {
  std::vector<Character>& characters = scratch->characters;
  if (characters.empty()) return;
  const uint32_t origin = characters[0].origin;
  std::vector<Character>& made = scratch->other_characters;
  made.clear();
  for (const uint32_t code : content) made.push_back({code, origin});
  made.insert(made.end(), characters.begin(), characters.end());
  characters = made;
}

// As the library does it: a grapheme of less than six bytes as a whole, by its shortest prefix; else each character.
void list_precompiled(const CharsMap& map, Scratch* scratch) {
  constexpr size_t kMaxGrapheme = 6;
  std::vector<Change>& changes = scratch->changes;
  const std::vector<Character>& characters = scratch->characters;
  changes.clear();
  const auto replace = [&](int old_count, std::string_view replacement) {
    int count = 0;
    for (size_t at = 0; at < replacement.size(); ++count) changes.push_back({decode(replacement.data(), &at), 0});
    if (count > old_count) {
      for (int i = 0; i < count - old_count; ++i) changes[changes.size() - 1 - static_cast<size_t>(i)].kind = 1;
    } else if (count < old_count && !changes.empty()) {
      changes.back().kind += count - old_count;
    }
  };
  Graphemes graphemes;
  char bytes[kMaxGrapheme + 4];
  size_t begin = 0;
  const auto finish = [&](size_t end) {
    size_t size = 0;
    for (size_t i = begin; i < end && size < kMaxGrapheme; ++i) {
      size += static_cast<size_t>(encode(characters[i].code, bytes + size));
    }
    std::string_view replacement;
    if (end - begin > 1 && size < kMaxGrapheme && map.find({bytes, size}, &replacement)) {
      replace(static_cast<int>(end - begin), replacement);
    } else {
      for (size_t i = begin; i < end; ++i) {
        size = static_cast<size_t>(encode(characters[i].code, bytes));
        if (map.find({bytes, size}, &replacement)) {
          replace(1, replacement);
        } else {
          changes.push_back({characters[i].code, 0});
        }
      }
    }
    begin = end;
  };
  for (size_t i = 0; i < characters.size(); ++i) {
    if (graphemes.begins(characters[i].code) && i > begin) finish(i);
  }
  if (begin < characters.size()) finish(characters.size());
}

bool is_nmt_removed(uint32_t code) {
  return (code >= 1 && code <= 8) || code == 0x0B || (code >= 0x0E && code <= 0x1F) || code == 0x7F || code == 0x8F ||
         code == 0x9F;
}

bool is_nmt_space(uint32_t code) {
  return code == 9 || code == 10 || code == 12 || code == 13 || code == 0x1680 || (code >= 0x200B && code <= 0x200F) ||
         code == 0x2028 || code == 0x2029 || code == 0x2581 || code == 0xFEFF || code == 0xFFFD;
}

}  // namespace

CharsMap::CharsMap(std::string_view base64, const JsonObject& owner) {
  std::string bytes;
  if (!decode_base64(base64, &bytes)) owner.fail("has a map that is not base64");
  const auto word = [&](size_t at) {
    uint32_t value = 0;
    for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
    return value;
  };
  if (bytes.size() < 4) owner.fail("has a map without a size");
  const size_t size = word(0);
  if (size % 4 != 0 || size == 0 || size > bytes.size() - 4) owner.fail("has a map cut short");
  units_.reserve(size / 4);
  for (size_t at = 4; at < 4 + size; at += 4) units_.push_back(word(at));
  replacements_ = bytes.substr(4 + size);
  size_t at;
  if (!is_utf8(replacements_, &at)) owner.fail("has a map to what is not UTF-8");
}

bool CharsMap::find(std::string_view key, std::string_view* replacement) const {
  const auto offset = [](uint32_t unit) { return unit >> 10 << ((unit & 1u << 9) >> 6); };
  uint32_t at = offset(units_[0]);
  for (const char c : key) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte == 0) return false;
    at ^= byte;
    if (at >= units_.size() || (units_[at] & (1u << 31 | 0xFF)) != byte) return false;
    const bool has_leaf = (units_[at] >> 8 & 1) != 0;
    at ^= offset(units_[at]);
    if (!has_leaf) continue;
    if (at >= units_.size()) return false;
    const size_t begin = units_[at] & 0x7FFFFFFF;
    if (begin > replacements_.size()) return false;
    if (begin < replacements_.size() && (static_cast<unsigned char>(replacements_[begin]) & 0xC0) == 0x80) return false;
    const size_t end = std::min(replacements_.find('\0', begin), replacements_.size());
    *replacement = std::string_view(replacements_).substr(begin, end - begin);
    return true;
  }
  return false;
}

Normalizer::Normalizer(std::string_view json) {
  if (json != "null") {
    JsonObject object(json, "normalizer");
    add(&object);
  }
  for (const Step& step : steps_) {
    joins_blanks_ |= step.kind == Kind::kReplace && step.pattern.empty();
    strips_left_ |= step.strips_left;
    strips_right_ |= step.strips_right;
  }
  const auto scratch = std::make_unique<Scratch>();
  for (uint32_t code = 0; code < 128; ++code) {
    const bool is_one = find_alone(code, scratch.get()) && scratch->characters.size() == 1;
    const uint32_t made = is_one ? scratch->characters[0].code : kNotAscii;
    ascii_[code] = made < 128 ? static_cast<unsigned char>(made) : kNotAscii;
  }
}

void Normalizer::add(JsonObject* object) {
  const std::string type = object->take_string("type");
  if (type == "Sequence") {
    std::vector<JsonObject> parts = object->take_objects("normalizers");
    object->finish();
    for (JsonObject& part : parts) add(&part);
    return;
  }
  Step step{};
  if (type == "BertNormalizer") {
    step.kind = Kind::kBert;
    step.cleans = object->take_bool("clean_text");
    step.spaces_cjk = object->take_bool("handle_chinese_chars");
    const std::string_view strips = object->take("strip_accents");
    step.lowers = object->take_bool("lowercase");
    step.strips_accents = strips == "null" ? step.lowers : JsonCursor(strips).read_bool();
  } else if (type == "NFC") {
    step.kind = Kind::kNfc;
  } else if (type == "NFD") {
    step.kind = Kind::kNfd;
  } else if (type == "NFKC") {
    step.kind = Kind::kNfkc;
  } else if (type == "NFKD") {
    step.kind = Kind::kNfkd;
  } else if (type == "Lowercase") {
    step.kind = Kind::kLowercase;
  } else if (type == "StripAccents") {
    step.kind = Kind::kStripAccents;
  } else if (type == "Nmt") {
    step.kind = Kind::kNmt;
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    step.strips_left = object->take_bool("strip_left");
    step.strips_right = object->take_bool("strip_right");
  } else if (type == "Prepend") {
    step.kind = Kind::kPrepend;
    step.content = decode_all(object->take_string("prepend"));
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    JsonObject pattern(object->take("pattern"), object->what() + "'s pattern");
    step.content = decode_all(object->take_string("content"));
    if (pattern.has("String")) {
      step.pattern = decode_all(pattern.take_string("String"));
      if (step.pattern.empty()) pattern.refuse("is empty");
    } else {
      const std::string expression = pattern.take_string("Regex");
      step.takes_spaces = expression == R"(\s{2,}|[\n\r\t])";  // DeBERTa-v2's of release 5 of transformers
      if (expression != " {2,}" && !step.takes_spaces) pattern.refuse("is the expression " + expression.substr(0, 100));
    }
    pattern.finish();
  } else if (type == "Precompiled") {
    step.kind = Kind::kPrecompiled;
    step.map = CharsMap(object->take_string("precompiled_charsmap"), *object);
  } else {
    object->refuse("is of the type " + type.substr(0, 100));
  }
  object->finish();
  steps_.push_back(std::move(step));
}

// Sets scratch->characters to what a character becomes. Returns whether it becomes that beside any others for which
// this returns true, has_open_ends() apart; most characters do, which spares texts the steps.
bool Normalizer::find_alone(uint32_t code, Scratch* scratch) const {
  std::vector<Character>& characters = scratch->characters;
  characters.assign(1, Character{code, 0});
  uint32_t blank = 0;  // a white space that a step would treat together with its neighbours
  for (const Step& step : steps_) {
    if (characters.empty()) break;
    uint32_t parts[kMaxDecomposition];
    decompose(characters[0].code, step.kind == Kind::kNfkc || step.kind == Kind::kNfkd, parts);
    switch (step.kind) {
      case Kind::kNfc:  // begins with what neither moves to the left nor composes with what stands there
      case Kind::kNfkc:
        if (composes_with_left(parts[0])) return false;
        [[fallthrough]];
      case Kind::kNfd:
      case Kind::kNfkd:
        if (combining_class(parts[0]) != 0) return false;
        break;
      case Kind::kPrecompiled:
        for (const Character& character : characters) {
          char bytes[4];
          const auto size = static_cast<size_t>(encode(character.code, bytes));
          std::string_view replacement;
          // What is removed leaves its place to its neighbours.
          const bool is_removed = step.map.find({bytes, size}, &replacement) && replacement.empty();
          if (is_removed || !Graphemes::is_alone(character.code)) return false;
        }
        break;
      case Kind::kReplace:
      case Kind::kStrip:
        for (const Character& character : characters) {
          const bool is_pattern =
              std::find(step.pattern.begin(), step.pattern.end(), character.code) != step.pattern.end();
          const bool is_space = (class_of(character.code) & kSpace) != 0;
          if (is_pattern || (step.takes_spaces && is_space && character.code != ' ')) return false;
          const bool is_blank = step.kind == Kind::kStrip ? is_space : step.pattern.empty() && character.code == ' ';
          if (is_blank) blank = character.code;
        }
        continue;
      case Kind::kPrepend:
        return false;
      default:
        break;
    }
    apply(step, scratch);
    for (const Character& character : characters) {
      if (step.kind == Kind::kBert && step.strips_accents && combining_class(character.code) != 0) return false;
    }
  }
  return blank == 0 || (characters.size() == 1 && characters[0].code == blank);
}

// Whether blanks have to be joined or taken off, which find_alone() leaves open.
bool Normalizer::has_open_ends(std::string_view made) const {
  if (made.empty()) return false;
  const auto is_space = [](uint32_t code) { return (class_of(code) & kSpace) != 0; };
  size_t at = 0;
  return (strips_left_ && is_space(decode(made.data(), &at))) ||
         (strips_right_ && is_space(decode_before(made.data(), made.size()))) ||
         (joins_blanks_ && made.find("  ") != std::string_view::npos);
}

// Writes what the leading characters become that are of ASCII and stay so, and returns their number.
size_t Normalizer::apply_ascii(std::string_view text, char* out) const {
  size_t at = 0;
  for (; at < text.size(); ++at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte >= 0x80 || ascii_[byte] == kNotAscii) break;
    out[at] = static_cast<char>(ascii_[byte]);
  }
  return at;
}

// Appends what the characters from `at` on become, each by itself. Returns false if one does not stand for itself.
bool Normalizer::apply_alone(std::string_view text, size_t at, uint32_t origin, Scratch* scratch,
                             Normalized* out) const {
  constexpr size_t kMaxBytes = sizeof CachedCharacter::bytes;
  out->leave_identity();
  while (at < text.size()) {
    const uint32_t from = origin + static_cast<uint32_t>(at);
    out->bytes.reserve_more(kMaxBytes);
    const auto byte = static_cast<unsigned char>(text[at]);
    size_t size = 1;
    if (byte < 0x80 && ascii_[byte] != kNotAscii) {
      ++at;
      *out->bytes.end() = static_cast<char>(ascii_[byte]);
    } else {
      const uint32_t code = decode(text.data(), &at);
      CachedCharacter& cached = scratch->cached_characters[code % Scratch::kNumCharacters];
      if (cached.key != code + 1) {
        cached.key = code + 1;
        cached.is_alone = find_alone(code, scratch) && scratch->characters.size() <= kMaxBytes / 4;
        cached.size = 0;
        for (size_t i = 0; cached.is_alone != 0 && i < scratch->characters.size(); ++i) {
          cached.size += static_cast<uint8_t>(encode(scratch->characters[i].code, cached.bytes + cached.size));
        }
      }
      if (cached.is_alone == 0) return false;
      size = cached.size;
      std::memcpy(out->bytes.end(), cached.bytes, kMaxBytes);
    }
    if (out->has_origins) {
      out->origins.reserve_more(kMaxBytes);
      for (size_t i = 0; i < size; ++i) out->origins.end()[i] = from;
      out->origins.set_size(out->origins.size() + size);
    }
    out->bytes.set_size(out->bytes.size() + size);
  }
  return true;
}

void Normalizer::apply_steps(std::string_view text, uint32_t origin, Scratch* scratch, Normalized* out) const {
  scratch->characters.clear();
  for (size_t at = 0; at < text.size();) {
    const uint32_t from = origin + static_cast<uint32_t>(at);
    scratch->characters.push_back({decode(text.data(), &at), from});
  }
  for (const Step& step : steps_) {
    if (!scratch->characters.empty()) apply(step, scratch);
  }
  for (const Character& character : scratch->characters) {
    char bytes[4];
    const int size = encode(character.code, bytes);
    out->bytes.append(bytes, static_cast<size_t>(size));
    for (int i = 0; out->has_origins && i < size; ++i) out->origins.push(character.origin);
  }
}

void Normalizer::apply(const Step& step, Scratch* scratch) {
  switch (step.kind) {
    case Kind::kBert:
      if (step.cleans) {
        filter([](uint32_t code) { return (class_of(code) & kControl) == 0; }, scratch);
        map_characters([](uint32_t code) { return (class_of(code) & kCleanSpace) != 0 ? uint32_t{' '} : code; },
                       scratch);
      }
      if (step.spaces_cjk) {
        scratch->changes.clear();
        for (const Character& character : scratch->characters) {
          const bool is_apart = (class_of(character.code) & kCjk) != 0;
          if (is_apart) scratch->changes.push_back({' ', 0});
          scratch->changes.push_back({character.code, is_apart ? 1 : 0});
          if (is_apart) scratch->changes.push_back({' ', 1});
        }
        transform(0, scratch);
      }
      if (step.strips_accents) {
        list_decomposed(false, scratch);
        transform(0, scratch);
        filter([](uint32_t code) { return (class_of(code) & kNonspacing) == 0; }, scratch);
      }
      if (!step.lowers) break;
      [[fallthrough]];
    case Kind::kLowercase: {
      scratch->changes.clear();
      uint32_t codes[kMaxLower];
      for (const Character& character : scratch->characters) {
        const int count = to_lower(character.code, codes);
        for (int i = 0; i < count; ++i) scratch->changes.push_back({codes[i], i > 0 ? 1 : 0});
      }
      transform(0, scratch);
      break;
    }
    case Kind::kNfc:
    case Kind::kNfkc:
      list_decomposed(step.kind == Kind::kNfkc, scratch);
      list_composed(scratch);
      transform(0, scratch);
      break;
    case Kind::kNfd:
    case Kind::kNfkd:
      list_decomposed(step.kind == Kind::kNfkd, scratch);
      transform(0, scratch);
      break;
    case Kind::kStripAccents:
      filter([](uint32_t code) { return (class_of(code) & kMark) == 0; }, scratch);
      break;
    case Kind::kNmt:
      filter([](uint32_t code) { return !is_nmt_removed(code); }, scratch);
      map_characters([](uint32_t code) { return is_nmt_space(code) ? uint32_t{' '} : code; }, scratch);
      break;
    case Kind::kReplace:
      replace_all(step.pattern, step.content, step.takes_spaces, scratch);
      break;
    case Kind::kStrip:
      strip(step.strips_left, step.strips_right, scratch);
      break;
    case Kind::kPrepend:
      prepend(step.content, scratch);
      break;
    case Kind::kPrecompiled:
      list_precompiled(step.map, scratch);
      transform(0, scratch);
      break;
  }
}

void Normalizer::apply(std::string_view text, uint32_t origin, Scratch* scratch, Normalized* out) const {
  const size_t start = out->bytes.size();
  // Room for what may become of a text of this size, also if all characters of this one stay as they are: what a later
  // one as large allocates. Few characters become more, as compatibility ligatures.
  const size_t room = steps_.empty() ? text.size() : 2 * text.size() + 64;
  out->bytes.reserve_more(room);
  if (out->is_tracking) out->origins.reserve_more(start + room);
  if (!steps_.empty()) scratch->reserve_characters(room);
  size_t done = text.size();
  if (steps_.empty()) {
    if (!text.empty()) std::memcpy(out->bytes.end(), text.data(), text.size());
  } else {
    done = apply_ascii(text, out->bytes.end());
  }
  // So far every byte stands for one of the original; that they stand at the same place must still be seen to.
  if (!out->has_origins && start != origin) out->leave_identity();
  out->bytes.set_size(start + done);
  if (out->has_origins) {
    out->origins.reserve_more(done);
    for (size_t i = 0; i < done; ++i) {
      const bool is_inside = (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80;
      out->origins.end()[i] = is_inside ? out->origins.end()[i - 1] : origin + static_cast<uint32_t>(i);
    }
    out->origins.set_size(start + done);
  }
  const bool is_made = done == text.size() || apply_alone(text, done, origin, scratch, out);
  if (is_made && !has_open_ends({out->bytes.data() + start, out->bytes.size() - start})) return;
  // The steps one after another, from the beginning.
  out->leave_identity();
  out->bytes.set_size(start);
  if (out->has_origins) out->origins.set_size(start);
  apply_steps(text, origin, scratch, out);
}

}  // namespace edgebert::text
