#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <utility>

#include "base/status.h"
#include "text/unicode.h"

namespace edgebert::text {
namespace {

constexpr uint32_t kMaxId = 0x7FFFFFFE;

Layout layout_of(std::vector<int32_t> types) {
  Layout layout;
  layout.special_ids.resize(types.size() + 1);
  layout.special_types.resize(types.size() + 1);
  layout.text_types = std::move(types);
  return layout;
}

// ["[CLS]", 101]
int32_t read_special(JsonObject* object, std::string_view name) {
  JsonCursor cursor(object->take(name));
  int32_t id = 0;
  int count = 0;
  cursor.read_array([&] {
    if (count == 0) {
      cursor.skip();
    } else {
      id = static_cast<int32_t>(cursor.read_index(kMaxId));
    }
    ++count;
  });
  if (count != 2) object->fail("has a " + std::string(name) + " that is not a token and its id");
  return id;
}

}  // namespace

Tokenizer::Tokenizer(std::string_view json) {
  size_t at;
  if (!is_utf8(json, &at)) {
    throw Error(EB_MODEL_FORMAT, "the tokenizer is not UTF-8 at byte " + std::to_string(at) + ": re-export the model");
  }
  JsonObject object(json, "JSON");
  if (object.take("version") != "\"1.0\"") object.fail("is not of version 1.0");
  normalizer_ = std::make_unique<Normalizer>(object.take("normalizer"));
  pre_tokenizer_ = std::make_unique<PreTokenizer>(object.take("pre_tokenizer"));
  model_ = make_model(object.take("model"), pre_tokenizer_->is_byte_level());
  read_added(object.take("added_tokens"));
  read_post_processor(object.take("post_processor"));
  decoder_ = std::make_unique<Decoder>(object.take("decoder"));
  read_truncation(object.take("truncation"));
  object.take("padding");
  object.finish();
}

Tokenizer::~Tokenizer() {
  for (const std::atomic<Scratch*>& scratch : scratches_) delete scratch.load();
}

// Only the side counts: limits and windows are the caller's.
void Tokenizer::read_truncation(std::string_view json) {
  if (json == "null") return;
  JsonObject object(json, "truncation");
  const std::string side = object.has("direction") ? object.take_string("direction") : "Right";
  if (side != "Left" && side != "Right") object.fail("has the direction " + side.substr(0, 100));
  cuts_left_ = side == "Left";
}

// Ids are given as the library gives them: what the vocabulary has keeps its own, the others follow behind it.
void Tokenizer::read_added(std::string_view json) {
  if (json == "null") return;
  std::vector<AddedToken> tokens;
  std::map<std::string, size_t, std::less<>> by_content;
  int64_t next_id = model_->vocab_size();
  JsonCursor cursor(json);
  cursor.read_array([&] {
    JsonObject object(cursor.skip(), "added token " + std::to_string(tokens.size()));
    AddedToken token{};
    object.take_index("id", 0);
    token.content = object.take_string("content");
    token.is_single_word = object.take_bool("single_word");
    token.strips_left = object.take_bool("lstrip");
    token.strips_right = object.take_bool("rstrip");
    token.is_normalized = object.take_bool("normalized");
    token.is_special = object.take_bool("special");
    object.finish();
    if (token.content.empty()) return;
    if (token.is_special) specials_.insert(token.content);
    const auto known = by_content.find(token.content);
    if (known != by_content.end()) {
      token.id = tokens[known->second].id;
      tokens[known->second] = std::move(token);
      return;
    }
    const int32_t id = model_->find(token.content);
    if (id < 0 && next_id > kMaxId) object.fail("has no id left");
    token.id = id >= 0 ? id : static_cast<int32_t>(next_id++);
    by_content.emplace(token.content, tokens.size());
    tokens.push_back(std::move(token));
  });
  std::map<int32_t, size_t> by_id;  // of two with one id, the last
  for (size_t i = 0; i < tokens.size(); ++i) by_id[tokens[i].id] = i;
  std::vector<std::pair<AddedToken, std::string>> raw, normalized;
  const auto scratch = std::make_unique<Scratch>();
  for (const auto& [id, i] : by_id) {
    std::string name = tokens[i].content;
    if (tokens[i].is_normalized) {
      scratch->text.start(false);
      normalizer_->apply(name, 0, scratch.get(), &scratch->text);
      name.assign(scratch->text.bytes.data(), scratch->text.bytes.size());
    }
    (tokens[i].is_normalized ? normalized : raw).emplace_back(tokens[i], name);
    if (tokens[i].is_special) {
      special_ids_.push_back(id);
      special_tokens_.push_back(tokens[i].content);
    }
    added_names_.emplace(id, std::move(name));
  }
  for (const std::string& token : special_tokens_) special_texts_.push_back(token.c_str());
  for (const AddedToken& token : tokens) added_ids_.emplace(token.content, token.id);
  raw_added_ = AddedTokens(raw);
  normalized_added_ = AddedTokens(normalized);
}

int32_t Tokenizer::find(std::string_view token) const {
  const auto added = added_ids_.find(token);
  return added != added_ids_.end() ? added->second : model_->find(token);
}

bool Tokenizer::name(int32_t id, std::string* token) const {
  const auto added = added_names_.find(id);
  if (added == added_names_.end()) return model_->name(id, token);
  *token = added->second;
  return true;
}

std::string Tokenizer::detokenize(const int32_t* ids, size_t count, bool skips_special) const {
  std::vector<std::string> tokens;
  std::string token;
  for (size_t i = 0; i < count; ++i) {
    if (!name(ids[i], &token) || (skips_special && specials_.count(token) > 0)) continue;
    tokens.push_back(token);
  }
  return join(std::move(tokens));
}

int32_t Tokenizer::vocab_size() const {
  int32_t size = model_->vocab_size();
  for (const auto& [token, id] : added_ids_) size += model_->find(token) < 0 ? 1 : 0;
  return size;
}

int32_t Tokenizer::max_id() const {
  const int32_t added = added_names_.empty() ? -1 : added_names_.rbegin()->first;
  return std::max(model_->max_id(), added);
}

int32_t Tokenizer::unknown_id() const {
  for (const int32_t id : {model_->unknown_id(), find("[UNK]"), find("<unk>")}) {
    if (id >= 0) return id;
  }
  return -1;
}

void Tokenizer::read_post_processor(std::string_view json) {
  layouts_ = {layout_of({0}), layout_of({0, 1})};
  if (json == "null") return;
  JsonObject object(json, "post-processor");
  add_post_processor(&object);
}

void Tokenizer::add_post_processor(JsonObject* object) {
  const std::string type = object->take_string("type");
  if (type == "Sequence") {
    std::vector<JsonObject> parts = object->take_objects("processors");
    object->finish();
    for (JsonObject& part : parts) add_post_processor(&part);
    return;
  }
  const auto refuse_second = [&] {
    for (const Layout& layout : layouts_) {
      if (layout.num_special() > 0) object->refuse("comes after another that adds tokens");
    }
  };
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    refuse_second();
    const int32_t cls = read_special(object, "cls"), sep = read_special(object, "sep");
    const bool is_roberta = type == "RobertaProcessing";
    if (is_roberta) {
      const bool trims = object->take_bool("trim_offsets"), adds_prefix = object->take_bool("add_prefix_space");
      if (trims) trims_.push_back({adds_prefix});
    }
    Layout& one = layouts_[0];
    Layout& two = layouts_[1];
    one.special_ids = {{cls}, {sep}};
    one.special_types = {{0}, {0}};
    two.special_ids = {{cls}, {sep}, {sep}};
    two.special_types = {{0}, {0}, {1}};
    if (is_roberta) {
      one.text_types = {0};
      two.special_ids[1] = {sep, sep};
      two.special_types = {{0}, {0, 0}, {0}};
      two.text_types = {0, 0};
    }
  } else if (type == "TemplateProcessing") {
    refuse_second();
    std::map<std::string, std::vector<int32_t>, std::less<>> specials;
    JsonCursor cursor(object->take("special_tokens"));
    cursor.read_object([&](std::string_view key) {
      const std::string name(key);
      JsonObject special(cursor.skip(), object->what() + "'s special token " + name.substr(0, 100));
      special.take("id");
      special.take("tokens");
      JsonCursor ids(special.take("ids"));
      ids.read_array([&] { specials[name].push_back(static_cast<int32_t>(ids.read_index(kMaxId))); });
      special.finish();
    });
    for (const size_t num_texts : {1, 2}) {
      Layout layout = layout_of({});
      for (JsonObject& piece : object->take_objects(num_texts == 1 ? "single" : "pair")) {
        if (piece.has("Sequence")) {
          JsonObject text(piece.take("Sequence"), piece.what());
          if (text.take_string("id") != (layout.text_types.empty() ? "A" : "B"))
            text.refuse("takes the texts in another order");
          layout.text_types.push_back(static_cast<int32_t>(text.take_index("type_id", 0)));
          layout.special_ids.emplace_back();
          layout.special_types.emplace_back();
          text.finish();
        } else {
          JsonObject special(piece.take("SpecialToken"), piece.what());
          const std::string id = special.take_string("id");
          const auto found = specials.find(id);
          if (found == specials.end()) special.fail("names an unknown token, " + id.substr(0, 100));
          const auto kind = static_cast<int32_t>(special.take_index("type_id", 0));
          special.finish();
          for (const int32_t token : found->second) {
            layout.special_ids.back().push_back(token);
            layout.special_types.back().push_back(kind);
          }
        }
        piece.finish();
      }
      if (layout.text_types.size() != num_texts) object->refuse("does not take each text once");
      layouts_[num_texts - 1] = std::move(layout);
    }
  } else if (type == "ByteLevel") {
    const bool adds_prefix = object->take_bool("add_prefix_space");
    if (object->take_bool("trim_offsets")) trims_.push_back({adds_prefix});
    object->take_bool("use_regex", true);
  } else {
    object->refuse("is of the type " + type.substr(0, 100));
  }
  object->finish();
  if (!trims_.empty() && !pre_tokenizer_->is_byte_level()) object->refuse("trims offsets of what is not byte level");
}

std::unique_ptr<Scratch> Tokenizer::borrow_scratch() const {
  for (std::atomic<Scratch*>& idle : scratches_) {
    if (idle.load(std::memory_order_relaxed) == nullptr) continue;
    if (Scratch* scratch = idle.exchange(nullptr)) return std::unique_ptr<Scratch>(scratch);
  }
  return std::make_unique<Scratch>();
}

void Tokenizer::return_scratch(std::unique_ptr<Scratch> scratch) const {
  if (scratch->is_large()) return;
  for (std::atomic<Scratch*>& idle : scratches_) {
    Scratch* none = nullptr;
    if (idle.compare_exchange_strong(none, scratch.get())) {
      scratch.release();
      return;
    }
  }
}

// A text to scratch->text and its splits: words to be, and added tokens.
void Tokenizer::split(std::string_view text, bool has_spans, Scratch* scratch) const {
  scratch->text.start(has_spans || pre_tokenizer_->needs_origins());
  Buffer<Split>& parts = scratch->other_splits;
  parts.clear();
  raw_added_.split(text.data(), 0, static_cast<uint32_t>(text.size()), &parts);
  Buffer<Split>& splits = scratch->splits;
  splits.clear();
  Normalized& normalized = scratch->text;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Split part = parts[i];
    const auto begin = static_cast<uint32_t>(normalized.bytes.size());
    const Normalizer& normalizer = part.token < 0 ? *normalizer_ : no_normalizer_;
    normalizer.apply(text.substr(part.begin, part.end - part.begin), part.begin, scratch, &normalized);
    normalized.check_size();
    const auto end = static_cast<uint32_t>(normalized.bytes.size());
    if (part.token >= 0) {
      splits.push({begin, end, part.token});
    } else if (begin < end) {
      normalized_added_.split(normalized.bytes.data(), begin, end, &splits);
    }
  }
  pre_tokenizer_->apply(scratch);
}

template <bool kHasSpans>
void Tokenizer::look_up(Scratch* scratch, Tokens* tokens) const {
  const Normalized& text = scratch->text;
  const char* bytes = text.bytes.data();
  // The original's part that bytes [begin, end) come from.
  const auto put_span = [&](size_t begin, size_t end, int32_t word) {
    Span span;
    if (text.has_origins) {
      span = {text.origins[begin], text.origins[end - 1]};
      span.end = scratch->positions[span.end];
    } else {  // a byte-level piece may begin or end inside a character, which then counts as a whole
      const auto is_inside = [&](size_t at) { return (static_cast<unsigned char>(bytes[at]) & 0xC0) == 0x80; };
      while (is_inside(begin)) --begin;
      while (end < text.bytes.size() && is_inside(end)) ++end;
      span = {static_cast<uint32_t>(begin), static_cast<uint32_t>(end)};
    }
    tokens->spans.push(span);
    tokens->words.push(word);
  };
  const size_t count = scratch->splits.size();
  for (size_t i = 0; i < count; ++i) {
    const Split split = scratch->splits[i];
    const auto word = static_cast<int32_t>(i);
    tokens->ids.reserve_more(CachedWord::kMaxPieces);
    if (split.token >= 0) {
      tokens->ids.push(split.token);
      if (kHasSpans) put_span(split.begin, split.end, word);
      continue;
    }
    const size_t size = split.end - split.begin;
    CachedWord* cached = nullptr;
    uint64_t key[3];
    if (size <= CachedWord::kMaxSize) {
      // The slack behind every buffer makes reading beyond the word safe.
      std::memcpy(key, bytes + split.begin, sizeof key);
      for (size_t k = 0; k < 3; ++k) {
        const size_t here = size > 8 * k ? size - 8 * k : 0;
        if (here < 8) key[k] &= (uint64_t{1} << (8 * here)) - 1;
      }
      uint64_t hash = (key[0] ^ size) * 0x9E3779B97F4A7C15u;
      hash = (hash ^ hash >> 32 ^ key[1]) * 0xC2B2AE3D27D4EB4Fu;
      if (size > 16) hash = (hash ^ hash >> 29 ^ key[2]) * 0x165667B19E3779F9u;
      cached = &scratch->cached_words[hash >> 40 & (Scratch::kNumWords - 1)];
      if (cached->size == size && cached->bytes[0] == key[0] && cached->bytes[1] == key[1] &&
          cached->bytes[2] == key[2]) {
        const size_t num_pieces = cached->num_pieces;
        std::memcpy(tokens->ids.end(), cached->ids, sizeof cached->ids);
        tokens->ids.set_size(tokens->ids.size() + num_pieces);
        if (kHasSpans) {
          size_t at = split.begin;
          for (size_t k = 0; k < num_pieces; ++k) {
            put_span(at, at + cached->sizes[k], word);
            at += cached->sizes[k];
          }
        }
        continue;
      }
    }
    model_->tokenize({bytes + split.begin, size}, scratch);
    const Buffer<Piece>& pieces = scratch->pieces;
    size_t at = split.begin;
    for (size_t k = 0; k < pieces.size(); ++k) {
      tokens->ids.push(pieces[k].id);
      if (kHasSpans) put_span(at, at + pieces[k].size, word);
      at += pieces[k].size;
    }
    if (cached != nullptr && pieces.size() <= CachedWord::kMaxPieces) {
      std::memcpy(cached->bytes, key, sizeof key);
      cached->size = static_cast<uint8_t>(size);
      cached->num_pieces = static_cast<uint8_t>(pieces.size());
      for (size_t k = 0; k < pieces.size(); ++k) {
        cached->ids[k] = pieces[k].id;
        cached->sizes[k] = static_cast<uint8_t>(pieces[k].size);
      }
    }
  }
}

// Takes the blanks at both ends of each token off its offsets, as ByteLevel's post-processor does, in characters.
void Tokenizer::trim(std::string_view text, const Scratch& scratch, size_t first, Tokens* tokens) const {
  const auto is_inside = [&](size_t at) { return (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80; };
  const auto& blanks = model_->blanks();
  for (size_t i = first; i < tokens->ids.size(); ++i) {
    const Split split = scratch.splits[static_cast<size_t>(tokens->words[i])];
    size_t leading = 0, trailing = 0;
    if (split.token >= 0) {  // its text as it stands there
      const char* bytes = scratch.text.bytes.data();
      const auto is_blank = [](uint32_t code) { return code == 0x120 || (class_of(code) & kSpace) != 0; };
      bool is_leading = true;
      for (size_t at = split.begin; at < split.end;) {
        const bool blank = is_blank(decode(bytes, &at));
        is_leading = is_leading && blank;
        leading += is_leading ? 1 : 0;
        trailing = blank ? trailing + 1 : 0;
      }
    } else {
      leading = blanks[static_cast<size_t>(tokens->ids[i])].leading;
      trailing = blanks[static_cast<size_t>(tokens->ids[i])].trailing;
    }
    if (leading == 0 && trailing == 0) continue;
    for (const Trim& trim : trims_) {
      Span& span = tokens->spans[i];
      size_t skipped = leading;
      if ((i == first || span.begin == 0) && trim.adds_prefix && leading == 1) skipped = 0;
      for (; skipped > 0 && span.begin < span.end; --skipped) {
        do {
          ++span.begin;
        } while (span.begin < span.end && is_inside(span.begin));
      }
      uint32_t end = span.end;
      size_t left = trailing;
      for (; left > 0 && end > 0; --left) {
        do {
          --end;
        } while (is_inside(end));
      }
      if (left == 0) span.end = std::max(end, span.begin);
    }
  }
}

void Tokenizer::tokenize(std::string_view text, bool has_spans, Scratch* scratch, Tokens* tokens) const {
  if (text.empty()) return;
  split(text, has_spans, scratch);
  if (!has_spans) return look_up<false>(scratch, tokens);
  if (scratch->text.has_origins) {  // where the character ends that begins at a byte
    scratch->positions.clear();
    scratch->positions.reserve_more(text.size());
    for (size_t at = 0; at < text.size();) {
      const uint32_t length = length_of(text[at]);
      scratch->positions[at] = static_cast<uint32_t>(at + length);
      at += length;
    }
  }
  const size_t first = tokens->ids.size();
  look_up<true>(scratch, tokens);
  if (!trims_.empty()) trim(text, *scratch, first, tokens);
}

}  // namespace edgebert::text
