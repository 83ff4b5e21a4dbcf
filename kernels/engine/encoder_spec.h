// EncoderSpec: sizes, dtypes and head of a model, parsed from the file's metadata `edgebert.spec` (JSON).
// The Python twin with the field-by-field documentation is edgebert/artifact/spec.py.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace edgebert {

enum class Activation { kIdentity, kGeluErf, kGeluTanh, kRelu, kTanh };
enum class Pooling { kNone, kMean, kCls };
enum class Task {
  kEmbedding,
  kTextClassification,
  kTokenClassification,
  kQuestionAnswering,
  kFillMask,
  kNextSentence,
  kPretraining
};

struct LinearSpec {
  bool is_s8 = false;
  bool is_smoothed = false;
};

struct LayerSpec {
  int num_heads = 0;
  int head_dim = 0;
  int intermediate_size = 0;
  LinearSpec qkv, attention_output, ffn_up, ffn_down;

  int attention_size() const { return num_heads * head_dim; }
};

struct EncoderSpec {
  Task task = Task::kEmbedding;
  int vocab_size = 0;
  int hidden_size = 0;
  int embedding_size = 0;
  int num_positions = 0;
  int num_token_types = 0;
  int position_offset = 0;
  bool has_padding_position = false;
  int pad_token_id = 0;
  int num_labels = 0;
  int dense_size = 0;
  float layer_norm_eps = 0;
  Activation activation = Activation::kGeluErf;
  Activation dense_activation = Activation::kIdentity;
  Activation mlm_activation = Activation::kIdentity;
  Pooling pooling = Pooling::kNone;
  bool normalize = false;
  bool is_embedding_s8 = false;
  bool is_attention_s8 = false;
  std::vector<LayerSpec> layers;

  int usable_positions() const { return num_positions - position_offset; }
  // Rows of the position table for the tokens of one sequence; PackedBatch.position_ids in edgebert/batch.py.
  void find_positions(const int32_t* input_ids, int num_tokens, int32_t* position_ids) const;
  bool has_sequence_head() const {
    return task == Task::kEmbedding
               ? pooling != Pooling::kNone
               : task == Task::kTextClassification || task == Task::kNextSentence || task == Task::kPretraining;
  }
  bool has_token_head() const { return task == Task::kTokenClassification || task == Task::kQuestionAnswering; }
  bool has_mlm_head() const { return task == Task::kFillMask || task == Task::kPretraining; }
};

// Parses and validates; throws Error(EB_MODEL_FORMAT) on anything unexpected, Error(EB_UNSUPPORTED) on a spec
// version or an attention_dtype this engine does not run.
EncoderSpec parse_encoder_spec(std::string_view json);

}  // namespace edgebert
