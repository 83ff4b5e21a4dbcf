// libFuzzer: bytes as texts, through every kind of tokenizer and with any options, give possible tokens or an error.
//
// The first bytes choose tokenizer and options; a byte 0xFF ends a text, and 0xFE in front of it the first of a pair.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "edgebert.h"

namespace {

#define BERT \
  R"({"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true})"
#define MODEL_WORDS                                                                                               \
  R"("model":{"type":"WordPiece","unk_token":"?","continuing_subword_prefix":"##","max_input_chars_per_word":9,)" \
  R"("vocab":{"?":0,"a":1,"##b":2,"##bc":3,"e":4,"##":5,",":6,"##e":7}}})"
#define ADDED                                                                                                       \
  R"("added_tokens":[{"id":8,"content":"[M]","single_word":false,"lstrip":true,"rstrip":false,"normalized":false,)" \
  R"("special":true},{"id":9,"content":"ab e","single_word":true,"lstrip":false,"rstrip":true,"normalized":true,)"  \
  R"("special":false}],)"

const char* const kTokenizers[] = {
    R"({"normalizer":)" BERT R"(,"pre_tokenizer":{"type":"BertPreTokenizer"},)" ADDED
    R"("post_processor":{"type":"BertProcessing","sep":["e",4],"cls":["a",1]},)" MODEL_WORDS,
    R"({"normalizer":{"type":"Sequence","normalizers":[{"type":"NFKD"},{"type":"StripAccents"},{"type":"NFC"},)"
    R"({"type":"Lowercase"},{"type":"Nmt"},{"type":"Strip","strip_left":true,"strip_right":true},)"
    R"({"type":"Replace","pattern":{"Regex":"\\s{2,}|[\\n\\r\\t]"},"content":" "},)"
    R"({"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "},{"type":"Prepend","prepend":"e"}]},)" ADDED
    R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Whitespace"},)"
    R"({"type":"Punctuation","behavior":"Isolated"},{"type":"Digits","individual_digits":true}]},)" MODEL_WORDS,
    R"({"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},)"
    R"("post_processor":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},)"
    R"("model":{"type":"BPE","unk_token":"a","vocab":{"a":0,"b":1,"ab":2,"\u0120":3,"\u0120a":4,"\u00c3":5,"\u00a9":6},)"
    R"("merges":[["a","b"],["\u0120","a"]]}})",
    R"({"normalizer":{"type":"Precompiled","precompiled_charsmap":"CAAAAAAEAAAAAAAA"},)"
    R"("pre_tokenizer":{"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always","split":true},)"
    R"("model":{"type":"Unigram","unk_id":0,"byte_fallback":false,)"
    R"("vocab":[["?",0.0],["\u2581",-2.0],["a",-3.5],["ab",-4.0],["\u2581a",-4.25],["e\u0301",-5.0]]}})",
    (R"({"pre_tokenizer":{"type":"WhitespaceSplit"},"model":{"type":"WordLevel","unk_token":"?",)"
     R"("vocab":{"?":0,"a":1,"ab":2}}})"),
};

// Each has the members that files have always, empty where it does not say otherwise.
std::string complete(std::string json) {
  for (const char* member : {"truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"}) {
    const std::string name = "\"" + std::string(member) + "\":";
    if (json.find("{" + name) == std::string::npos && json.find("," + name) == std::string::npos) {
      json.insert(1, name + "null,");
    }
  }
  if (json.find("\"added_tokens\":") == std::string::npos) json.insert(1, "\"added_tokens\":[],");
  json.insert(1, "\"version\":\"1.0\",");
  return json;
}

std::vector<eb_tokenizer*> load() {
  std::vector<eb_tokenizer*> found;
  for (const char* json : kTokenizers) {
    const std::string whole = complete(json);
    eb_tokenizer* tokenizer = nullptr;
    if (eb_tokenizer_load(whole.data(), whole.size(), &tokenizer) != EB_OK) {
      std::fprintf(stderr, "%s\n%s\n", eb_last_error(), whole.c_str());
      std::abort();
    }
    found.push_back(tokenizer);
  }
  return found;
}

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<eb_tokenizer*>& tokenizers = *new std::vector<eb_tokenizer*>(load());  // never freed
  if (size < 5) return 0;
  const eb_tokenizer* tokenizer = tokenizers[data[0] % tokenizers.size()];
  eb_tokenize_options options = {};
  options.max_length = data[1] % 40;
  options.long_texts = data[2] % 3;
  options.stride = options.long_texts == EB_LONG_WINDOWS ? data[2] / 3 % 12 : 0;
  options.lowers_stride = data[3] & 1;
  options.cuts_last_text = data[3] >> 1 & 1;
  options.side = (data[3] >> 2) % 3;
  options.no_special_tokens = data[3] >> 7;
  options.offset_unit = data[4] % 4;
  options.num_threads = 1;
  std::vector<char> bytes;
  std::vector<int64_t> bounds = {0};
  std::vector<int32_t> row_bounds = {0};
  for (size_t i = 5; i <= size; ++i) {
    const bool is_first = i + 1 < size && data[i] == 0xFE && data[i + 1] == 0xFF &&
                          row_bounds.back() + 1 == static_cast<int32_t>(bounds.size());
    if (i < size && data[i] != 0xFF && !is_first) {
      bytes.push_back(static_cast<char>(data[i]));
      continue;
    }
    bounds.push_back(static_cast<int64_t>(bytes.size()));
    if (is_first) {
      ++i;
    } else {
      row_bounds.push_back(static_cast<int32_t>(bounds.size()) - 1);
    }
  }
  bytes.shrink_to_fit();  // so that a read past the end is seen
  const eb_texts texts = {bytes.data(), bounds.data(), row_bounds.data(), static_cast<int32_t>(row_bounds.size()) - 1};
  eb_tokens* tokens = nullptr;
  const eb_status status = eb_tokenize(tokenizer, &texts, &options, &tokens);
  require(status == EB_OK ? tokens != nullptr : status == EB_INVALID_INPUT && tokens == nullptr);
  if (status != EB_OK) return 0;
  for (int32_t i = 0; i < tokens->num_sequences; ++i) {
    const int32_t begin = tokens->cu_seqlens[i], end = tokens->cu_seqlens[i + 1];
    require(begin <= end && (options.max_length == 0 || end - begin <= options.max_length));
    for (int32_t k = begin; k < end; ++k) {
      require(tokens->input_ids[k] >= 0 && tokens->input_ids[k] < 10);
      if (tokens->offsets == nullptr) continue;
      const int32_t* offset = tokens->offsets + 2 * static_cast<ptrdiff_t>(k);
      require(offset[0] >= 0 && offset[0] <= offset[1] && offset[1] <= static_cast<int32_t>(bytes.size()));
    }
  }
  char text[256];
  size_t text_size = 0;
  eb_detokenize(tokenizer, tokens->input_ids, tokens->total_tokens, data[4] >> 7, text, sizeof text, &text_size);
  eb_tokens_free(tokens);
  return 0;
}
