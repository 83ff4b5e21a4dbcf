#include "format/encoder_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "base/base64.h"
#include "base/status.h"

namespace edgebert {
namespace {

using Tensors = std::unordered_map<std::string, TensorView>;

[[noreturn]] void fail(const std::string& what) { throw Error(EB_MODEL_FORMAT, what + ": re-export the model"); }

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kS8:
      return "s8";
    case DType::kS32:
      return "s32";
  }
  return "";
}

std::string describe(DType dtype, const std::vector<int64_t>& shape) {
  std::string text = std::string(name_of(dtype)) + " [";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

template <typename T>
T load(const TensorView& tensor, size_t index) {
  T value;
  std::memcpy(&value, tensor.data + index * sizeof(T), sizeof(T));
  return value;
}

// Sums of the columns of codes in +-127, [rows, columns].
std::vector<int32_t> add_columns(const uint8_t* codes, int rows, size_t columns) {
  constexpr int kRows = 256;  // whose sum fits 16 bits, more of which make a vector
  std::vector<int32_t> sums(columns);
  std::vector<int16_t> some(columns);
  for (int first = 0; first < rows; first += kRows) {
    std::fill(some.begin(), some.end(), int16_t{0});
    for (int row = first; row < std::min(first + kRows, rows); ++row, codes += columns) {
      for (size_t i = 0; i < columns; ++i) some[i] = static_cast<int16_t>(some[i] + static_cast<int8_t>(codes[i]));
    }
    for (size_t i = 0; i < columns; ++i) sums[i] += some[i];
  }
  return sums;
}

// Walks the list of names.py, checking each tensor as it comes.
class Checker {
 public:
  // Adds to both what the file leaves out.
  Checker(const EncoderSpec& spec, Tensors* tensors, std::vector<std::vector<int32_t>>* sums)
      : spec_(spec), tensors_(*tensors), sums_(*sums) {}

  // Number of tensors that the spec calls for.
  size_t check_all() {
    const int hidden = spec_.hidden_size, embedding = spec_.embedding_size;
    check_table("word", spec_.vocab_size);
    if (spec_.has_position_table) check_table("position", spec_.num_positions);
    if (spec_.num_token_types > 0) check_table("token_type", spec_.num_token_types);
    check_layer_norm("embeddings.layer_norm", embedding);
    if (embedding != hidden) check_linear("embeddings.projection", embedding, hidden, {});
    for (size_t i = 0; i < spec_.layers.size(); ++i) {
      const LayerSpec& layer = spec_.layers[i];
      const std::string prefix = "layer." + std::to_string(i);
      check_linear(prefix + ".attention.qkv", hidden, 3 * layer.attention_size(), layer.qkv);
      if (spec_.max_relative_distance > 0 && layer.num_heads > 0) check_position_bias(prefix + ".attention.", layer);
      check_linear(prefix + ".attention.output", layer.attention_size(), hidden, layer.attention_output);
      if (layer.has_attention_norm) check_layer_norm(prefix + ".attention.layer_norm", hidden);
      check_linear(prefix + ".ffn.up", hidden, layer.intermediate_size * (spec_.is_gated ? 2 : 1), layer.ffn_up);
      check_linear(prefix + ".ffn.down", layer.intermediate_size, hidden, layer.ffn_down);
      check_layer_norm(prefix + ".ffn.layer_norm", hidden);
    }
    if (spec_.is_pre_norm) check_layer_norm("final.layer_norm", hidden);
    std::set<std::string> seen;  // heads may share a step
    for (const Head& head : spec_.heads) {
      for (const HeadStep& step : head.steps) {
        if (!seen.insert(step.weights).second) continue;
        if (step.op == HeadStep::Op::kLinear) check_linear(step.weights, step.inputs, step.width, {});
        if (step.op == HeadStep::Op::kLayerNorm) check_layer_norm(step.weights, step.width);
        if (step.op == HeadStep::Op::kDecoder) check_decoder(step.weights);
      }
    }
    return num_checked_;
  }

  // Adds the weights of the exits' heads, which are bytes of `exits`.
  void add_exits(const std::vector<uint8_t>& exits) {
    size_t at = 0;
    for (const Exit& exit : spec_.exits) {
      const HeadStep& linear = exit.head.steps.back();
      const std::pair<const char*, std::vector<int64_t>> parts[] = {{".weight", {linear.inputs, linear.width}},
                                                                    {".bias", {linear.width}}};
      for (const auto& [part, shape] : parts) {
        size_t num_bytes = sizeof(float);
        for (const int64_t size : shape) num_bytes *= static_cast<size_t>(size);
        const std::string name = linear.weights + part;
        if (num_bytes > exits.size() - at) fail("edgebert.exits is too short");
        if (!tensors_.emplace(name, TensorView{exits.data() + at, DType::kF32, shape, num_bytes}).second)
          fail("tensor " + name + " belongs to edgebert.exits");
        at += num_bytes;
        ++num_checked_;
      }
    }
    if (at != exits.size()) fail("edgebert.exits is too long");
  }

 private:
  const TensorView& check(const std::string& name, DType dtype, const std::vector<int64_t>& shape) {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) fail("tensor " + name + " is missing");
    const TensorView& tensor = it->second;
    if (tensor.dtype != dtype || tensor.shape != shape) {
      fail("tensor " + name + ": expected " + describe(dtype, shape) + ", got " + describe(tensor.dtype, tensor.shape));
    }
    size_t num_bytes = dtype == DType::kS8 ? 1 : 4;
    for (int64_t size : shape) num_bytes *= static_cast<size_t>(size);  // at most 2^24 * 65,000 * 4: no overflow
    if (tensor.num_bytes != num_bytes) {
      fail("tensor " + name + ": expected " + std::to_string(num_bytes) + " bytes, got " +
           std::to_string(tensor.num_bytes));
    }
    ++num_checked_;
    return tensor;
  }

  void check_finite(const std::string& name, int size) {
    const TensorView& tensor = check(name, DType::kF32, {size});
    for (int i = 0; i < size; ++i) {
      if (!std::isfinite(load<float>(tensor, i)))
        fail("tensor " + name + ": value " + std::to_string(i) + " is not finite");
    }
  }

  void check_colsum(const std::string& name, std::vector<int32_t> sums) {
    if (spec_.is_weight_only) {
      const auto bytes = reinterpret_cast<const uint8_t*>(sums.data());
      const TensorView view{bytes, DType::kS32, {static_cast<int64_t>(sums.size())}, sums.size() * sizeof(int32_t)};
      sums_.push_back(std::move(sums));  // its elements stay where they are
      if (!tensors_.emplace(name, view).second) fail("tensor " + name + " is not of a weight-only file");
      ++num_checked_;
      return;
    }
    const TensorView& tensor = check(name, DType::kS32, {static_cast<int64_t>(sums.size())});
    if (std::memcmp(tensor.data, sums.data(), tensor.num_bytes) != 0)
      fail("tensor " + name + " are not the weight's sums");
  }

  // s8 weights lie in +-127: an instruction set that multiplies magnitudes relies on it.
  const TensorView& check_codes(const std::string& name, int rows, int columns) {
    const TensorView& codes = check(name, DType::kS8, {rows, columns});
    if (std::memchr(codes.data, 0x80, codes.num_bytes) != nullptr) fail("tensor " + name + " holds the code -128");
    return codes;
  }

  void check_table(const std::string& table, int rows) {
    const std::string name = "embeddings." + table;
    const int width = spec_.embedding_size;
    if (!spec_.is_embedding_s8) {
      check(name + ".weight", DType::kF32, {rows, width});
      return;
    }
    check_codes(name + ".weight", rows, width).forget();
    check_finite(name + ".scale", rows);
  }

  void check_position_bias(const std::string& prefix, const LayerSpec& layer) {
    const int num_rows = spec_.num_position_rows();
    if (num_rows == 0) {
      check(prefix + "position_bias", DType::kF32, {layer.num_heads, 2 * spec_.max_relative_distance + 1});
      return;
    }
    for (const char* table : {"position_keys", "position_queries"})
      check(prefix + table, DType::kF32, {layer.num_heads, layer.head_dim, num_rows});
  }

  void check_layer_norm(const std::string& name, int width) {
    check(name + ".weight", DType::kF32, {width});
    check(name + ".bias", DType::kF32, {width});
  }

  // A linear with no inputs keeps only its bias; one with no outputs is absent.
  void check_linear(const std::string& name, int inputs, int outputs, LinearSpec linear) {
    if (outputs == 0) return;
    if (inputs > 0) {
      if (!linear.is_s8) {
        check(name + ".weight", DType::kF32, {inputs, outputs});
      } else {
        const TensorView& weight = check_codes(name + ".weight", inputs, outputs);
        check_finite(name + ".scale", outputs);
        std::vector<int32_t> sums = add_columns(weight.data, inputs, static_cast<size_t>(outputs));
        weight.forget();
        check_colsum(name + ".colsum", std::move(sums));
      }
      if (linear.is_smoothed) check_finite(name + ".inv_smooth", inputs);
    }
    check(name + ".bias", DType::kF32, {outputs});
  }

  // Its columns are the word table's rows.
  void check_decoder(const std::string& name) {
    check(name + ".bias", DType::kF32, {spec_.vocab_size});
    if (!spec_.is_embedding_s8) return;
    const TensorView& table = tensors_.at("embeddings.word.weight");
    std::vector<int32_t> sums(spec_.vocab_size);
    const uint8_t* byte = table.data;
    for (int32_t& sum : sums) {
      for (int k = 0; k < spec_.embedding_size; ++k) sum += static_cast<int8_t>(*byte++);
    }
    check_colsum(name + ".colsum", std::move(sums));
  }

  const EncoderSpec& spec_;
  Tensors& tensors_;
  std::vector<std::vector<int32_t>>& sums_;
  size_t num_checked_ = 0;
};

}  // namespace

EncoderWeights::EncoderWeights(const EncoderSpec& spec, Tensors tensors, std::string_view exits)
    : tensors_(std::move(tensors)) {
  Checker checker(spec, &tensors_, &sums_);
  if (!spec.exits.empty()) {
    if (!decode_base64(exits, &exits_)) fail("edgebert.exits is not base64");
    checker.add_exits(exits_);
  }
  const size_t expected = checker.check_all();
  if (tensors_.size() != expected) {
    fail("the file holds " + std::to_string(tensors_.size()) + " weights, its spec calls for " +
         std::to_string(expected));
  }
}

size_t EncoderWeights::num_bytes() const {
  constexpr size_t kAlignment = 64;
  size_t bytes = 0;
  for (const auto& [name, tensor] : tensors_) bytes += (tensor.num_bytes + kAlignment - 1) / kAlignment * kAlignment;
  return bytes;
}

}  // namespace edgebert
