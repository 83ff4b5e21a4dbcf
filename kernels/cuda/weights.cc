#include "cuda/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/status.h"

namespace edgebert {
namespace cuda {
namespace {

using FileDType = edgebert::DType;  // of a tensor in the file; DType is the kernels'

constexpr float kMaxF16 = 65504.0f;

[[noreturn]] void refuse(const std::string& what) {
  throw Error(EB_UNSUPPORTED, what + ", which the CUDA kernels do not run: use device='cpu'");
}

void check_supported(const EncoderSpec& spec) {
  if (spec.is_attention_s8) refuse("the model's attention_dtype is s8 (exported with --int8-attention)");
  const int width = std::max(spec.hidden_size, spec.embedding_size);
  if (width > kMaxLayerNormWidth) {
    refuse("the model has rows of " + std::to_string(width) + " values, more than " +
           std::to_string(kMaxLayerNormWidth));
  }
  if (spec.is_pre_norm) refuse("the model has a norm before each sub-block");
  if (spec.is_gated) refuse("the model has a gated feed-forward part");
  if (!spec.distance_rows.empty()) refuse("the model has tables of relative positions in its attention");
  if (!spec.has_position_table) refuse("the model has no table of positions");
  if (spec.unattended_id >= 0) refuse("the model fills queries up with tokens that are not attended to");
  for (const LayerSpec& layer : spec.layers) {
    if (layer.rotary_base > 0) refuse("the model has rotary positions");
    if (layer.window > 0) refuse("the model has layers with a window of attention");
    if (layer.num_heads > 0 && layer.head_dim > kMaxHeadDim) {
      refuse("the model has heads of " + std::to_string(layer.head_dim) + " values, more than " +
             std::to_string(kMaxHeadDim));
    }
  }
}

// Bits of the nearest f16, ties to even; NaN stays NaN. |value| <= kMaxF16.
uint16_t to_f16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return 0x7E00;
  if (magnitude < 0x38800000) {  // below 2^-14: subnormal, a multiple of 2^-24
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(std::fabs(value) * 16777216.0f)));
  }
  const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000) >> 13);
}

float load_f32(const TensorView& tensor, size_t index) {
  float value;
  std::memcpy(&value, tensor.data + index * sizeof value, sizeof value);
  return value;
}

enum class Layout { kInputsByOutputs, kOutputsByInputs };  // of a weight in the file

class Uploader {
 public:
  Uploader(const EncoderSpec& spec, const EncoderWeights& weights) : spec_(spec), weights_(weights) {}

  Weights upload() {
    to_.word = table("word");
    to_.position = table("position");
    to_.token_type = spec_.num_token_types > 0 ? table("token_type") : Table{nullptr, DType::kF32, nullptr};
    to_.embedding_norm = layer_norm("embeddings.layer_norm");
    to_.projection = linear("embeddings.projection", Linear::Kind::kF16);
    for (size_t i = 0; i < spec_.layers.size(); ++i) {
      const LayerSpec& sizes = spec_.layers[i];
      const std::string prefix = "layer." + std::to_string(i) + ".";
      const auto part = [&](const char* name) { return linear(prefix + name, Linear::Kind::kF16); };
      const Layer layer{sizes.num_heads,
                        sizes.head_dim,
                        sizes.attention_size(),
                        sizes.intermediate_size,
                        part("attention.qkv"),
                        part("attention.output"),
                        part("ffn.up"),
                        part("ffn.down"),
                        layer_norm(prefix + "attention.layer_norm"),
                        layer_norm(prefix + "ffn.layer_norm"),
                        position_bias(prefix + "attention.position_bias")};
      to_.layers.insert(to_.layers.end(), sizes.repeats, layer);
    }
    for (const Head& head : spec_.heads) {
      const Linear::Kind kind = head.has_decoder() ? Linear::Kind::kF16 : Linear::Kind::kF32;
      for (const HeadStep& step : head.steps) {
        if (step.op == HeadStep::Op::kLayerNorm) to_.head_norms[step.weights] = layer_norm(step.weights);
        if (step.is_linear() && to_.head_linears.count(step.weights) == 0) {
          to_.head_linears[step.weights] =
              step.op == HeadStep::Op::kDecoder ? decoder(step.weights) : linear(step.weights, kind);
        }
      }
    }
    return std::move(to_);
  }

 private:
  const TensorView& tensor(const std::string& name) const {
    const TensorView* found = weights_.find(name);
    if (!found) throw Error(EB_INTERNAL, "weight " + name + " is missing although the file was checked");
    return *found;
  }

  const void* copy(const void* data, size_t bytes) {
    DeviceMemory memory(bytes);
    check(cudaMemcpy(memory.data(), data, bytes, cudaMemcpyHostToDevice), "copying weights");
    to_.memory.push_back(std::move(memory));
    return to_.memory.back().data();
  }
  template <class T>
  const T* copy(const TensorView& tensor) {
    return static_cast<const T*>(copy(tensor.data, tensor.num_bytes));
  }

  Table table(const std::string& name) {
    const TensorView& weight = tensor("embeddings." + name + ".weight");
    if (weight.dtype == FileDType::kF32) return {copy<float>(weight), DType::kF32, nullptr};
    return {copy<int8_t>(weight), DType::kS8, copy<float>(tensor("embeddings." + name + ".scale"))};
  }

  const float* position_bias(const std::string& name) {
    const TensorView* found = weights_.find(name);
    return found ? copy<float>(*found) : nullptr;
  }

  LayerNorm layer_norm(const std::string& prefix) {
    const TensorView& weight = tensor(prefix + ".weight");
    return {copy<float>(weight), copy<float>(tensor(prefix + ".bias")), static_cast<int>(weight.shape[0]),
            spec_.layer_norm_eps};
  }

  // The weight with an output's inputs side by side, `stride` apart, each through `convert`.
  template <class To, class From, class Convert>
  const void* transpose(const TensorView& weight, Layout layout, int inputs, int outputs, int stride, Convert convert) {
    std::vector<To> rows(static_cast<size_t>(outputs) * stride);
    const size_t by_input = layout == Layout::kInputsByOutputs ? outputs : 1;
    const size_t by_output = layout == Layout::kInputsByOutputs ? 1 : inputs;
    constexpr int kBlock = 32;  // so that neither side leaves the cache at every step
    for (int first_output = 0; first_output < outputs; first_output += kBlock) {
      const int end = std::min(outputs, first_output + kBlock);
      for (int k = 0; k < inputs; ++k) {
        for (int n = first_output; n < end; ++n) {
          From value;
          std::memcpy(&value, weight.data + (k * by_input + n * by_output) * sizeof value, sizeof value);
          rows[static_cast<size_t>(n) * stride + k] = convert(value);
        }
      }
    }
    return copy(rows.data(), rows.size() * sizeof(To));
  }

  // An f32 weight becomes `kind`, f16 or f32; an s8 one stays s8.
  Linear linear(const std::string& prefix, Linear::Kind kind) {
    Linear linear;
    const TensorView* bias = weights_.find(prefix + ".bias");
    if (!bias) return linear;
    linear.outputs = static_cast<int>(bias->shape[0]);
    linear.bias = copy<float>(*bias);
    linear.kind = Linear::Kind::kBiasOnly;
    const TensorView* weight = weights_.find(prefix + ".weight");
    if (!weight) return linear;
    linear.inputs = static_cast<int>(weight->shape[0]);
    if (weight->dtype == FileDType::kS8) {
      set_s8(linear, *weight, Layout::kInputsByOutputs, tensor(prefix + ".scale"), tensor(prefix + ".colsum"));
      if (const TensorView* inv_smooth = weights_.find(prefix + ".inv_smooth"))
        linear.inv_smooth = copy<float>(*inv_smooth);
    } else if (kind == Linear::Kind::kF16) {
      set_f16(linear, prefix, *weight, Layout::kInputsByOutputs);
    } else {
      linear.kind = Linear::Kind::kF32;
      linear.weight = transpose<float, float>(*weight, Layout::kInputsByOutputs, linear.inputs, linear.outputs,
                                              linear.inputs, [](float value) { return value; });
    }
    return linear;
  }

  // The tied decoder: an output is a word, its weights the word's row.
  Linear decoder(const std::string& prefix) {
    const TensorView& word = tensor("embeddings.word.weight");
    Linear linear;
    linear.outputs = spec_.vocab_size;
    linear.inputs = spec_.embedding_size;
    linear.bias = copy<float>(tensor(prefix + ".bias"));
    if (word.dtype == FileDType::kS8)
      set_s8(linear, word, Layout::kOutputsByInputs, tensor("embeddings.word.scale"), tensor(prefix + ".colsum"));
    else
      set_f16(linear, "embeddings.word", word, Layout::kOutputsByInputs);
    return linear;
  }

  void set_s8(Linear& linear, const TensorView& weight, Layout layout, const TensorView& scale,
              const TensorView& colsum) {
    linear.kind = Linear::Kind::kS8;
    linear.weight = transpose<int8_t, int8_t>(weight, layout, linear.inputs, linear.outputs, row_stride(linear.inputs),
                                              [](int8_t value) { return value; });
    linear.w_scale = copy<float>(scale);
    linear.colsum = copy<int32_t>(colsum);
  }

  void set_f16(Linear& linear, const std::string& name, const TensorView& weight, Layout layout) {
    for (size_t i = 0; i < weight.num_bytes / sizeof(float); ++i) {
      if (std::fabs(load_f32(weight, i)) > kMaxF16) refuse(name + ".weight has values beyond f16's largest, 65504");
    }
    linear.kind = Linear::Kind::kF16;
    linear.weight =
        transpose<uint16_t, float>(weight, layout, linear.inputs, linear.outputs, row_stride(linear.inputs), to_f16);
  }

  const EncoderSpec& spec_;
  const EncoderWeights& weights_;
  Weights to_;
};

}  // namespace

Weights upload_weights(const EncoderSpec& spec, const EncoderWeights& weights) {
  check_supported(spec);
  return Uploader(spec, weights).upload();
}

}  // namespace cuda
}  // namespace edgebert
