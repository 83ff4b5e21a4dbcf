#include "format/onnx_proto.h"

#include <utility>

#include "base/sha2.h"
#include "base/status.h"

namespace edgebert {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw Error(EB_MODEL_FORMAT, "damaged or not an ONNX file: " + what);
}

constexpr uint64_t kOpset = 17;
// Far above what a file of ours holds; they bound the memory that a hostile file can claim.
constexpr size_t kMaxDims = 8, kMaxWeights = 1 << 16, kMaxMetadata = 1 << 12;

enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

struct Field {
  uint32_t number = 0;
  int wire_type = 0;
  uint64_t varint = 0;     // of kVarint
  std::string_view bytes;  // of kBytes
};

// The fields of one message, in the order they are stored.
class FieldReader {
 public:
  explicit FieldReader(std::string_view message) : rest_(message) {}

  bool next(Field* field) {
    if (rest_.empty()) return false;
    const uint64_t key = read_varint();
    field->number = static_cast<uint32_t>(key >> 3);
    field->wire_type = static_cast<int>(key & 7);
    if (field->number == 0 || key >> 32 != 0) fail("a field has an impossible number");
    switch (field->wire_type) {
      case kVarint:
        field->varint = read_varint();
        break;
      case kFixed64:
        take(8);
        break;
      case kBytes:
        field->bytes = take(read_varint());
        break;
      case kFixed32:
        take(4);
        break;
      default:
        fail("a field has wire type " + std::to_string(field->wire_type));
    }
    return true;
  }

  bool at_end() const { return rest_.empty(); }
  std::string_view rest() const { return rest_; }

  uint64_t read_varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) fail("it ends inside a number");
      const uint64_t byte = static_cast<uint8_t>(rest_.front());
      rest_.remove_prefix(1);
      if (shift == 63 && byte > 1) break;
      value |= (byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    fail("a number is longer than 64 bits");
  }

 private:
  std::string_view take(uint64_t size) {
    if (size > rest_.size()) {
      fail("a field claims " + std::to_string(size) + " bytes where " + std::to_string(rest_.size()) +
           " are left: the file may be truncated");
    }
    const std::string_view bytes = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return bytes;
  }

  std::string_view rest_;
};

std::string_view bytes_of(const Field& field) {
  if (field.wire_type != kBytes) fail("field " + std::to_string(field.number) + " has an unexpected type");
  return field.bytes;
}

uint64_t varint_of(const Field& field) {
  if (field.wire_type != kVarint) fail("field " + std::to_string(field.number) + " has an unexpected type");
  return field.varint;
}

bool is_graph_constant(std::string_view name) { return name.substr(0, 6) == "const."; }

std::string_view tensor_name(std::string_view message) {
  std::string_view name;
  FieldReader reader(message);
  for (Field field; reader.next(&field);) {
    if (field.number == 8) name = bytes_of(field);
  }
  return name;
}

// TensorProto: dims 1, data_type 2, segment 3, typed data 4 to 7, 10 and 11, name 8, raw_data 9, external_data 13,
// data_location 14.
OnnxTensor parse_tensor(std::string_view message) {
  OnnxTensor tensor;
  bool is_raw = true, is_external = false;
  FieldReader reader(message);
  for (Field field; reader.next(&field);) {
    switch (field.number) {
      case 1:
        if (field.wire_type == kBytes) {  // packed
          for (FieldReader dims(field.bytes); !dims.at_end() && tensor.dims.size() <= kMaxDims;) {
            tensor.dims.push_back(static_cast<int64_t>(dims.read_varint()));
          }
        } else {
          tensor.dims.push_back(static_cast<int64_t>(varint_of(field)));
        }
        break;
      case 2:
        tensor.data_type = static_cast<int32_t>(varint_of(field));
        break;
      case 8:
        tensor.name = bytes_of(field);
        break;
      case 9:
        tensor.raw_data = bytes_of(field);
        break;
      case 13:
        is_external = true;
        break;
      case 14:
        is_external = is_external || varint_of(field) != 0;
        break;
      case 3:
      case 4:
      case 5:
      case 6:
      case 7:
      case 10:
      case 11:
        is_raw = false;
        break;
    }
    if (tensor.dims.size() > kMaxDims) fail("a tensor has more than 8 dimensions");
  }
  const std::string name(tensor.name.substr(0, 200));
  if (is_external) {
    throw Error(EB_MODEL_FORMAT, "tensor " + name +
                                     " is stored in another file, EdgeBERT's files hold everything: re-export, or "
                                     "run it with ONNX Runtime");
  }
  if (!is_raw) {
    throw Error(EB_MODEL_FORMAT,
                "tensor " + name + " is not stored as raw data: re-export, or run it with ONNX Runtime");
  }
  return tensor;
}

// Adds one part of the graph to its hash.
void hash_part(const Field& field, Sha256* hash) {
  uint8_t header[9] = {static_cast<uint8_t>(field.number)};
  const uint64_t size = bytes_of(field).size();
  for (int i = 0; i < 8; ++i) header[1 + i] = static_cast<uint8_t>(size >> (8 * i));
  hash->update(header, sizeof header);
  hash->update(field.bytes.data(), size);
}

// GraphProto: node 1, initializer 5, input 11, output 12.
void parse_graph(std::string_view message, OnnxModel* model) {
  Sha256 hash;
  FieldReader reader(message);
  for (Field field; reader.next(&field);) {
    switch (field.number) {
      case 1:
      case 11:
      case 12:
        hash_part(field, &hash);
        break;
      case 5:
        if (is_graph_constant(tensor_name(bytes_of(field)))) {
          hash_part(field, &hash);
        } else {
          model->weights.push_back(parse_tensor(field.bytes));
          if (model->weights.size() > kMaxWeights) fail("it has too many initializers");
        }
        break;
    }
  }
  model->graph_hash = hash.hex_digest();
}

// StringStringEntryProto: key 1, value 2.
std::pair<std::string_view, std::string_view> parse_entry(std::string_view message) {
  std::string_view key, value;
  FieldReader reader(message);
  for (Field field; reader.next(&field);) {
    if (field.number == 1) key = bytes_of(field);
    if (field.number == 2) value = bytes_of(field);
  }
  return {key, value};
}

void parse_metadata(std::string_view message, OnnxModel* model) {
  const auto [key, value] = parse_entry(message);
  if (!model->metadata.emplace(key, value).second) fail("a metadata key is given twice");
  if (model->metadata.size() > kMaxMetadata) fail("it has too many metadata entries");
}

// OperatorSetIdProto: domain 1, version 2.
bool is_expected_opset(std::string_view message) {
  uint64_t version = 0;
  FieldReader reader(message);
  for (Field field; reader.next(&field);) {
    if (field.number == 1 && !bytes_of(field).empty()) return false;
    if (field.number == 2) version = varint_of(field);
  }
  return version == kOpset;
}

}  // namespace

// ModelProto: graph 7, opset_import 8, metadata_props 14, functions 25.
OnnxModel parse_onnx(std::string_view bytes) {
  OnnxModel model;
  bool has_graph = false;
  FieldReader reader(bytes);
  for (Field field; reader.next(&field);) {
    if (field.number == 7) {
      if (has_graph) fail("it has two graphs");
      has_graph = true;
      parse_graph(bytes_of(field), &model);
    } else if (field.number == 14) {
      parse_metadata(bytes_of(field), &model);
    } else if (field.number == 25 || (field.number == 8 && !is_expected_opset(bytes_of(field)))) {
      model.is_opset_changed = true;
    }
  }
  if (!has_graph) fail("it has no graph");
  return model;
}

std::string hash_without_metadata(std::string_view bytes, const std::set<std::string_view>& keys) {
  Sha256 hash;
  FieldReader reader(bytes);
  const char* begin = bytes.data();
  for (Field field; reader.next(&field);) {
    const char* end = reader.rest().data();
    const bool is_left_out = field.number == 14 && keys.count(parse_entry(bytes_of(field)).first) > 0;
    if (!is_left_out) hash.update(begin, end - begin);
    begin = end;
  }
  return hash.hex_digest();
}

}  // namespace edgebert
