// Reads an ONNX model (onnx.proto, protobuf wire format) without copying: every view points into the caller's bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace edgebert {

// One initializer. `raw_data` may lie at any alignment.
struct OnnxTensor {
  std::string_view name;
  int32_t data_type = 0;  // TensorProto.DataType
  std::vector<int64_t> dims;
  std::string_view raw_data;
};

struct OnnxModel {
  std::map<std::string, std::string_view> metadata;
  std::vector<OnnxTensor> weights;  // the initializers, less those named const.*, which belong to the graph
  // SHA-256 over nodes, inputs, outputs and const.* initializers, in the file's order: each as its field number (one
  // byte), its length (8 bytes, little-endian) and its bytes. Weights are outside; their shapes are checked instead.
  std::string graph_hash;
  bool is_opset_changed = false;  // another operator set than the writer's, or functions of the file's own
};

// Reads three levels (model, graph, tensor) and skips what lies deeper, so nesting cannot exhaust the stack.
// Throws Error(EB_MODEL_FORMAT) on a malformed message, on weights outside the file, and on weights that are not
// stored as raw data.
OnnxModel parse_onnx(std::string_view bytes);

// SHA-256 over a model's bytes, less its metadata entries of these keys. Throws as parse_onnx.
std::string hash_without_metadata(std::string_view bytes, const std::set<std::string_view>& keys);

}  // namespace edgebert
