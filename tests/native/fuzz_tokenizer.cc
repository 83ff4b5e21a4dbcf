// Fuzzes the tokenizer: random changes to its JSON must be refused or give tokens, and random texts tokens; never a
// crash.
//
//   fuzz_tokenizer TOKENIZER_JSON COUNT SEED
//
// Of what loads, ids and offsets are checked to be possible. Run it under AddressSanitizer; anything else aborts.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "edgebert.h"
#include "text/unicode.h"

namespace edgebert::text {
namespace {

std::mt19937_64 generator;

size_t pick(size_t count) { return count == 0 ? 0 : generator() % count; }

// Values that may be just inside or just outside what is understood.
constexpr std::string_view kValues[] = {"0",
                                        "-1",
                                        "1e308",
                                        "2147483647",
                                        "null",
                                        "true",
                                        "false",
                                        "\"\"",
                                        "\"a\"",
                                        "\"\\u0120\"",
                                        "[]",
                                        "{}",
                                        "[[\"a\",0.5],[\"b\",-1e9]]",
                                        "\"always\"",
                                        "\"first\""};

// Sound parts, so that many combinations load.
struct Member {
  std::string_view name, value;
};
constexpr Member kMembers[] = {
    {"normalizer", "null"},
    {"normalizer", R"({"type":"NFKC"})"},
    {"normalizer",
     R"({"type":"Sequence","normalizers":[{"type":"NFD"},{"type":"StripAccents"},{"type":"Lowercase"}]})"},
    {"normalizer", R"({"type":"Strip","strip_left":true,"strip_right":true})"},
    {"normalizer", R"({"type":"Prepend","prepend":" "})"},
    {"normalizer", R"({"type":"Replace","pattern":{"String":"a"},"content":""})"},
    {"normalizer", R"({"type":"Replace","pattern":{"Regex":" {2,}"},"content":"\u2581\u2581\u2581"})"},
    {"normalizer", R"({"type":"Precompiled","precompiled_charsmap":"CAAAAAAEAAAAAAAA"})"},
    {"normalizer",
     R"({"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":true,"lowercase":true})"},
    {"normalizer",
     R"({"type":"BertNormalizer","clean_text":false,"handle_chinese_chars":true,"strip_accents":true,"lowercase":false})"},
    {"pre_tokenizer", "null"},
    {"pre_tokenizer", R"({"type":"BertPreTokenizer"})"},
    {"pre_tokenizer", R"({"type":"Whitespace"})"},
    {"pre_tokenizer", R"({"type":"Metaspace","replacement":"a","prepend_scheme":"first"})"},
    {"pre_tokenizer", R"({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always","split":false})"},
    {"pre_tokenizer", R"({"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true})"},
    {"pre_tokenizer", R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},)"
                      R"({"type":"Punctuation","behavior":"MergedWithNext"},)"
                      R"({"type":"Split","pattern":{"String":"a"},"behavior":"Contiguous","invert":true}]})"},
    {"decoder", "null"},
    {"decoder", R"({"type":"WordPiece","prefix":"##","cleanup":true})"},
    {"decoder", R"({"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true})"},
    {"decoder", R"({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always","split":true})"},
    {"decoder", R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"a"},"content":"<0xE2>"},)"
                R"({"type":"ByteFallback"},{"type":"BPEDecoder","suffix":"b"},{"type":"Fuse"},)"
                R"({"type":"Strip","content":" ","start":1,"stop":2}]})"},
    {"truncation", R"({"direction":"Left","max_length":1,"strategy":"LongestFirst","stride":0})"},
    {"post_processor", "null"},
    {"post_processor", R"({"type":"BertProcessing","sep":["a",1],"cls":["b",0]})"},
    {"post_processor",
     R"({"type":"RobertaProcessing","sep":["a",1],"cls":["b",0],"trim_offsets":true,"add_prefix_space":true})"},
    {"single_word", "true"},
    {"lstrip", "true"},
    {"rstrip", "true"},
    {"normalized", "true"},
    {"content", R"("\u0301a")"},
    {"fuse_unk", "true"},
    {"ignore_merges", "true"},
    {"unk_token", R"("a")"}};

// The end of the value that begins at `at`.
size_t end_of_value(const std::string& json, size_t at) {
  bool is_string = false;
  for (int depth = 0; at < json.size(); ++at) {
    const char c = json[at];
    if (is_string) {
      if (c == '\\') ++at;
      if (c == '"') is_string = false;
    } else {
      is_string = c == '"';
      depth += c == '{' || c == '[' ? 1 : c == '}' || c == ']' ? -1 : 0;
      if (depth < 0 || (depth == 0 && c == ',')) break;
    }
  }
  return std::min(at, json.size());
}

void mutate(std::string* json) {
  for (size_t i = 0, count = 1 + pick(3); i < count && !json->empty(); ++i) {
    const size_t at = pick(pick(2) != 0 ? std::min<size_t>(json->size(), 4096) : json->size());
    switch (pick(12)) {
      case 0:
        (*json)[at] = static_cast<char>((*json)[at] ^ 1 << pick(8));
        break;
      case 1:
        json->erase(at, 1 + pick(16));
        break;
      case 2:
        json->resize(at);
        break;
      case 3: {  // any member
        const size_t colon = json->find(':', at);
        if (colon == std::string::npos) break;
        json->replace(colon + 1, end_of_value(*json, colon + 1) - colon - 1, kValues[pick(std::size(kValues))]);
        break;
      }
      default: {
        const Member& member = kMembers[pick(std::size(kMembers))];
        const std::string key = '"' + std::string(member.name) + "\":";
        size_t found = json->find(key, pick(2) != 0 ? at : 0);
        if (found == std::string::npos) found = json->find(key);
        if (found == std::string::npos) break;
        found += key.size();
        json->replace(found, end_of_value(*json, found) - found, member.value);
      }
    }
  }
}

// Characters of all sizes, some of them special to a tokenizer; sometimes bytes that are no text.
std::string make_text() {
  static constexpr std::string_view kParts[] = {"[MASK]",       "<mask>",   " ",    "  ", "'s",
                                                "\xE2\x96\x81", "\xCC\x81", "\r\n", "a"};
  std::string text;
  for (size_t count = pick(pick(8) == 0 ? 3000 : 30); count > 0; --count) {
    if (pick(4) == 0) {
      text += kParts[pick(std::size(kParts))];
      continue;
    }
    static constexpr uint32_t kLimits[] = {0x80, 0x80, 0x300, 0x800, 0x3000, 0x10000, 0x20000, 0x110000};
    const auto code = static_cast<uint32_t>(pick(kLimits[pick(std::size(kLimits))]));
    char bytes[4] = {};
    if (code < 0xD800 || code > 0xDFFF) text.append(bytes, static_cast<size_t>(encode(code, bytes)));
  }
  if (pick(20) == 0) text += static_cast<char>(0x80 + pick(0x80));
  return text;
}

[[noreturn]] void die(const char* call, eb_status status) {
  std::fprintf(stderr, "fuzz_tokenizer: %s gave status %d: %s\n", call, status, eb_last_error());
  std::abort();
}

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz_tokenizer: %s\n", what);
  std::abort();
}

// Ids that texts have and others, back to text.
void decode(const eb_tokenizer* tokenizer, const eb_tokens* tokens) {
  std::vector<int32_t> ids(tokens->input_ids, tokens->input_ids + std::min(tokens->total_tokens, 50));
  for (size_t count = pick(8); count > 0; --count) ids.push_back(static_cast<int32_t>(pick(2000)) - 2);
  std::string data;
  std::vector<int64_t> bounds = {0};
  const size_t capacity = pick(300);
  const std::unique_ptr<char[]> text(new char[capacity]);
  size_t size = 0;
  const auto require_text = [&](eb_status status, const char* call) {
    if (status != EB_OK) die(call, status);
    size_t at;
    require(size >= capacity || is_utf8({text.get(), size}, &at), "a text is not UTF-8");
    require(capacity == 0 || text[std::min(size, capacity - 1)] == '\0', "a text has no end");
  };
  for (const int32_t id : ids) {
    const eb_status status = eb_tokenizer_token(tokenizer, id, text.get(), capacity, &size);
    if (status == EB_INVALID_INPUT) continue;
    require_text(status, "eb_tokenizer_token");
    if (size < capacity) data.append(text.get(), size);
    bounds.push_back(static_cast<int64_t>(data.size()));
  }
  const auto num_ids = static_cast<int32_t>(ids.size());
  eb_status status =
      eb_detokenize(tokenizer, ids.data(), num_ids, static_cast<int32_t>(pick(2)), text.get(), capacity, &size);
  if (status == EB_UNSUPPORTED) return;
  require_text(status, "eb_detokenize");
  const eb_texts parts = {data.data(), bounds.data(), nullptr, static_cast<int32_t>(bounds.size() - 1)};
  status = eb_join_tokens(tokenizer, &parts, text.get(), capacity, &size);
  require_text(status, "eb_join_tokens");
}

void run(const eb_tokenizer* tokenizer) {
  const auto num_rows = static_cast<int32_t>(1 + pick(4));
  std::string data;
  std::vector<int64_t> text_bounds = {0};
  std::vector<int32_t> row_bounds = {0};
  for (int32_t i = 0; i < num_rows; ++i) {
    for (size_t texts = 1 + pick(2); texts > 0; --texts) {
      data += make_text();
      text_bounds.push_back(static_cast<int64_t>(data.size()));
    }
    row_bounds.push_back(static_cast<int32_t>(text_bounds.size() - 1));
  }
  // an exact copy on the heap, so that a read past the end is seen
  const std::unique_ptr<char[]> bytes(new char[data.size()]);
  std::copy(data.begin(), data.end(), bytes.get());
  const eb_texts texts = {bytes.get(), text_bounds.data(), row_bounds.data(), num_rows};
  eb_tokenize_options options = {};
  options.max_length = static_cast<int32_t>(pick(20));
  options.long_texts = static_cast<int32_t>(pick(3));
  options.stride = options.long_texts == EB_LONG_WINDOWS || pick(9) == 0 ? static_cast<int32_t>(pick(3)) : 0;
  options.lowers_stride = static_cast<int32_t>(pick(2));
  options.cuts_last_text = static_cast<int32_t>(pick(2));
  options.side = static_cast<int32_t>(pick(3));
  options.no_special_tokens = static_cast<int32_t>(pick(2));
  options.offset_unit = static_cast<int32_t>(pick(4));
  options.num_threads = static_cast<int32_t>(1 + pick(2));
  eb_tokens* tokens = nullptr;
  const eb_status status = eb_tokenize(tokenizer, &texts, &options, &tokens);
  if (status != EB_OK) {
    if (status != EB_INVALID_INPUT) die("eb_tokenize", status);
    return;
  }
  for (int32_t i = 0; i < tokens->num_sequences; ++i) {
    const int32_t begin = tokens->cu_seqlens[i], end = tokens->cu_seqlens[i + 1];
    require(begin <= end && (options.max_length == 0 || end - begin <= options.max_length), "a sequence is too long");
    for (int32_t k = begin; k < end; ++k) {
      require(tokens->input_ids[k] >= 0, "an id is negative");
      if (tokens->offsets == nullptr) continue;
      const int32_t* offset = tokens->offsets + 2 * static_cast<ptrdiff_t>(k);
      require(offset[0] >= 0 && offset[0] <= offset[1] && offset[1] <= static_cast<int32_t>(data.size()),
              "an offset is wrong");
    }
  }
  decode(tokenizer, tokens);
  eb_tokens_free(tokens);
}

int fuzz(const char* path, int count, unsigned seed) {
  std::ifstream stream(path, std::ios::binary);
  const std::string json((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  eb_tokenizer* tokenizer = nullptr;
  eb_status status = eb_tokenizer_load(json.data(), json.size(), &tokenizer);
  if (status != EB_OK) die("the unchanged tokenizer: eb_tokenizer_load", status);
  generator.seed(seed);
  for (int i = 0; i < count; ++i) run(tokenizer);
  eb_tokenizer_free(tokenizer);
  int num_loaded = 0;
  for (int i = 0; i < count; ++i) {
    std::string mutant = json;
    mutate(&mutant);
    const std::unique_ptr<char[]> bytes(new char[mutant.size()]);
    std::copy(mutant.begin(), mutant.end(), bytes.get());
    status = eb_tokenizer_load(bytes.get(), mutant.size(), &tokenizer);
    if (status == EB_OK) {
      ++num_loaded;
      for (int k = 0; k < 4; ++k) run(tokenizer);
      eb_tokenizer_free(tokenizer);
    } else if (status != EB_MODEL_FORMAT && status != EB_UNSUPPORTED) {
      die("eb_tokenizer_load", status);
    }
  }
  std::printf("fuzz_tokenizer: %d mutants of %s, %d loaded and ran, none crashed\n", count, path, num_loaded);
  return 0;
}

}  // namespace
}  // namespace edgebert::text

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: fuzz_tokenizer TOKENIZER_JSON COUNT SEED\n");
    return 2;
  }
  return edgebert::text::fuzz(argv[1], std::atoi(argv[2]), static_cast<unsigned>(std::atoi(argv[3])));
}
