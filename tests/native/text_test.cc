// The native tokenizer's parts by themselves. That the whole gives the tokenizers library's results is tested from
// Python.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "check.h"
#include "count_allocations.h"
#include "edgebert.h"
#include "text/json_object.h"
#include "text/rows.h"
#include "text/tokenizer.h"
#include "text/trie.h"
#include "text/unicode.h"

namespace edgebert::text {
namespace {

double number(const std::string& text) {
  JsonCursor cursor(text);
  const double value = cursor.read_number();
  cursor.finish();
  return value;
}

void test_json() {
  CHECK(number("0") == 0 && number("-12.5e1") == -125 && number("1e2") == 100 && number("1E-2") == 1.0 / 100);
  // Digits as an integer over a power of ten, each rounded: not the nearest double where they have more than 53 bits.
  CHECK(number("-3.4635426998138428") == -(static_cast<double>(34635426998138428) / 1e16));
  CHECK(number("123456789012345678901234567890") == static_cast<double>(12345678901234567890u) * 1e10);
  CHECK(number("0.00000000000000000000000000000000000012345") == 12345 / 1e41);
  CHECK(number("1e-400") == 0 && number("0e99999") == 0);
  for (const char* bad : {"", "-", "01", "1.", ".5", "1e", "+1", "1e400", "nan", "1 2"}) {
    CHECK_ERROR(number(bad), EB_MODEL_FORMAT, "re-export");
  }

  const std::string text = R"({"a": "x\"\u00e9\ud834\udd1e\n", "b": [1, 2, []], "a\u0062": {"c": null}})";
  JsonObject object(text, "test");
  CHECK(object.take_string("a") == "x\"\xC3\xA9\xF0\x9D\x84\x9E\n");
  CHECK(object.take("b") == "[1, 2, []]");
  CHECK_ERROR(object.finish(), EB_UNSUPPORTED, "\"ab\"");
  CHECK(object.take("ab") == "{\"c\": null}");
  object.finish();
  for (const char* bad : {R"({"a": 1, "a": 2})", R"({"a": "\ud834"})", R"({"a": "\udd1e\ud834"})", R"({"a": tru})",
                          R"({"a": 1,})", R"({"a")", R"({"a": [1 2]})", R"({"a": "\x"})", "{\"a\": \"\t\"}", "{} {}"}) {
    CHECK_ERROR(JsonObject(bad, "test"), EB_MODEL_FORMAT, "re-export");
  }
  for (const char* bad :
       {"", " ", "{", "[1,]", "[1]]", "{a:1}", "NaN", "\"", "\"\\", "\"\\u12g4\"", "\"\\ud800\\u0041\""}) {
    JsonCursor cursor(bad);
    CHECK_ERROR((cursor.skip(), cursor.finish()), EB_MODEL_FORMAT, "not valid JSON");
  }
  JsonCursor ends_in_nul(std::string_view("1\0", 2));
  CHECK_ERROR((ends_in_nul.skip(), ends_in_nul.finish()), EB_MODEL_FORMAT,
              "text after the value at byte 1, at the end of '1'");
  CHECK_ERROR(JsonCursor(std::string(100000, '[')).skip(), EB_MODEL_FORMAT, "nested");
  CHECK(JsonCursor(std::string(64, '[') + std::string(64, ']')).skip().size() == 128);
}

void test_trie() {
  std::vector<Trie::Entry> none;
  CHECK(Trie().find("a") == -1 && Trie(none).find(std::string_view("\0", 1)) == -1);
  std::mt19937 generator(1);
  for (const int num_letters : {1, 2, 5, 256}) {
    std::map<std::string, int32_t> expected;
    std::vector<std::string> keys(3000);
    std::vector<Trie::Entry> entries;
    for (size_t i = 0; i < keys.size(); ++i) {
      if (i % 8 == 0) keys[i] = i % 16 == 0 ? "##beginning" : "##begin";
      for (size_t size = generator() % 9; size > 0; --size) keys[i] += static_cast<char>(generator() % num_letters);
      if (!keys[i].empty()) expected[keys[i]] = static_cast<int32_t>(i);
      entries.push_back({keys[i], static_cast<int32_t>(i)});
    }
    const Trie trie(entries);
    CHECK(trie.size() == expected.size());
    for (int i = 0; i < 20000; ++i) {
      std::string key = i % 2 == 0 ? "" : "##beginning";
      for (size_t size = generator() % 10; size > 0; --size) key += static_cast<char>(generator() % num_letters);
      const auto found = expected.find(key);
      CHECK(trie.find(key) == (found == expected.end() ? -1 : found->second));
    }
    for (const auto& [key, value] : expected) CHECK(trie.find(key) == value);
    const std::vector<Trie::Place> places = trie.list();
    CHECK(places.size() == expected.size());
    for (const Trie::Place& place : places) CHECK(trie.spell(place.node) == keys[static_cast<size_t>(place.value)]);
  }
}

void test_unicode() {
  for (uint32_t code = 0; code < 0x110000; ++code) {
    if (code >= 0xD800 && code < 0xE000) continue;
    char bytes[4] = {};
    const auto size = static_cast<size_t>(encode(code, bytes));
    size_t at = 0;
    CHECK(decode(bytes, &at) == code && at == size && length_of(bytes[0]) == size);
    CHECK(decode_before(bytes, size) == code && is_utf8({bytes, size}, &at));
    uint32_t parts[kMaxDecomposition], lower[kMaxLower];
    for (const bool is_compatible : {false, true}) {
      const int count = decompose(code, is_compatible, parts);
      CHECK(count >= 1 && count <= kMaxDecomposition);
      for (int i = 0; i < count; ++i) {  // decomposed for good
        uint32_t again[kMaxDecomposition];
        CHECK(decompose(parts[i], is_compatible, again) == 1 && again[0] == parts[i]);
      }
    }
    CHECK(to_lower(code, lower) <= kMaxLower);
  }
  size_t at;
  for (const std::string bad :
       {"\x80", "a\xC3", "\xC0\x80", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF8"}) {
    CHECK(!is_utf8(bad, &at));
    CHECK(!is_utf8("12345678" + bad, &at) && at >= 8);
    CHECK(!is_utf8(bad + "12345678", &at));
  }
}

const char* const kWordPiece = R"({"version": "1.0", "normalizer": {"type": "BertNormalizer", "clean_text": true,
  "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}, "pre_tokenizer": {"type": "BertPreTokenizer"},
  "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}, "decoder": null,
  "added_tokens": [{"id": 0, "content": "[UNK]", "single_word": false, "lstrip": false, "rstrip": false,
  "normalized": false, "special": true}], "model": {"type": "WordPiece", "unk_token": "[UNK]",
  "continuing_subword_prefix": "##", "max_input_chars_per_word": 4, "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2,
  "a": 3, "##b": 4, "##bc": 5, "e": 6, "##": 7, "abc": 8, "##c": 9}}})";

std::vector<int32_t> ids_of(const Tokenizer& tokenizer, std::string_view text) {
  const auto scratch = tokenizer.borrow_scratch();
  Tokens tokens;
  // Twice: what the cache of words answers is the same.
  tokenizer.tokenize(text, false, scratch.get(), &tokens);
  const size_t count = tokens.ids.size();
  tokenizer.tokenize(text, true, scratch.get(), &tokens);
  CHECK(tokens.ids.size() == 2 * count &&
        std::equal(tokens.ids.data(), tokens.ids.data() + count, tokens.ids.data() + count));
  return {tokens.ids.data(), tokens.ids.data() + count};
}

void test_word_piece() {
  const Tokenizer tokenizer(kWordPiece);
  using Ids = std::vector<int32_t>;
  CHECK(ids_of(tokenizer, "").empty() && ids_of(tokenizer, " \t").empty());
  CHECK(ids_of(tokenizer, "abc ABB a") == (Ids{8, 3, 4, 4, 3}));   // the longest first
  CHECK(ids_of(tokenizer, "abbc abd") == (Ids{3, 4, 5, 0}));       // one unknown tail, one unknown word
  CHECK(ids_of(tokenizer, "abbb abbbb") == (Ids{3, 4, 4, 4, 0}));  // the limit counts characters
  CHECK(ids_of(tokenizer, "\xC3\xA9 e\xCC\x81") == (Ids{6, 6}));   // accents go, however they are written
  CHECK(ids_of(tokenizer, "a[UNK]a ## b") == (Ids{3, 0, 3, 0, 0, 0}));
}

// Rows through the C API, on one thread and on several.
void test_rows() {
  eb_tokenizer* tokenizer = nullptr;
  const std::string_view json = kWordPiece;
  CHECK(eb_tokenizer_load(json.data(), json.size(), &tokenizer) == EB_OK);
  std::string data;
  std::vector<int64_t> text_bounds = {0};
  std::vector<int32_t> row_bounds = {0};
  for (int row = 0; row < 4000; ++row) {
    for (int text = 0; text <= row % 2; ++text) {
      for (int word = 0; word < row % 23; ++word) data += word % 3 == 0 ? "a " : "\xC3\xA9,";
      text_bounds.push_back(static_cast<int64_t>(data.size()));
    }
    row_bounds.push_back(static_cast<int32_t>(text_bounds.size() - 1));
  }
  const eb_texts texts = {data.data(), text_bounds.data(), row_bounds.data(), 4000};
  const auto run = [&](const eb_tokenize_options& options) {
    eb_tokens* tokens = nullptr;
    CHECK(eb_tokenize(tokenizer, &texts, &options, &tokens) == EB_OK);
    return tokens;
  };
  for (const int32_t stride : {-1, 0, 3, 4}) {
    eb_tokenize_options options = {};
    options.max_length = 60;
    options.long_texts = stride >= 0 ? EB_LONG_WINDOWS : EB_LONG_DEFAULT;
    options.stride = std::max(stride, 0);
    options.side = stride % 2 == 0 ? EB_SIDE_LEFT : EB_SIDE_OF_TOKENIZER;
    options.offset_unit = EB_OFFSETS_UTF16;
    options.num_threads = 1;
    eb_tokens* one = run(options);
    options.num_threads = 3;
    eb_tokens* three = run(options);
    CHECK(one->num_sequences == three->num_sequences && one->num_sequences >= one->num_rows);
    CHECK(stride == -1 || one->num_sequences > one->num_rows);
    const int32_t total = one->cu_seqlens[one->num_sequences];
    const auto same = [](const int32_t* a, const int32_t* b, int32_t count) { return std::equal(a, a + count, b); };
    CHECK(same(one->cu_seqlens, three->cu_seqlens, one->num_sequences + 1));
    CHECK(same(one->input_ids, three->input_ids, total) && same(one->token_type_ids, three->token_type_ids, total));
    CHECK(one->total_tokens == total && one->token_type_ids == one->input_ids + total);  // one block
    CHECK(one->cu_seqlens == one->token_type_ids + total && one->offsets == one->cu_seqlens + one->num_sequences + 1);
    CHECK(one->word_ids == one->offsets + 2 * total && one->rows == one->word_ids + total);
    CHECK(one->last_texts == one->rows + one->num_sequences);
    CHECK(one->owned == one->last_texts + 2 * one->num_sequences);
    CHECK(static_cast<const void*>(one->is_truncated) == one->owned + 2 * one->num_sequences);
    CHECK(same(one->offsets, three->offsets, 2 * total) && same(one->word_ids, three->word_ids, total));
    std::vector<int64_t> owned(4000), wanted(4000);
    for (int32_t i = 0; i < one->num_sequences; ++i) {
      CHECK(one->cu_seqlens[i + 1] - one->cu_seqlens[i] <= 60);
      owned[static_cast<size_t>(one->rows[i])] += one->owned[2 * i + 1] - one->owned[2 * i];
    }
    eb_tokens* uncut = run({});
    for (int32_t i = 0; i < uncut->num_sequences; ++i) wanted[static_cast<size_t>(i)] = uncut->last_texts[2 * i + 1];
    CHECK(stride < 0 || owned == wanted);  // every token is some window's own
    eb_tokens_free(one);
    eb_tokens_free(three);
    eb_tokens_free(uncut);
  }
  eb_tokens* tokens = nullptr;
  const auto check_refused = [&](const eb_texts& bad, const eb_tokenize_options& options, const char* message) {
    CHECK(eb_tokenize(tokenizer, &bad, &options, &tokens) == EB_INVALID_INPUT && tokens == nullptr);
    CHECK(std::string(eb_last_error()).find(message) != std::string::npos);
  };
  const int64_t backwards[] = {0, 2, 1};
  const int32_t empty_row[] = {0, 0};
  const int64_t bounds[] = {0, 2}, long_bounds[] = {0, 1, 4};
  const int64_t two_bounds[] = {0, 1, 2};
  const int32_t pair[] = {0, 2};
  const auto with = [](int32_t max_length, int32_t long_texts, int32_t stride) {
    eb_tokenize_options options = {};
    options.max_length = max_length;
    options.long_texts = long_texts;
    options.stride = stride;
    return options;
  };
  const eb_texts one = {"ab", bounds, nullptr, 1}, two = {"ab", two_bounds, pair, 1};
  check_refused({"ab", backwards, nullptr, 2}, {}, "goes back");
  check_refused({"ab", bounds, empty_row, 1}, {}, "0 texts");
  check_refused({"a\xC3", bounds, nullptr, 1}, {}, "text 0 is not valid UTF-8 at byte 1");
  check_refused({"a\xC3", two_bounds, pair, 1}, {}, "the second text of row 0 is not valid UTF-8 at byte 0");
  check_refused({nullptr, bounds, nullptr, 1}, {}, "NULL");
  eb_tokenize_options unit = {};
  unit.offset_unit = 9;
  check_refused(one, unit, "offset_unit");
  // Options are refused whatever the texts, also where there are none.
  for (const eb_texts& any : {one, eb_texts{}}) {
    check_refused(any, with(1, 0, 0), "max_length 1 has no room for the 2 special tokens of a text");
    check_refused(any, with(0, 0, 1), "set long_texts to EB_LONG_WINDOWS");
    check_refused(any, with(0, EB_LONG_TRUNCATED, 1), "set long_texts to EB_LONG_WINDOWS");
    check_refused(any, with(0, EB_LONG_WINDOWS, -1), "stride is -1");
    check_refused(any, with(5, EB_LONG_WINDOWS, 3), "max_length 5 leaves 3 tokens to a window");
    check_refused(any, with(0, 3, 0), "long_texts");
  }
  check_refused(two, with(2, 0, 0), "row 0: max_length 2 has no room for the 3 special tokens of a pair");
  check_refused(
      {"a,,,", long_bounds, pair, 1}, with(6, EB_LONG_WINDOWS, 2),
      "row 0: max_length 6 leaves 2 tokens to a window, special tokens and the first text of row 0 taken off, "
      "and stride is 2");
  CHECK(eb_tokenize(nullptr, &texts, nullptr, &tokens) == EB_INVALID_INPUT);
  eb_tokenizer_free(tokenizer);
  CHECK(eb_tokenizer_load(nullptr, 0, &tokenizer) == EB_INVALID_INPUT);
  CHECK(eb_tokenizer_load("{}", 2, &tokenizer) == EB_MODEL_FORMAT && tokenizer == nullptr);
}

// Once a text as large was seen, one more allocates nothing, whatever its characters.
void test_allocations() {
  const std::string bert = R"({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,)"
                           R"( "strip_accents": null, "lowercase": true})";
  std::vector<std::string> normalizers = {"null", bert};
  for (const char* type : {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt"}) {
    normalizers.push_back(std::string(R"({"type": ")") + type + R"("})");
  }
  normalizers.push_back(R"({"type": "Strip", "strip_left": true, "strip_right": true})");
  normalizers.push_back(R"({"type": "Prepend", "prepend": "\u2581"})");
  normalizers.push_back(R"({"type": "Replace", "pattern": {"String": "a"}, "content": "\u00e9\u2581"})");
  normalizers.push_back(R"({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})");
  normalizers.push_back(R"({"type": "Sequence", "normalizers": [{"type": "NFKD"}, )" + bert + "]}");
  std::mt19937 generator(3);
  for (const std::string& normalizer : normalizers) {
    std::string json = kWordPiece;
    const size_t begin = json.find("{\"type\": \"BertNormalizer\""), end = json.find(", \"pre_tokenizer\"");
    json.replace(begin, end - begin, normalizer);
    const Tokenizer tokenizer(json);
    RowMaker rows;
    eb_tokenize_options options = {};
    options.offset_unit = EB_OFFSETS_UTF16;
    const auto tokenize = [&](const std::string& text) {
      const int64_t bounds[] = {0, static_cast<int64_t>(text.size())};
      rows.make(tokenizer, {text.data(), bounds, nullptr, 1}, options, {}, 0);
    };
    std::string largest;
    for (int i = 0; i < 300; ++i) largest += "a , ";
    tokenize(largest);
    std::vector<std::string> texts;
    for (int i = 0; i < 3000; ++i) {
      std::string text;
      for (int k = 0; k < 40; ++k) {
        uint32_t code = generator() % (k % 4 == 0 ? 0x20000 : 0x3000);
        if (code >= 0xD800 && code < 0xE000) code = 0x300 + code % 0x70;
        char bytes[4];
        text.append(bytes, static_cast<size_t>(encode(code, bytes)));
      }
      texts.push_back(text);
      texts.push_back("a" + text.substr(0, length_of(text[0])) + "\xCC\x81");
    }
    const long before = num_allocations();
    for (const std::string& text : texts) tokenize(text);
    CHECK(num_allocations() == before);
  }
}

void test_text_out() {
  eb_tokenizer* tokenizer = nullptr;
  const std::string_view json = kWordPiece;
  CHECK(eb_tokenizer_load(json.data(), json.size(), &tokenizer) == EB_OK);
  eb_tokenizer_info info;
  CHECK(eb_tokenizer_describe(tokenizer, &info) == EB_OK);
  CHECK(info.vocab_size == 10 && info.max_id == 9 && info.unknown_id == 0 && info.side == EB_SIDE_RIGHT);
  CHECK(info.has_pair_types == 1 && info.marks_subwords == 1 && info.num_special_tokens == 1);
  CHECK(info.special_ids[0] == 0 && std::string_view(info.special_tokens[0]) == "[UNK]");
  const int32_t ids[] = {0, 8, 77, -1, 9};
  char text[16];
  size_t size;
  CHECK(eb_detokenize(tokenizer, ids, 5, 0, text, sizeof text, &size) == EB_OK);
  CHECK(size == 13 && std::string_view(text) == "[UNK] abc ##c");
  CHECK(eb_detokenize(tokenizer, ids, 5, 1, text, sizeof text, &size) == EB_OK && std::string_view(text) == "abc ##c");
  CHECK(eb_detokenize(tokenizer, ids, 5, 0, text, 4, &size) == EB_OK && size == 13 && std::string_view(text) == "[UN");
  CHECK(eb_detokenize(tokenizer, ids, 5, 0, nullptr, 0, &size) == EB_OK && size == 13);
  CHECK(eb_detokenize(tokenizer, nullptr, 0, 0, text, 1, &size) == EB_OK && size == 0 && text[0] == '\0');
  CHECK(eb_tokenizer_token(tokenizer, 5, text, sizeof text, &size) == EB_OK && std::string_view(text) == "##bc");
  for (const int32_t id : {-1, 10}) {
    CHECK(eb_tokenizer_token(tokenizer, id, text, sizeof text, &size) == EB_INVALID_INPUT);
  }
  const int64_t bounds[] = {0, 1, 4};
  const int32_t row_bounds[] = {0, 1, 2};
  eb_texts tokens = {"a\xC3\xA9z", bounds, nullptr, 2};
  CHECK(eb_join_tokens(tokenizer, &tokens, text, sizeof text, &size) == EB_OK);
  CHECK(std::string_view(text) == "a \xC3\xA9z");
  tokens.row_bounds = row_bounds;
  CHECK(eb_join_tokens(tokenizer, &tokens, text, sizeof text, &size) == EB_INVALID_INPUT);
  tokens = {"a\xC3 \xA9", bounds, nullptr, 2};
  CHECK(eb_join_tokens(tokenizer, &tokens, text, sizeof text, &size) == EB_INVALID_INPUT);
  CHECK(eb_detokenize(tokenizer, nullptr, 1, 0, text, sizeof text, &size) == EB_INVALID_INPUT);
  CHECK(eb_detokenize(tokenizer, ids, 1, 0, nullptr, 4, &size) == EB_INVALID_INPUT);
  CHECK(eb_detokenize(tokenizer, ids, 1, 0, text, 4, nullptr) == EB_INVALID_INPUT);
  CHECK(eb_tokenizer_describe(nullptr, &info) == EB_INVALID_INPUT);
  eb_tokenizer_free(tokenizer);
}

}  // namespace
}  // namespace edgebert::text

int main() {
  edgebert::text::test_json();
  edgebert::text::test_trie();
  edgebert::text::test_unicode();
  edgebert::text::test_word_piece();
  edgebert::text::test_rows();
  edgebert::text::test_allocations();
  edgebert::text::test_text_out();
  return 0;
}
