#include "format/encoder_spec.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>

#include "base/json.h"
#include "base/status.h"

namespace edgebert {
namespace {

constexpr int kSpecVersion = 1;
constexpr int kMaxInnerSize = 65000;  // 65,000 * 255 * 127 < 2^31: the s32 sums of an int8 linear cannot overflow
constexpr int kMaxLayers = 1024;

[[noreturn]] void fail(const std::string& what) {
  throw Error(EB_MODEL_FORMAT, "edgebert.spec: " + what + ": re-export the model");
}

std::string quote(std::string_view text) { return "'" + std::string(text.substr(0, 100)) + "'"; }

bool is_string(std::string_view json) { return json.front() == '"'; }

// The members of a JSON object: what is left at the end is an error.
class Members : public JsonMembers {
 public:
  Members(std::string_view text, std::string where) : JsonMembers(text), where_(std::move(where)) {}

  std::string_view take_required(const std::string& name) {
    if (!has(name)) fail(where_ + name + " is missing");
    return take(name);
  }

  // An integer in [low, high]; required.
  int take_size(const std::string& name, int low, int high) { return to_size(name, take_required(name), low, high); }

  int to_size(const std::string& name, std::string_view text, int low, int high) const {
    int value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < low || value > high) {
      fail(where_ + name + " must be an integer in [" + std::to_string(low) + ", " + std::to_string(high) + "], got " +
           quote(text));
    }
    return value;
  }

  int take_size(const std::string& name, int low, int high, int absent) {
    return has(name) ? take_size(name, low, high) : absent;
  }

  bool take_bool(const std::string& name, bool absent = false) {
    const std::string_view text = has(name) ? take(name) : absent ? "true" : "false";
    if (text != "true" && text != "false") fail(where_ + name + " must be true or false, got " + quote(text));
    return text == "true";
  }

  // Integers in [low, high]; none where the member is absent.
  std::vector<int> take_sizes(const std::string& name, int low, int high) {
    std::vector<int> sizes;
    if (!has(name)) return sizes;
    JsonCursor cursor(take(name));
    if (cursor.peek() != '[') fail(where_ + name + " must be a list of integers");
    cursor.read_array([&] { sizes.push_back(to_size(name, cursor.skip(), low, high)); });
    return sizes;
  }

  double take_number(const std::string& name, double low, double high, double absent) {
    if (!has(name)) return absent;
    const std::string_view text = take(name);
    const bool is_number = text.find_first_not_of("+-.0123456789eE") == std::string_view::npos;
    const double value = is_number ? JsonCursor(text).read_number() : low;
    if (!(value > low && value < high) && value != absent)
      fail(where_ + name + " must be a number in (" + std::to_string(static_cast<int64_t>(low)) + ", " +
           std::to_string(static_cast<int64_t>(high)) + "), got " + quote(text));
    return value;
  }

  // The place of a string in `choices`; `absent` < 0: required.
  int take_choice(const std::string& name, const std::vector<std::string>& choices, int absent = -1) {
    if (!has(name) && absent >= 0) return absent;
    const std::string_view text = take_required(name);
    const std::string given = is_string(text) ? JsonCursor(text).read_string() : "";
    std::string allowed;
    for (size_t i = 0; i < choices.size(); ++i) {
      if (given == choices[i]) return static_cast<int>(i);
      allowed += (i > 0 ? ", " : "") + choices[i];
    }
    fail(where_ + name + " must be one of " + allowed + ", got " + quote(text));
  }

  std::vector<std::string> take_strings(const std::string& name) {
    std::vector<std::string> strings;
    if (!has(name)) return strings;
    JsonCursor cursor(take(name));
    const auto check = [&](char expected) {
      if (cursor.peek() != expected) fail(where_ + name + " must be a list of strings");
    };
    check('[');
    cursor.read_array([&] {
      check('"');
      strings.push_back(cursor.read_string());
    });
    return strings;
  }

  void check_all_taken() const {
    const std::string* name = find_untaken();
    if (name != nullptr) fail(where_ + quote(*name) + " is not known to this EdgeBERT, update it or");
  }

 private:
  std::string where_;
};

LayerSpec parse_layer(std::string_view json, size_t index) {
  const std::string where = "layers[" + std::to_string(index) + "].";
  Members members(json, where);
  LayerSpec layer;
  layer.num_heads = members.take_size("num_heads", 0, 1024);
  layer.head_dim = members.take_size("head_dim", 1, 1024);
  layer.intermediate_size = members.take_size("intermediate_size", 0, kMaxInnerSize);
  layer.repeats = members.take_size("repeats", 1, kMaxLayers, 1);
  if (layer.attention_size() > kMaxInnerSize / 3) {
    fail(where + "num_heads * head_dim must be at most " + std::to_string(kMaxInnerSize / 3) + ", got " +
         std::to_string(layer.attention_size()));
  }
  const std::pair<const char*, LinearSpec*> linears[] = {{"qkv", &layer.qkv},
                                                         {"attention_output", &layer.attention_output},
                                                         {"ffn_up", &layer.ffn_up},
                                                         {"ffn_down", &layer.ffn_down}};
  for (const auto& [name, linear] : linears) linear->is_s8 = members.take_choice(name, {"f32", "s8"}, 0) == 1;
  for (const std::string& smoothed : members.take_strings("smoothed")) {
    LinearSpec* found = nullptr;
    for (const auto& [name, linear] : linears) {
      if (smoothed == name) found = linear;
    }
    if (found == nullptr) fail(where + "smoothed names no linear: " + quote(smoothed));
    if (!found->is_s8) fail(where + smoothed + " is smoothed but its weight is not s8");
    found->is_smoothed = true;
  }
  layer.window = members.take_size("window", 0, 1 << 20, 0);
  layer.rotary_base = members.take_number("rotary_base", 1, 1e9, 0);
  layer.has_attention_norm = members.take_bool("has_attention_norm", true);
  if (!layer.has_attention_norm && (index > 0 || layer.repeats > 1))
    fail(where + "has_attention_norm must be true, or false in a first layer without repeats");
  members.check_all_taken();
  return layer;
}

// Row of the position tables for each of the distances from -farthest to farthest, from how many each row is for.
std::vector<int32_t> take_distance_rows(Members& members, int farthest) {
  std::vector<int32_t> rows;
  const size_t num_distances = 2 * static_cast<size_t>(farthest) + 1;
  int32_t row = 0;
  for (const int count : members.take_sizes("distances_per_row", 1, static_cast<int>(num_distances))) {
    if (rows.size() > num_distances) break;  // not one row more for each of a hostile file's
    rows.insert(rows.end(), static_cast<size_t>(count), row++);
  }
  if (!rows.empty() && (farthest == 0 || rows.size() != num_distances))
    fail("distances_per_row must be those from -max_relative_distance to max_relative_distance");
  return rows;
}

std::vector<Pooling> take_poolings(Members& members) {
  std::vector<Pooling> poolings;
  if (!members.has("pooling")) return poolings;
  // In the order of Pooling's enumerators.
  const std::vector<std::string> names = {"mean", "cls", "max", "mean_sqrt_len", "weighted_mean", "last"};
  const std::string_view json = members.take("pooling");
  const std::string given = (is_string(json) ? JsonCursor(json).read_string() : "") + "+";
  if (given == "none+") return poolings;
  for (size_t begin = 0, end; begin < given.size(); begin = end + 1) {
    end = given.find('+', begin);
    const auto found = std::find(names.begin(), names.end(), given.substr(begin, end - begin));
    if (found == names.end())
      fail(
          "pooling must be none, or names out of mean, cls, max, mean_sqrt_len, weighted_mean, last, joined by +, "
          "got " +
          quote(json));
    const auto pooling = static_cast<Pooling>(found - names.begin());
    if (std::find(poolings.begin(), poolings.end(), pooling) != poolings.end())
      fail("pooling names one twice, " + quote(json));
    poolings.push_back(pooling);
  }
  return poolings;
}

// A file's outputs, from the members that say which: the twin of EncoderSpec.heads in edgebert/artifact/spec.py.
std::vector<Head> take_heads(Members& members, EncoderSpec& spec) {
  using Op = HeadStep::Op;
  // In the order of Activation's enumerators.
  const std::vector<std::string> activations = {"identity", "gelu_erf", "gelu_tanh", "relu", "tanh", "silu"};
  const int hidden = spec.hidden_size, embedding = spec.embedding_size;
  const std::vector<Pooling> poolings = take_poolings(members);
  const int num_poolings = static_cast<int>(poolings.size());
  if (num_poolings * static_cast<int64_t>(hidden) > kMaxInnerSize)
    fail("the pooled rows are wider than " + std::to_string(kMaxInnerSize));
  const int dense_size = members.take_size("dense_size", 0, kMaxInnerSize, 0);
  const auto dense_activation = static_cast<Activation>(members.take_choice("dense_activation", activations, 0));
  const auto mlm_activation = static_cast<Activation>(members.take_choice("mlm_activation", activations, 0));
  const int sparse_pooling = members.take_choice("sparse_pooling", {"none", "max", "sum"}, 0);
  const int num_sparse_logs = members.take_size("num_sparse_logs", 1, 2, 1);
  const int token_size = members.take_size("token_size", 0, kMaxInnerSize, 0);
  const bool normalizes_tokens = members.take_bool("normalize_tokens");
  const bool has_token_weights = members.take_bool("has_token_weights");
  const bool normalizes = spec.text.is_normalized = members.take_bool("normalize");
  spec.text.labels = members.take_strings("labels");
  const int num_labels = static_cast<int>(spec.text.labels.size());  // fits: the text is below 4 MiB

  const int pooled = num_poolings > 1 ? num_poolings * hidden : hidden;
  std::vector<HeadStep> dense;
  if (dense_size > 0) dense.push_back({Op::kLinear, pooled, dense_size, "head.dense", dense_activation});
  if (members.take_bool("has_dense_norm") && dense_size > 0)
    dense.push_back({Op::kLayerNorm, dense_size, dense_size, "head.layer_norm"});
  const int width = dense_size > 0 ? dense_size : pooled;
  // The steps after `first`, which may be none, and the dense layer.
  const auto after_dense = [&](std::vector<HeadStep> first, std::initializer_list<HeadStep> last) {
    first.insert(first.end(), dense.begin(), dense.end());
    first.insert(first.end(), last);
    return first;
  };
  const auto pool_by = [](std::vector<Pooling> by, int inputs) {
    const int outputs = static_cast<int>(by.size()) * inputs;
    return HeadStep{Op::kPool, inputs, outputs, "", Activation::kIdentity, 0, std::move(by)};
  };
  const HeadStep pool = pool_by(poolings, hidden);
  std::vector<HeadStep> sentence = after_dense({pool}, {});
  if (normalizes) sentence.push_back({Op::kNormalize, width, width, ""});
  const HeadStep labels{Op::kLinear, width, num_labels, "head.out"};
  const std::vector<HeadStep> classes = after_dense({pool}, {labels});
  const std::vector<HeadStep> words = {{Op::kLinear, hidden, embedding, "mlm.dense", mlm_activation},
                                       {Op::kLayerNorm, embedding, embedding, "mlm.layer_norm"},
                                       {Op::kDecoder, embedding, spec.vocab_size, "mlm"}};
  const HeadStep span{Op::kLinear, width, 2, "head.out"};
  const auto column = [](int i) { return HeadStep{Op::kColumn, 2, 1, "", Activation::kIdentity, i}; };
  std::vector<Head> embeddings = {{"last_hidden_state", hidden, {}}};
  if (num_poolings > 0) embeddings.push_back({"sentence_embedding", width, sentence});
  if (sparse_pooling > 0) {
    const int vocabulary = spec.vocab_size;
    const HeadStep fold = pool_by({sparse_pooling == 1 ? Pooling::kMax : Pooling::kSum}, vocabulary);
    std::vector<HeadStep> steps = words;
    // The logarithm grows with the logit: of the largest alone it is the largest.
    if (sparse_pooling == 1) steps.push_back(fold);
    for (int i = 0; i < num_sparse_logs; ++i) steps.push_back({Op::kLog1pRelu, vocabulary, vocabulary, ""});
    if (sparse_pooling == 2) steps.push_back(fold);
    embeddings.push_back({"sparse_embedding", vocabulary, steps});
  }
  if (token_size > 0) {
    std::vector<HeadStep> steps = {{Op::kLinear, hidden, token_size, "head.tokens"}};
    if (normalizes_tokens) steps.push_back({Op::kNormalize, token_size, token_size, ""});
    embeddings.push_back({"token_embeddings", token_size, steps});
  }
  if (has_token_weights)
    embeddings.push_back({"token_weights", 1, {{Op::kLinear, hidden, 1, "head.token_weights", Activation::kRelu}}});
  struct Choice {
    std::string task;
    int min_labels, max_labels;
    std::vector<Head> heads;
  };
  const int any = std::numeric_limits<int>::max(), some = kMaxInnerSize;
  std::vector<Choice> choices = {
      {"embedding", 0, 0, embeddings},
      {"text-classification", 1, some, {{"logits", num_labels, classes}}},
      {"token-classification", 1, some, {{"logits", num_labels, after_dense({}, {labels})}}},
      {"question-answering",
       0,
       any,
       {{"start_logits", 1, after_dense({}, {span, column(0)})},
        {"end_logits", 1, after_dense({}, {span, column(1)})}}},
      {"fill-mask", 0, any, {{"logits", spec.vocab_size, words}}},
      {"next-sentence", 2, 2, {{"logits", num_labels, classes}}},
      {"pretraining",
       2,
       2,
       {{"prediction_logits", spec.vocab_size, words}, {"seq_relationship_logits", num_labels, classes}}}};
  std::vector<std::string> tasks;
  for (const Choice& choice : choices) tasks.push_back(choice.task);
  Choice& chosen = choices[members.take_choice("task", tasks)];
  if (num_labels < chosen.min_labels || num_labels > chosen.max_labels) {
    fail("the number of labels of " + chosen.task + " must be in [" + std::to_string(chosen.min_labels) + ", " +
         std::to_string(chosen.max_labels) + "], got " + std::to_string(num_labels));
  }
  spec.text.task = chosen.task;
  const bool is_pooled = !chosen.heads.back().is_per_token();
  const bool is_cls = poolings == std::vector<Pooling>{Pooling::kCls};
  const bool is_mean = poolings == std::vector<Pooling>{Pooling::kMean};
  if (chosen.task != "embedding" && is_pooled && !is_cls && (!is_mean || chosen.task != "text-classification"))
    fail("the head reads the first token, pooling must be cls");
  return chosen.heads;
}

// The twin of EncoderSpec.exit_heads.
void take_exits(Members& members, EncoderSpec& spec) {
  if (!members.has("exits")) return;
  int num_runs = 0;
  for (const LayerSpec& layer : spec.layers) num_runs += layer.repeats;
  JsonCursor exits(members.take("exits"));
  if (exits.peek() != '[') fail("exits must be a list");
  exits.read_array([&] {
    Members each(exits.skip(), "exits.");
    const int least = spec.exits.empty() ? 1 : spec.exits.back().after + 1;
    const int after = each.take_size("after", least, num_runs - 1);
    float threshold = std::numeric_limits<float>::infinity();
    if (each.take("threshold") != "null") threshold = static_cast<float>(each.take_number("threshold", -1, 1e6, 0));
    if (threshold < 0) fail("exits.threshold must be 0 or more");
    each.check_all_taken();
    const int hidden = spec.hidden_size, num_labels = static_cast<int>(spec.text.labels.size());
    Head head{"logits", num_labels, {}};
    if (!spec.heads[0].is_per_token())
      head.steps.push_back({HeadStep::Op::kPool, hidden, hidden, "", Activation::kIdentity, 0, {Pooling::kMean}});
    head.steps.push_back({HeadStep::Op::kLinear, hidden, num_labels, "exit." + std::to_string(after)});
    spec.exits.push_back({after, threshold, head});
  });
  const bool is_classifier =
      spec.text.task == "token-classification" ||
      (spec.text.task == "text-classification" && spec.text.problem_type != TextSpec::ProblemType::kRegression);
  if (!spec.exits.empty() && (!is_classifier || spec.is_pre_norm))
    fail("exits are of classifiers alone, whose layers have their norms behind");
}

// The rest of what tasks read.
void take_text(Members& members, const EncoderSpec& spec, TextSpec* text) {
  const auto take_string = [](Members& from, const std::string& name) {
    const std::string_view value = from.take(name);
    if (!is_string(value)) fail(name + " must be a string, got " + quote(value));
    return JsonCursor(value).read_string();
  };
  const auto has = [&](const std::string& name) { return members.take(name) != "null"; };
  if (has("rank_function")) {
    text->rank_function = static_cast<TextSpec::Function>(
        1 + members.take_choice("rank_function", {"none", "sigmoid", "tanh", "softmax"}));
  }
  if (has("mask_token")) text->mask_token = take_string(members, "mask_token");
  if (members.has("prompts")) {
    const std::string_view prompts = members.take("prompts");
    Members each(prompts, "prompts.");  // checked: an object, no name twice
    JsonCursor cursor(prompts);
    cursor.read_object([&](std::string_view key) {
      const std::string name(key);
      cursor.skip();
      text->prompts[name] = take_string(each, name);
    });
  }
  // What only the Python tasks read.
  const int last_id = spec.vocab_size - 1;
  if (members.has("markers")) {
    Members markers(members.take("markers"), "markers.");
    for (const char* role : {"query", "document"}) markers.take_size(role, 0, last_id, 0);
    markers.check_all_taken();
  }
  members.take_sizes("skipped_ids", 0, last_id);
  members.take_sizes("unweighted_ids", 0, last_id);
  members.take_bool("drops_first_token");
  if (has("default_prompt_name")) {
    const auto found = text->prompts.find(take_string(members, "default_prompt_name"));
    if (found == text->prompts.end()) fail("there is no prompt of the name default_prompt_name");
    text->default_prompt = found->second;
  }
}

}  // namespace

bool Head::is_per_token() const {
  return std::none_of(steps.begin(), steps.end(), [](const HeadStep& s) { return s.is_pool(); });
}

bool Head::has_decoder() const {
  return std::any_of(steps.begin(), steps.end(), [](const HeadStep& s) { return s.op == HeadStep::Op::kDecoder; });
}

const Head* EncoderSpec::find_head(std::string_view name) const {
  const auto found = std::find_if(heads.begin(), heads.end(), [&](const Head& head) { return head.name == name; });
  return found == heads.end() ? nullptr : &*found;
}

void EncoderSpec::find_positions(const int32_t* input_ids, int num_tokens, int32_t* position_ids) const {
  int next = position_offset;
  for (int t = 0; t < num_tokens; ++t) {
    const bool is_padding = has_padding_position && input_ids[t] == pad_token_id;
    position_ids[t] = is_padding ? position_offset - 1 : next++;
  }
}

int EncoderSpec::count_keys(const int32_t* input_ids, int num_tokens) const {
  const int least = std::max(1, num_tokens - max_unattended);
  int count = num_tokens;
  while (count > least && input_ids[count - 1] == unattended_id) --count;
  return count;
}

float EncoderSpec::margin(const float* logits, int num_labels) const {
  if (text.problem_type == TextSpec::ProblemType::kMultiLabel || num_labels == 1) {
    float least = std::abs(logits[0]);
    for (int i = 1; i < num_labels; ++i) least = std::min(least, std::abs(logits[i]));
    return least;
  }
  float first = std::max(logits[0], logits[1]), second = std::min(logits[0], logits[1]);
  for (int i = 2; i < num_labels; ++i) {
    second = std::max(second, std::min(first, logits[i]));
    first = std::max(first, logits[i]);
  }
  return first - second;
}

EncoderSpec parse_encoder_spec(std::string_view json) {
  Members members(json, "");
  if (members.take_required("version") != std::to_string(kSpecVersion)) {
    throw Error(EB_UNSUPPORTED, "edgebert.spec has a version other than " + std::to_string(kSpecVersion) +
                                    ", the one this EdgeBERT reads: update EdgeBERT or re-export the model");
  }

  const Activation ffn_activations[] = {Activation::kGeluErf, Activation::kGeluTanh, Activation::kRelu,
                                        Activation::kSilu};
  EncoderSpec spec;
  if (!is_string(members.take_required("family"))) fail("family must be a string");  // a label
  spec.vocab_size = members.take_size("vocab_size", 1, 1 << 24);
  spec.hidden_size = members.take_size("hidden_size", 1, kMaxInnerSize);
  spec.embedding_size = members.take_size("embedding_size", 1, kMaxInnerSize);
  spec.num_positions = members.take_size("num_positions", 1, 1 << 20);
  spec.num_token_types = members.take_size("num_token_types", 0, 1 << 10);
  spec.has_padding_position = members.take_bool("has_padding_position");
  spec.position_offset = spec.has_padding_position ? members.take_size("position_offset", 1, spec.num_positions - 1)
                                                   : members.take_size("position_offset", 0, spec.num_positions - 1, 0);
  spec.max_relative_distance = members.take_size("max_relative_distance", 0, 1 << 16, 0);
  spec.distance_rows = take_distance_rows(members, spec.max_relative_distance);
  spec.text.max_length =
      members.take_size("max_length", 1, spec.usable_positions(), std::min(512, spec.usable_positions()));
  spec.pad_token_id = members.take_size("pad_token_id", 0, spec.vocab_size - 1, 0);
  spec.activation = ffn_activations[members.take_choice("activation", {"gelu_erf", "gelu_tanh", "relu", "silu"}, 0)];
  spec.is_gated = members.take_bool("is_gated");
  spec.is_pre_norm = members.take_bool("is_pre_norm");
  spec.has_position_table = members.take_bool("has_position_table", true);
  spec.heads = take_heads(members, spec);
  spec.is_embedding_s8 = members.take_choice("embedding_dtype", {"f32", "s8"}, 0) == 1;
  const size_t attention_dtype = members.take_choice("attention_dtype", {"f32", "s8", "bf16"}, 0);
  if (attention_dtype > 1) {
    throw Error(EB_UNSUPPORTED,
                "the model's attention_dtype is neither f32 nor s8, which the native backend runs: re-export");
  }
  spec.is_attention_s8 = attention_dtype == 1;
  spec.text.problem_type = static_cast<TextSpec::ProblemType>(members.take_choice(
      "problem_type", {"single_label_classification", "multi_label_classification", "regression"}, 0));
  members.take_bool("portable");
  spec.is_weight_only = members.take_bool("is_weight_only");
  if (spec.is_weight_only && spec.is_attention_s8) fail("is_weight_only has attention in f32");

  spec.layer_norm_eps = static_cast<float>(members.take_number("layer_norm_eps", 0, 1, 1e-12));

  take_text(members, spec, &spec.text);
  const int query_length = members.take_size("query_length", 0, spec.usable_positions(), 0);
  const int expansion_length = members.take_size("expansion_length", 0, query_length, 0);
  const int expansion_id = members.take_size("expansion_id", 0, spec.vocab_size - 1, 0);
  if (!members.take_bool("attends_to_expansion", true)) {
    spec.unattended_id = expansion_id;
    spec.max_unattended = expansion_length;
    for (const Head& head : spec.heads)
      if (expansion_length > 0 && !head.is_per_token())
        fail("unless attends_to_expansion, pooling and sparse_pooling must be none");
  }

  JsonCursor layers(members.take_required("layers"));
  int count = 0;
  layers.read_array([&] {
    spec.layers.push_back(parse_layer(layers.skip(), spec.layers.size()));
    count += spec.layers.back().repeats;
    if (count > kMaxLayers) fail("layers has more than " + std::to_string(kMaxLayers) + " layers, repeats included");
  });
  for (const LayerSpec& layer : spec.layers) {
    if (layer.window > 0 && layer.window < spec.max_unattended)
      fail("windows must be 0 or at least expansion_length, unless attends_to_expansion");
    if (!layer.has_attention_norm && !spec.is_pre_norm)
      fail("layers[0].has_attention_norm must be true, unless is_pre_norm");
    if (layer.rotary_base > 0 && (layer.head_dim % 2 != 0 || spec.position_offset > 0 || spec.has_padding_position))
      fail("with a rotary_base, head_dim must be even and positions count from 0");
  }
  take_exits(members, spec);
  members.check_all_taken();
  return spec;
}

}  // namespace edgebert
