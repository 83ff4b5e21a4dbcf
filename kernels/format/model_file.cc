#include "format/model_file.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <utility>

#include "base/status.h"
#include "format/onnx_proto.h"

namespace edgebert {
namespace {

constexpr size_t kMaxFileSize = size_t{1} << 31;  // a protobuf message ends below 2 GiB
constexpr size_t kMaxSpecSize = size_t{1} << 22;
constexpr std::string_view kLfsPointer = "version https://git-lfs.github.com/spec/";

std::string_view metadata(const OnnxModel& model, const std::string& key) {
  const auto it = model.metadata.find(key);
  if (it == model.metadata.end()) {
    throw Error(EB_MODEL_FORMAT, "not written by EdgeBERT (no metadata " + key +
                                     "): export it with `edgebert export`, or run it with ONNX Runtime");
  }
  return it->second;
}

// TensorProto.DataType and the size of one element.
DType dtype_of(const OnnxTensor& tensor) {
  switch (tensor.data_type) {
    case 1:
      return DType::kF32;
    case 3:
      return DType::kS8;
    case 6:
      return DType::kS32;
  }
  throw Error(EB_MODEL_FORMAT, "tensor " + std::string(tensor.name) + ": expected float32, int8 or int32, got type " +
                                   std::to_string(tensor.data_type) + ": re-export the model");
}

}  // namespace

ModelFile read_model_file(std::string_view bytes, const MappedFile* file) {
  if (bytes.empty()) throw Error(EB_MODEL_FORMAT, "the file is empty");
  if (bytes.size() >= kMaxFileSize) {
    throw Error(EB_MODEL_FORMAT, "the file has " + std::to_string(bytes.size()) +
                                     " bytes, an ONNX file has less than 2 GiB: re-export with --int8");
  }
  if (bytes.substr(0, kLfsPointer.size()) == kLfsPointer) {
    throw Error(
        EB_MODEL_FORMAT,
        "a Git LFS pointer, which stands for the file in a repository: get the file itself with `git lfs pull`");
  }
  const OnnxModel model = parse_onnx(bytes);
  const std::string_view spec_json = metadata(model, "edgebert.spec");
  if (spec_json.size() > kMaxSpecSize) {
    throw Error(EB_MODEL_FORMAT, "edgebert.spec has " + std::to_string(spec_json.size()) + " bytes, expected at most " +
                                     std::to_string(kMaxSpecSize) + ": re-export the model");
  }
  EncoderSpec spec = parse_encoder_spec(spec_json);
  if (metadata(model, "edgebert.graph_hash") != model.graph_hash || model.is_opset_changed) {
    throw Error(EB_MODEL_FORMAT,
                "the graph was changed after export (its hash differs from edgebert.graph_hash, or its operator set "
                "from 17): re-export, or "
                "run it with ONNX Runtime");
  }
  std::unordered_map<std::string, TensorView> tensors;
  for (const OnnxTensor& tensor : model.weights) {
    const auto data = reinterpret_cast<const uint8_t*>(tensor.raw_data.data());
    TensorView view{data, dtype_of(tensor), tensor.dims, tensor.raw_data.size(), file};
    if (!tensors.emplace(tensor.name, std::move(view)).second) {
      throw Error(EB_MODEL_FORMAT, "tensor " + std::string(tensor.name) + " is given twice: re-export the model");
    }
  }
  const auto exits = model.metadata.find("edgebert.exits");
  EncoderWeights weights(spec, std::move(tensors), exits == model.metadata.end() ? std::string_view() : exits->second);
  const auto is_closed = [](const Exit& exit) { return std::isinf(exit.threshold); };
  spec.exits.erase(std::remove_if(spec.exits.begin(), spec.exits.end(), is_closed), spec.exits.end());
  const auto tokenizer = model.metadata.find("edgebert.tokenizer");
  return {std::move(spec), std::move(weights),
          tokenizer == model.metadata.end() ? std::string_view() : tokenizer->second};
}

}  // namespace edgebert
