// EncoderSpec: sizes, dtypes and heads of a model, parsed from the file's metadata `edgebert.spec` (JSON).
// The Python twin with the field-by-field documentation is edgebert/artifact/spec.py.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace edgebert {

enum class Activation { kIdentity, kGeluErf, kGeluTanh, kRelu, kTanh, kSilu };
enum class Pooling { kMean, kCls, kMax, kMeanSqrtLen, kWeightedMean, kLast, kSum };

// One operation of a head on the rows that the step before left. The first makes rows of its own: LayerNorm and
// normalisation work in place, and so does the logarithm.
struct HeadStep {
  enum class Op { kPool, kLinear, kLayerNorm, kDecoder, kNormalize, kLog1pRelu, kColumn } op;
  int inputs, width;    // of a row before and after
  std::string weights;  // prefix of its tensors' names
  Activation activation = Activation::kIdentity;
  int column = 0;
  std::vector<Pooling> poolings = {};  // their rows lie side by side

  bool is_pool() const { return op == Op::kPool; }
  bool takes_first_row() const { return poolings.size() == 1 && poolings[0] == Pooling::kCls; }
  bool is_linear() const { return op == Op::kLinear || op == Op::kDecoder; }
};

// One output: the steps that lead to it from the last hidden states. Engines know these and no tasks.
struct Head {
  std::string name;
  int width;
  std::vector<HeadStep> steps;

  bool is_per_token() const;
  // Its rows become one a sequence only when they are logits, as wide as the vocabulary.
  bool folds_logits() const { return !is_per_token() && !steps[0].is_pool(); }
  // The word table is a product's weight too.
  bool has_decoder() const;
};

// A head after some of the layers: a text whose answer there is sure goes no deeper.
struct Exit {
  int after;        // so many layers, repeats counted
  float threshold;  // of the margin of the text's logits, of each token's where tokens have some; infinity: no text is
  Head head;
};

struct LinearSpec {
  bool is_s8 = false;
  bool is_smoothed = false;
};

struct LayerSpec {
  int num_heads = 0;
  int head_dim = 0;
  int intermediate_size = 0;
  int repeats = 1;  // times that it runs, one after the other
  LinearSpec qkv, attention_output, ffn_up, ffn_down;
  int window = 0;          // tokens on each side that a token attends to; 0: all
  double rotary_base = 0;  // of the positions that turn queries and keys; 0: none does
  bool has_attention_norm = true;

  int attention_size() const { return num_heads * head_dim; }
};

// What tasks make of texts and outputs; engines do not look at it.
struct TextSpec {
  enum class ProblemType { kSingleLabel, kMultiLabel, kRegression };
  enum class Function { kUnknown, kNone, kSigmoid, kTanh, kSoftmax };

  std::string task;
  int max_length = 0;  // tokens, special tokens included
  bool is_normalized = false;
  std::vector<std::string> labels;
  ProblemType problem_type = ProblemType::kSingleLabel;
  Function rank_function = Function::kUnknown;
  std::string mask_token;                      // empty: [MASK] or <mask>
  std::map<std::string, std::string> prompts;  // by name
  std::string default_prompt;                  // the prompt itself
};

struct EncoderSpec {
  int vocab_size = 0;
  int hidden_size = 0;
  int embedding_size = 0;
  int num_positions = 0;
  int num_token_types = 0;
  int position_offset = 0;
  bool has_padding_position = false;
  int max_relative_distance = 0;  // 0: attention's scores have no bias by distance
  // Row of the layers' position tables for each distance from -max_relative_distance on; empty: no such tables.
  std::vector<int32_t> distance_rows;
  int pad_token_id = 0;
  int unattended_id = -1;  // tokens of this id at the end of a sequence are no keys of attention; -1: all are
  int max_unattended = 0;  // so many at most
  float layer_norm_eps = 0;
  Activation activation = Activation::kGeluErf;
  bool is_gated = false;     // ffn_up gives activation's argument and a factor for each neuron
  bool is_pre_norm = false;  // a sub-block's norm is before it; one more after the last layer
  bool has_position_table = true;
  bool is_embedding_s8 = false;
  bool is_attention_s8 = false;
  bool is_weight_only = false;  // the file's graph multiplies in f32, so that the file has no colsum
  std::vector<LayerSpec> layers;
  std::vector<Head> heads;
  std::vector<Exit> exits;  // in their order; their heads give the only output
  TextSpec text;

  int usable_positions() const { return num_positions - position_offset; }
  int num_position_rows() const { return distance_rows.empty() ? 0 : distance_rows.back() + 1; }
  // Rows of the position table for the tokens of one sequence; PackedBatch.position_ids in edgebert/batch.py.
  void find_positions(const int32_t* input_ids, int num_tokens, int32_t* position_ids) const;
  // Tokens of a sequence that are attended to, one at least.
  int count_keys(const int32_t* input_ids, int num_tokens) const;
  // How far logits are from another answer: EncoderSpec.margins in spec.py.
  float margin(const float* logits, int num_labels) const;
  // nullptr if no output has that name.
  const Head* find_head(std::string_view name) const;
};

// Parses and validates; throws Error(EB_MODEL_FORMAT) on anything unexpected, Error(EB_UNSUPPORTED) on a spec
// version or an attention_dtype this engine does not run.
EncoderSpec parse_encoder_spec(std::string_view json);

}  // namespace edgebert
