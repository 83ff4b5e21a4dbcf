// The model's weights on the device, in the forms that kernels.h takes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/runtime.h"
#include "format/encoder_spec.h"
#include "format/encoder_weights.h"

namespace edgebert {
namespace cuda {

// A linear as a kernel takes it, or (a pruned-away sub-block) only its bias.
struct Linear {
  enum class Kind { kAbsent, kBiasOnly, kF16, kS8, kF32 } kind = Kind::kAbsent;
  int inputs = 0, outputs = 0;
  const void* weight = nullptr;       // transposed; f16 and s8 rows padded, f32 rows contiguous
  const float* bias = nullptr;        // [outputs]
  const float* w_scale = nullptr;     // of s8: [outputs]
  const int32_t* colsum = nullptr;    // of s8: [outputs]
  const float* inv_smooth = nullptr;  // of s8: [inputs], or nullptr

  bool is_present() const { return kind != Kind::kAbsent && kind != Kind::kBiasOnly; }
  bool takes_codes() const { return kind == Kind::kS8; }
};

struct Layer {
  int num_heads, head_dim, attention_size, intermediate_size;
  Linear qkv, attention_output, ffn_up, ffn_down;
  LayerNorm attention_norm, ffn_norm;
  const float* position_bias;  // of AttentionArgs
};

struct Weights {
  Table word, position, token_type;
  LayerNorm embedding_norm;
  Linear projection;
  std::map<std::string, Linear> head_linears;  // by the name of their tensors
  std::map<std::string, LayerNorm> head_norms;
  std::vector<Layer> layers;
  std::vector<DeviceMemory> memory;  // what all of the above point into
};

// Copies the weights to the current device. The four linears of a layer, the projection and heads that end in the
// vocabulary become f16, or stay s8; the other heads, all tables, norms and biases stay as they are. Throws
// Error(EB_UNSUPPORTED) if these kernels do not run the model, before anything is copied if its spec tells.
Weights upload_weights(const EncoderSpec& spec, const EncoderWeights& weights);

}  // namespace cuda
}  // namespace edgebert
