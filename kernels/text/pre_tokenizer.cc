#include "text/pre_tokenizer.h"

#include <algorithm>
#include <array>

#include "text/unicode.h"

namespace edgebert::text {
namespace {

// Classes of ASCII, read without a detour.
const std::array<uint32_t, 128>& ascii_classes() {
  static const std::array<uint32_t, 128> classes = [] {
    std::array<uint32_t, 128> made{};
    for (uint32_t code = 0; code < 128; ++code) made[code] = class_of(code);
    return made;
  }();
  return classes;
}

inline uint32_t next_class(const std::array<uint32_t, 128>& ascii, const char* bytes, size_t* at) {
  const auto byte = static_cast<unsigned char>(bytes[*at]);
  if (byte < 0x80) {
    ++*at;
    return ascii[byte];
  }
  return class_of(decode(bytes, at));
}

void emit(Buffer<Split>* splits, size_t begin, size_t end) {
  if (begin < end) splits->push({static_cast<uint32_t>(begin), static_cast<uint32_t>(end), -1});
}

// White space goes, each punctuation mark stands alone.
void split_bert(const char* bytes, Split split, Buffer<Split>* out) {
  const auto& ascii = ascii_classes();
  size_t word = split.begin;
  for (size_t at = split.begin; at < split.end;) {
    const size_t begin = at;
    const uint32_t bits = next_class(ascii, bytes, &at);
    if ((bits & (kSpace | kPunctuation)) == 0) continue;
    emit(out, word, begin);
    word = at;
    if ((bits & kSpace) == 0) emit(out, begin, at);
  }
  emit(out, word, split.end);
}

// GPT-2's expression: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
void split_byte_level(const char* bytes, Split split, Buffer<Split>* out) {
  constexpr uint32_t kKinds = kLetter | kNumber | kRegexSpace;
  const auto& ascii = ascii_classes();
  const size_t end = split.end;
  size_t at = split.begin;
  while (at < end) {
    const size_t begin = at;
    if (bytes[at] == '\'' && end - at >= 2) {
      const char first = bytes[at + 1], second = end - at >= 3 ? bytes[at + 2] : '\0';
      const bool is_one = first == 's' || first == 't' || first == 'm' || first == 'd';
      const bool is_two =
          (first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l');
      if (is_one || is_two) {
        at += is_one ? 2 : 3;
        emit(out, begin, at);
        continue;
      }
    }
    uint32_t kind = next_class(ascii, bytes, &at) & kKinds;
    if (bytes[begin] == ' ' && at < end) {
      size_t behind = at;
      const uint32_t next = next_class(ascii, bytes, &behind) & kKinds;
      if ((next & kRegexSpace) == 0) {
        kind = next;
        at = behind;
      }
    }
    size_t last = begin;  // where the last character of the run begins
    size_t count = 1;
    while (at < end) {
      size_t behind = at;
      if ((next_class(ascii, bytes, &behind) & kKinds) != kind) break;
      last = at;
      at = behind;
      ++count;
    }
    if ((kind & kRegexSpace) != 0 && at < end && count > 1) at = last;  // the last blank goes with what follows
    emit(out, begin, at);
  }
}

// Matches of single characters, as the library lists them: what lies between, and each match.
template <class Is>
void list_characters(const char* bytes, Split split, const Is& is, Buffer<Match>* matches) {
  const auto& ascii = ascii_classes();
  size_t last = split.begin;
  for (size_t at = split.begin; at < split.end;) {
    const size_t begin = at;
    if (!is(next_class(ascii, bytes, &at))) continue;
    if (last < begin) matches->push({static_cast<uint32_t>(last), static_cast<uint32_t>(begin), false});
    matches->push({static_cast<uint32_t>(begin), static_cast<uint32_t>(at), true});
    last = at;
  }
  if (last < split.end) matches->push({static_cast<uint32_t>(last), split.end, false});
}

void list_strings(const char* bytes, Split split, std::string_view pattern, bool is_inverted, Buffer<Match>* matches) {
  const std::string_view text(bytes, split.end);
  size_t last = split.begin;
  for (size_t at; (at = text.find(pattern, last)) != std::string_view::npos; last = at + pattern.size()) {
    if (last < at) matches->push({static_cast<uint32_t>(last), static_cast<uint32_t>(at), is_inverted});
    matches->push({static_cast<uint32_t>(at), static_cast<uint32_t>(at + pattern.size()), !is_inverted});
  }
  if (last < split.end) matches->push({static_cast<uint32_t>(last), split.end, is_inverted});
}

// \w+|[^\w\s]+, and what lies between as matches.
void list_words(const char* bytes, Split split, Buffer<Match>* matches) {
  const auto& ascii = ascii_classes();
  const auto kind_of = [](uint32_t bits) { return (bits & kWord) != 0 ? 1 : (bits & kSpace) != 0 ? 2 : 0; };
  for (size_t at = split.begin; at < split.end;) {
    const size_t begin = at;
    const int kind = kind_of(next_class(ascii, bytes, &at));
    while (at < split.end) {
      size_t behind = at;
      if (kind_of(next_class(ascii, bytes, &behind)) != kind) break;
      at = behind;
    }
    matches->push({static_cast<uint32_t>(begin), static_cast<uint32_t>(at), kind == 2});
  }
}

}  // namespace

PreTokenizer::PreTokenizer(std::string_view json) {
  if (json == "null") return;
  JsonObject object(json, "pre-tokenizer");
  add(&object);
}

PreTokenizer::Behavior PreTokenizer::read_behavior(JsonObject* object) {
  if (!object->has("behavior")) return Behavior::kIsolated;
  const std::string name = object->take_string("behavior");
  static constexpr std::pair<const char*, Behavior> kNames[] = {{"Removed", Behavior::kRemoved},
                                                                {"Isolated", Behavior::kIsolated},
                                                                {"MergedWithPrevious", Behavior::kMergedWithPrevious},
                                                                {"MergedWithNext", Behavior::kMergedWithNext},
                                                                {"Contiguous", Behavior::kContiguous}};
  for (const auto& [known, behavior] : kNames) {
    if (name == known) return behavior;
  }
  object->fail("has the behavior " + name.substr(0, 100));
}

void PreTokenizer::add(JsonObject* object) {
  const std::string type = object->take_string("type");
  if (type == "Sequence") {
    std::vector<JsonObject> parts = object->take_objects("pretokenizers");
    object->finish();
    for (JsonObject& part : parts) add(&part);
    return;
  }
  if (is_byte_level_) object->refuse("comes after ByteLevel");
  Step step{};
  if (type == "BertPreTokenizer") {
    step.kind = Kind::kBert;
  } else if (type == "Whitespace") {
    step.kind = Kind::kWhitespace;
    step.behavior = Behavior::kRemoved;
  } else if (type == "WhitespaceSplit") {
    step.kind = Kind::kWhitespaceSplit;
    step.behavior = Behavior::kRemoved;
  } else if (type == "Punctuation") {
    step.kind = Kind::kPunctuation;
    step.behavior = read_behavior(object);
  } else if (type == "Digits") {
    step.kind = Kind::kDigits;
    step.behavior = object->take_bool("individual_digits") ? Behavior::kIsolated : Behavior::kContiguous;
  } else if (type == "CharDelimiterSplit") {
    step.kind = Kind::kSplit;
    step.behavior = Behavior::kRemoved;
    step.pattern = object->take_string("delimiter");
    if (step.pattern.empty()) object->fail("has no delimiter");
  } else if (type == "Split") {
    step.kind = Kind::kSplit;
    step.behavior = read_behavior(object);
    step.is_inverted = object->take_bool("invert");
    JsonObject pattern(object->take("pattern"), object->what() + "'s pattern");
    if (pattern.has("Regex")) pattern.refuse("is the expression " + pattern.take_string("Regex").substr(0, 100));
    step.pattern = pattern.take_string("String");
    if (step.pattern.empty()) pattern.refuse("is empty");
    pattern.finish();
  } else if (type == "Metaspace") {
    step.kind = Kind::kMetaspace;
    step.behavior = Behavior::kMergedWithNext;
    step.pattern = object->take_string("replacement");
    if (step.pattern.empty() || length_of(step.pattern[0]) != step.pattern.size()) {
      object->fail("has a replacement that is not one character");
    }
    object->take("str_rep");
    const std::string scheme = object->has("prepend_scheme") ? object->take_string("prepend_scheme") : "always";
    step.scheme = scheme == "always" ? Scheme::kAlways : scheme == "first" ? Scheme::kFirst : Scheme::kNever;
    if (step.scheme == Scheme::kNever && scheme != "never") object->fail("has the scheme " + scheme.substr(0, 100));
    if (object->take("add_prefix_space") == "false" && step.scheme != Scheme::kNever) {
      object->fail("has an add_prefix_space that contradicts its scheme");
    }
    const std::string_view splits = object->take("split");
    step.splits = splits == "null" || JsonCursor(splits).read_bool();
    if (step.scheme == Scheme::kFirst) needs_origins_ = true;
  } else if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
    step.adds_prefix = object->take_bool("add_prefix_space");
    step.splits = object->take_bool("use_regex", true);
    object->take_bool("trim_offsets", true);  // the post-processor's counts
    is_byte_level_ = true;
  } else {
    object->refuse("is of the type " + type.substr(0, 100));
  }
  object->finish();
  steps_.push_back(std::move(step));
}

void PreTokenizer::apply(Scratch* scratch) const {
  for (const Step& step : steps_) apply(step, scratch);
}

// Metaspace's stand-ins for blanks, and either's blank in front of each split.
void PreTokenizer::put_prefixes(const Step& step, Scratch* scratch) {
  const bool is_metaspace = step.kind == Kind::kMetaspace;
  const std::string_view blank = is_metaspace ? std::string_view(step.pattern) : " ";
  const Normalized& from = scratch->text;
  if (!is_metaspace && !step.adds_prefix) return;
  Normalized& to = scratch->other;
  to.start(from.is_tracking);
  to.has_origins = from.is_tracking;
  const auto put = [&](std::string_view bytes, uint32_t origin) {
    to.bytes.append(bytes.data(), bytes.size());
    for (size_t i = 0; to.has_origins && i < bytes.size(); ++i) to.origins.push(origin);
  };
  // Where a byte's character begins in the original, for one that begins there in the text.
  for (size_t i = 0; i < scratch->splits.size(); ++i) {
    Split& split = scratch->splits[i];
    const std::string_view bytes(from.bytes.data() + split.begin, split.end - split.begin);
    const auto begin = static_cast<uint32_t>(to.bytes.size());
    size_t at = split.begin;
    if (split.token < 0) {
      const bool has_blank = bytes[0] == ' ' || bytes.substr(0, blank.size()) == blank;
      const bool is_wanted = !is_metaspace || step.scheme == Scheme::kAlways ||
                             (step.scheme == Scheme::kFirst && from.origin(split.begin) == 0);
      if (is_wanted && !has_blank) put(blank, from.origin(at));
    }
    while (at < split.end) {
      const char* found = !is_metaspace || split.token >= 0
                              ? nullptr
                              : static_cast<const char*>(std::memchr(from.bytes.data() + at, ' ', split.end - at));
      const size_t stop = found == nullptr ? split.end : static_cast<size_t>(found - from.bytes.data());
      to.bytes.append(from.bytes.data() + at, stop - at);
      if (to.has_origins) {
        if (from.has_origins) {
          to.origins.append(from.origins.data() + at, stop - at);
        } else {
          for (size_t k = at; k < stop; ++k) {
            const bool is_inside = (static_cast<unsigned char>(from.bytes[k]) & 0xC0) == 0x80;
            to.origins.push(is_inside ? to.origins[to.origins.size() - 1] : static_cast<uint32_t>(k));
          }
        }
      }
      at = stop;
      if (found != nullptr) put(blank, from.origin(at++));
    }
    to.check_size();
    split = {begin, static_cast<uint32_t>(to.bytes.size()), split.token};
  }
  std::swap(scratch->text, scratch->other);
}

void PreTokenizer::apply(const Step& step, Scratch* scratch) {
  if (step.kind == Kind::kMetaspace || step.kind == Kind::kByteLevel) {
    put_prefixes(step, scratch);
    if (!step.splits) return;
  }
  const char* bytes = scratch->text.bytes.data();
  Buffer<Split>& out = scratch->other_splits;
  Buffer<Match>& matches = scratch->matches;
  out.clear();
  for (size_t i = 0; i < scratch->splits.size(); ++i) {
    const Split split = scratch->splits[i];
    if (split.token >= 0) {
      out.push(split);
      continue;
    }
    matches.clear();
    switch (step.kind) {
      case Kind::kBert:
        split_bert(bytes, split, &out);
        continue;
      case Kind::kByteLevel:
        split_byte_level(bytes, split, &out);
        continue;
      case Kind::kWhitespace:
        list_words(bytes, split, &matches);
        break;
      case Kind::kWhitespaceSplit:
        list_characters(bytes, split, [](uint32_t bits) { return (bits & kSpace) != 0; }, &matches);
        break;
      case Kind::kPunctuation:
        list_characters(bytes, split, [](uint32_t bits) { return (bits & kPunctuation) != 0; }, &matches);
        break;
      case Kind::kDigits:
        list_characters(bytes, split, [](uint32_t bits) { return (bits & kNumeric) != 0; }, &matches);
        break;
      case Kind::kSplit:
      case Kind::kMetaspace:
        list_strings(bytes, split, step.pattern, step.is_inverted, &matches);
        break;
    }
    const size_t count = matches.size(), first = out.size();
    switch (step.behavior) {
      case Behavior::kRemoved:
        for (size_t k = 0; k < count; ++k) {
          if (!matches[k].is_match) emit(&out, matches[k].begin, matches[k].end);
        }
        break;
      case Behavior::kIsolated:
        for (size_t k = 0; k < count; ++k) emit(&out, matches[k].begin, matches[k].end);
        break;
      case Behavior::kContiguous:
      case Behavior::kMergedWithPrevious: {
        bool was_match = false;
        for (size_t k = 0; k < count; ++k) {
          const bool is_match = matches[k].is_match;
          const bool joins = step.behavior == Behavior::kContiguous ? is_match == was_match : is_match && !was_match;
          if (joins && out.size() > first) {
            out[out.size() - 1].end = matches[k].end;
          } else {
            emit(&out, matches[k].begin, matches[k].end);
          }
          was_match = is_match;
        }
        break;
      }
      case Behavior::kMergedWithNext: {
        bool was_match = false;
        for (size_t k = count; k-- > 0;) {
          const bool is_match = matches[k].is_match;
          if (is_match && !was_match && out.size() > first) {
            out[out.size() - 1].begin = matches[k].begin;
          } else {
            emit(&out, matches[k].begin, matches[k].end);
          }
          was_match = is_match;
        }
        std::reverse(out.data() + first, out.end());
        break;
      }
    }
  }
  std::swap(scratch->splits, scratch->other_splits);
}

}  // namespace edgebert::text
