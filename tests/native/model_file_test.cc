// The reader of model files: JSON, SHA-256, spec, wire format and weights, sound and damaged.
#include "format/model_file.h"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>

#include "base/ed25519.h"
#include "base/platform.h"
#include "base/sha2.h"
#include "check.h"
#include "format/onnx_proto.h"
#include "onnx_wire.h"

namespace edgebert {
namespace {

template <typename T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string floats(size_t count) { return raw(std::vector<float>(count, 0.5f)); }

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  CHECK(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

constexpr int kF32 = 1, kS8 = 3, kS32 = 6;

// A fill-mask model with s8 tables, one layer whose attention is pruned away and whose ffn_up is s8 and smoothed.
struct Parts {
  std::string spec =
      R"({"version":1,"family":"bert","task":"fill-mask","vocab_size":3,"hidden_size":2,"embedding_size":2,)"
      R"("num_positions":4,"num_token_types":0,"max_length":4,"embedding_dtype":"s8","prompts":{"query":"q: "},)"
      R"("layers":[{"num_heads":0,"head_dim":8,"intermediate_size":2,"ffn_up":"s8","smoothed":["ffn_up"]}]})";
  std::map<std::string, std::string> tensors = {
      {"embeddings.word.weight", tensor("embeddings.word.weight", kS8, {3, 2}, "\1\2\3\4\5\6")},
      {"embeddings.word.scale", tensor("embeddings.word.scale", kF32, {3}, floats(3))},
      {"embeddings.position.weight", tensor("embeddings.position.weight", kS8, {4, 2}, "\1\2\3\4\5\6\7\x81")},
      {"embeddings.position.scale", tensor("embeddings.position.scale", kF32, {4}, floats(4))},
      {"embeddings.layer_norm.weight", tensor("embeddings.layer_norm.weight", kF32, {2}, floats(2))},
      {"embeddings.layer_norm.bias", tensor("embeddings.layer_norm.bias", kF32, {2}, floats(2))},
      {"layer.0.attention.output.bias", tensor("layer.0.attention.output.bias", kF32, {2}, floats(2))},
      {"layer.0.attention.layer_norm.weight", tensor("layer.0.attention.layer_norm.weight", kF32, {2}, floats(2))},
      {"layer.0.attention.layer_norm.bias", tensor("layer.0.attention.layer_norm.bias", kF32, {2}, floats(2))},
      {"layer.0.ffn.up.weight", tensor("layer.0.ffn.up.weight", kS8, {2, 2}, "\1\x81\3\4")},
      {"layer.0.ffn.up.scale", tensor("layer.0.ffn.up.scale", kF32, {2}, floats(2))},
      {"layer.0.ffn.up.colsum", tensor("layer.0.ffn.up.colsum", kS32, {2}, raw<int32_t>({4, -123}))},
      {"layer.0.ffn.up.inv_smooth", tensor("layer.0.ffn.up.inv_smooth", kF32, {2}, floats(2))},
      {"layer.0.ffn.up.bias", tensor("layer.0.ffn.up.bias", kF32, {2}, floats(2))},
      {"layer.0.ffn.down.weight", tensor("layer.0.ffn.down.weight", kF32, {2, 2}, floats(4))},
      {"layer.0.ffn.down.bias", tensor("layer.0.ffn.down.bias", kF32, {2}, floats(2))},
      {"layer.0.ffn.layer_norm.weight", tensor("layer.0.ffn.layer_norm.weight", kF32, {2}, floats(2))},
      {"layer.0.ffn.layer_norm.bias", tensor("layer.0.ffn.layer_norm.bias", kF32, {2}, floats(2))},
      {"mlm.dense.weight", tensor("mlm.dense.weight", kF32, {2, 2}, floats(4))},
      {"mlm.dense.bias", tensor("mlm.dense.bias", kF32, {2}, floats(2))},
      {"mlm.layer_norm.weight", tensor("mlm.layer_norm.weight", kF32, {2}, floats(2))},
      {"mlm.layer_norm.bias", tensor("mlm.layer_norm.bias", kF32, {2}, floats(2))},
      {"mlm.colsum", tensor("mlm.colsum", kS32, {3}, raw<int32_t>({3, 7, 11}))},
      {"mlm.bias", tensor("mlm.bias", kF32, {3}, floats(3))},
      {"const.axes", tensor("const.axes", 7, {1}, raw<int64_t>({1}))},
  };
  std::string node = "any node";
  std::string hash;  // empty: the right one

  std::string build() const {
    std::string graph = bytes_field(1, node);
    for (const auto& part : tensors) graph += bytes_field(5, part.second);
    graph += bytes_field(11, "an input") + bytes_field(12, "an output");
    const std::string opset = bytes_field(8, bytes_field(1, "") + varint_field(2, 17));
    const std::string model =
        varint_field(1, 8) + opset + bytes_field(7, graph) + metadata_field("edgebert.spec", spec);
    return model + metadata_field("edgebert.graph_hash", hash.empty() ? parse_onnx(model).graph_hash : hash);
  }
};

void expect_refused(const Parts& parts, const std::string& text) {
  CHECK_ERROR(read_model_file(parts.build()), EB_MODEL_FORMAT, text);
}

template <class Hash>
std::string digest(const std::string& message, size_t piece) {
  Hash hash;
  for (size_t at = 0; at < message.size(); at += piece) {
    const std::string part = message.substr(at, piece);
    hash.update(part.data(), part.size());
  }
  return hash.hex_digest();
}

// FIPS 180-4 test vectors, and one message for each way the padding can fall around a block's end.
void test_sha2() {
  const std::string letters = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  CHECK(digest<Sha256>("", 1) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(digest<Sha256>("abc", 3) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(digest<Sha256>(letters, 5) == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  const std::string many(1000000, 'a');
  CHECK(digest<Sha256>(many, 4097) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  CHECK(digest<Sha512>("abc", 3) ==
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f");
  CHECK(digest<Sha512>(many, 4097) ==
        "e718483d0ce769644e2e42c7bc15b4638e1f98b13b2044285632a803afa973eb"
        "de0ff244877ea60a4cb0432ce577c31beb009c5c2c49aa2e4eadb217ad8cc09b");
  for (size_t size : {55, 56, 63, 64, 65, 111, 112, 119, 120, 127, 128, 129, 239, 240}) {
    const std::string message(size, 'x');
    CHECK(digest<Sha256>(message, 1) == digest<Sha256>(message, size));
    CHECK(digest<Sha512>(message, 1) == digest<Sha512>(message, size));
  }
}

// RFC 8032, section 7.1, test 2; tests/test_integrity.py compares with another implementation.
void test_ed25519() {
  const uint8_t key[32] = {0x3d, 0x40, 0x17, 0xc3, 0xe8, 0x43, 0x89, 0x5a, 0x92, 0xb7, 0x0a,
                           0xa7, 0x4d, 0x1b, 0x7e, 0xbc, 0x9c, 0x98, 0x2c, 0xcf, 0x2e, 0xc4,
                           0x96, 0x8c, 0xc0, 0xcd, 0x55, 0xf1, 0x2a, 0xf4, 0x66, 0x0c};
  const uint8_t signature[64] = {0x92, 0xa0, 0x09, 0xa9, 0xf0, 0xd4, 0xca, 0xb8, 0x72, 0x0e, 0x82, 0x0b, 0x5f,
                                 0x64, 0x25, 0x40, 0xa2, 0xb2, 0x7b, 0x54, 0x16, 0x50, 0x3f, 0x8f, 0xb3, 0x76,
                                 0x22, 0x23, 0xeb, 0xdb, 0x69, 0xda, 0x08, 0x5a, 0xc1, 0xe4, 0x3e, 0x15, 0x99,
                                 0x6e, 0x45, 0x8f, 0x36, 0x13, 0xd0, 0xf1, 0x1d, 0x8c, 0x38, 0x7b, 0x2e, 0xae,
                                 0xb4, 0x30, 0x2a, 0xee, 0xb0, 0x0d, 0x29, 0x16, 0x12, 0xbb, 0x0c, 0x00};
  CHECK(is_signed("r", signature, key));
  CHECK(!is_signed("s", signature, key));
  CHECK(!is_signed("", signature, key));
}

void test_spec() {
  const std::string good = Parts().spec;
  const EncoderSpec spec = parse_encoder_spec(good);
  CHECK(spec.heads.size() == 1 && spec.heads[0].has_decoder() && spec.find_head("logits") == &spec.heads[0]);
  CHECK(spec.find_head("logit") == nullptr && spec.vocab_size == 3 && spec.is_embedding_s8 &&
        spec.activation == Activation::kGeluErf);
  CHECK(spec.layers.size() == 1 && spec.layers[0].attention_size() == 0 && spec.layers[0].ffn_up.is_s8);
  CHECK(spec.layers[0].ffn_up.is_smoothed && !spec.layers[0].ffn_down.is_s8 && spec.layer_norm_eps == 1e-12f);

  const auto refused = [&](const std::string& from, const std::string& to, const std::string& text,
                           eb_status status = EB_MODEL_FORMAT) {
    CHECK_ERROR(parse_encoder_spec(replaced(good, from, to)), status, text);
  };
  refused("\"version\":1", "\"version\":2", "update EdgeBERT", EB_UNSUPPORTED);
  refused("\"prompts\"", "\"attention_dtype\":\"bf16\",\"prompts\"", "attention_dtype", EB_UNSUPPORTED);
  refused("\"vocab_size\":3", "\"vocab_size\":0", "vocab_size must be an integer in [1, 16777216]");
  refused("\"vocab_size\":3", "\"vocab_size\":3.0", "vocab_size must be an integer");
  refused("\"vocab_size\":3", "\"vocab_size\":99999999999999999999", "vocab_size must be an integer");
  refused("\"vocab_size\":3,", "", "vocab_size is missing");
  refused("\"max_length\":4", "\"max_length\":5", "max_length must be an integer in [1, 4]");
  refused("\"num_positions\":4", "\"position_offset\":4,\"num_positions\":4", "position_offset");
  refused("\"num_positions\":4", "\"has_padding_position\":true,\"num_positions\":4", "position_offset is missing");
  refused("\"num_positions\":4", "\"has_padding_position\":true,\"position_offset\":0,\"num_positions\":4",
          "in [1, 3]");
  refused("\"task\":\"fill-mask\"", "\"task\":\"translation\"", "task must be one of");
  refused("\"family\":\"bert\"", "\"family\":1", "family must be a string");
  refused("\"task\":\"fill-mask\"", "\"task\":\"next-sentence\",\"labels\":[\"a\",\"b\"]", "pooling must be cls");
  refused("\"task\":\"fill-mask\"", "\"task\":\"token-classification\"", "number of labels");
  // it would write rows as wide as its labels where rows of the hidden size are expected
  refused("\"task\":\"fill-mask\"", "\"task\":\"embedding\",\"pooling\":\"cls\",\"labels\":[\"a\"]",
          "labels of embedding");
  refused("\"prompts\"", "\"labels\":[1],\"prompts\"", "labels must be a list of strings");
  refused("\"prompts\"", "\"layer_norm_eps\":0,\"prompts\"", "layer_norm_eps");
  refused("\"prompts\"", "\"colour\":1,\"prompts\"", "'colour' is not known");
  refused("\"head_dim\":8", "\"head_dim\":1024,\"num_heads\":22", "given twice");
  refused("\"num_heads\":0,\"head_dim\":8", "\"head_dim\":1024,\"num_heads\":22", "num_heads * head_dim");
  refused("[\"ffn_up\"]", "[\"ffn_down\"]", "smoothed but its weight is not s8");
  refused("[\"ffn_up\"]", "[\"up\"]", "smoothed names no linear");
  refused("\"vocab_size\":3", "\"vocab_size\":\"3\"", "vocab_size must be an integer in [1, 16777216], got '\"3\"'");
  refused("\"vocab_size\":3", "\"vocab_size\":3e0", "vocab_size must be an integer");
  refused("\"vocab_size\":3", "\"vocab_size\":null", "vocab_size must be an integer");
  refused("\"prompts\"", "\"normalize\":null,\"prompts\"", "normalize must be true or false");
  refused("\"prompts\"", "\"labels\":null,\"prompts\"", "labels must be a list of strings");
  refused("\"prompts\"", "\"layer_norm_eps\":\"1e-5\",\"prompts\"", "layer_norm_eps must be a number");
  refused("\"version\":1", "\"version\":1,\"version\":1", "not valid JSON");
  refused("\"version\":1", "\"version\":1.", "not valid JSON");
  CHECK_ERROR(parse_encoder_spec("[]"), EB_MODEL_FORMAT, "expected {");
  CHECK_ERROR(parse_encoder_spec(good + "]"), EB_MODEL_FORMAT, "text after the value");
  CHECK_ERROR(parse_encoder_spec(good.substr(0, good.size() - 1)), EB_MODEL_FORMAT, "expected }");
}

void test_sound_file() {
  const std::string bytes = Parts().build();
  for (size_t offset = 0; offset < 4; ++offset) {  // raw data at every alignment
    const std::string shifted = std::string(offset, '\0') + bytes;
    const ModelFile file = read_model_file(std::string_view(shifted).substr(offset));
    float value = 0;
    std::memcpy(&value, file.weights.find("mlm.bias")->data + 8, sizeof value);
    CHECK(value == 0.5f);
    CHECK(file.weights.find("const.axes") == nullptr);
  }
}

// Its sums are computed, wherever the views of them go.
void test_weight_only_file() {
  Parts parts;
  parts.spec = replaced(parts.spec, "\"prompts\"", "\"is_weight_only\":true,\"prompts\"");
  expect_refused(parts, "is not of a weight-only file");
  parts.tensors.erase("layer.0.ffn.up.colsum");
  expect_refused(parts, "mlm.colsum is not of a weight-only file");
  parts.tensors.erase("mlm.colsum");
  const std::string bytes = parts.build();
  ModelFile first = read_model_file(bytes);
  const ModelFile file = std::move(first);
  const TensorView *up = file.weights.find("layer.0.ffn.up.colsum"), *words = file.weights.find("mlm.colsum");
  CHECK(up != nullptr && up->dtype == DType::kS32 && up->shape == std::vector<int64_t>{2} && up->num_bytes == 8);
  CHECK(words != nullptr && words->num_bytes == 12);
  int32_t sums[5];
  std::memcpy(sums, up->data, up->num_bytes);
  std::memcpy(sums + 2, words->data, words->num_bytes);
  CHECK(sums[0] == 4 && sums[1] == -123 && sums[2] == 3 && sums[3] == 7 && sums[4] == 11);
  parts.spec = replaced(parts.spec, "\"prompts\"", "\"attention_dtype\":\"s8\",\"prompts\"");
  expect_refused(parts, "is_weight_only has attention in f32");
}

void test_damaged_file() {
  const std::string bytes = Parts().build();
  for (size_t size = 0; size < bytes.size(); ++size) {
    CHECK_ERROR(read_model_file(std::string_view(bytes).substr(0, size)), EB_MODEL_FORMAT, "");
  }
  CHECK_ERROR(read_model_file("hello, this is no model"), EB_MODEL_FORMAT, "not an ONNX file");
  CHECK_ERROR(read_model_file(varint_field(1, 8) + bytes_field(7, "")), EB_MODEL_FORMAT, "ONNX Runtime");
  CHECK_ERROR(read_model_file(bytes + bytes_field(7, "")), EB_MODEL_FORMAT, "two graphs");
  CHECK_ERROR(read_model_file(bytes + metadata_field("edgebert.spec", "{}")), EB_MODEL_FORMAT, "given twice");
  CHECK_ERROR(read_model_file(bytes + std::string(11, '\xff')), EB_MODEL_FORMAT, "longer than 64 bits");
  CHECK_ERROR(read_model_file(bytes + "\x08" + std::string(9, '\x80') + "\x02"), EB_MODEL_FORMAT, "64 bits");
  CHECK_ERROR(read_model_file(bytes + varint(9 << 3 | 2) + varint(~uint64_t{0})), EB_MODEL_FORMAT, "truncated");
  CHECK_ERROR(read_model_file(bytes + varint(9 << 3 | 3)), EB_MODEL_FORMAT, "wire type 3");
}

void test_tampered_file() {
  Parts parts;
  parts.hash = parse_onnx(parts.build()).graph_hash;
  CHECK(parts.hash.size() == 64);
  read_model_file(parts.build());
  parts.node = "Any node";
  expect_refused(parts, "graph was changed");
  parts = Parts();
  parts.hash = parse_onnx(parts.build()).graph_hash;
  parts.tensors["const.axes"] = tensor("const.axes", 7, {1}, raw<int64_t>({0}));
  expect_refused(parts, "graph was changed");

  const std::string sound = Parts().build();
  CHECK_ERROR(read_model_file(sound + bytes_field(8, varint_field(2, 18))), EB_MODEL_FORMAT, "operator set");
  CHECK_ERROR(read_model_file(sound + bytes_field(8, bytes_field(1, "x") + varint_field(2, 17))), EB_MODEL_FORMAT,
              "operator set");
  CHECK_ERROR(read_model_file(sound + bytes_field(25, "")), EB_MODEL_FORMAT, "operator set");

  const auto with = [](const std::string& name, int type, const std::vector<int64_t>& dims, const std::string& data) {
    Parts changed;
    changed.tensors[name] = tensor(name, type, dims, data);
    return changed;
  };
  parts = Parts();
  parts.tensors.erase("mlm.bias");
  expect_refused(parts, "tensor mlm.bias is missing");
  expect_refused(with("pooler.bias", kF32, {2}, floats(2)), "the file holds 25 weights, its spec calls for 24");
  expect_refused(with("mlm.bias", kF32, {2}, floats(2)), "tensor mlm.bias: expected f32 [3], got f32 [2]");
  expect_refused(with("mlm.bias", kF32, {3, 1}, floats(3)), "expected f32 [3], got f32 [3, 1]");
  expect_refused(with("mlm.bias", kF32, {-3}, floats(3)), "got f32 [-3]");
  expect_refused(with("mlm.bias", kS32, {3}, floats(3)), "expected f32 [3], got s32 [3]");
  expect_refused(with("mlm.bias", 10, {3}, floats(3)), "got type 10");
  expect_refused(with("mlm.bias", kF32, {3}, floats(4)), "expected 12 bytes, got 16");
  expect_refused(with("layer.0.ffn.up.colsum", kS32, {2}, raw<int32_t>({4, -122})), "not the weight's sums");
  expect_refused(with("mlm.colsum", kS32, {3}, raw<int32_t>({3, 7, 12})), "not the weight's sums");
  expect_refused(with("layer.0.ffn.up.weight", kS8, {2, 2}, "\1\x80\3\4"), "-128");
  expect_refused(with("embeddings.word.weight", kS8, {3, 2}, "\1\2\3\4\5\x80"), "-128");
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  expect_refused(with("layer.0.ffn.up.scale", kF32, {2}, raw<float>({1, infinity})), "value 1 is not finite");
  expect_refused(with("layer.0.ffn.up.inv_smooth", kF32, {2}, raw<float>({nan, 1})), "value 0 is not finite");
  expect_refused(with("embeddings.position.scale", kF32, {4}, raw<float>({1, 1, 1, nan})), "value 3 is not finite");

  const std::string bias = Parts().tensors["mlm.bias"];
  parts = Parts();
  parts.tensors["mlm.bias"] = bias + bytes_field(13, "location");
  expect_refused(parts, "stored in another file");
  parts.tensors["mlm.bias"] = bias + varint_field(14, 1);
  expect_refused(parts, "stored in another file");
  parts.tensors["mlm.bias"] = bias + bytes_field(4, floats(1));
  expect_refused(parts, "not stored as raw data");
  parts.tensors["mlm.bias"] = tensor("mlm.bias", kF32, {1, 1, 1, 1, 1, 1, 1, 1, 3}, floats(3));
  expect_refused(parts, "more than 8 dimensions");
  parts.tensors["mlm.bias"] =
      bytes_field(1, "\3") + varint_field(2, kF32) + bytes_field(8, "mlm.bias") + bytes_field(9, floats(3));
  read_model_file(parts.build());  // packed dims are the same message
  parts.tensors["again"] = bias;
  expect_refused(parts, "mlm.bias is given twice");

  parts = Parts();
  parts.spec = replaced(parts.spec, "\"hidden_size\":2", "\"hidden_size\":3");
  expect_refused(parts, "embeddings.projection.weight is missing");
  parts.spec = std::string(5 << 20, ' ');
  expect_refused(parts, "edgebert.spec has 5242880 bytes");
}

void test_mapped_file() {
  CHECK_ERROR(MappedFile("/nonexistent/model.onnx"), EB_MODEL_FORMAT, "No such file");
#if defined(_WIN32)
  CHECK_ERROR(MappedFile("."), EB_MODEL_FORMAT, "Is a directory");
  CHECK_ERROR(MappedFile("NUL"), EB_MODEL_FORMAT, "not a regular file");
#else
  CHECK_ERROR(MappedFile("."), EB_MODEL_FORMAT, "not a regular file");
  CHECK_ERROR(MappedFile("/dev/null"), EB_MODEL_FORMAT, "not a regular file");
#endif
  // What is forgotten is still there.
  std::string content((1 << 20) + 3, '\0');
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7 + i / 251);
  const char* path = "model_file_test.tmp";
  std::ofstream(path, std::ios::binary) << content;
  {
    const MappedFile file(path);
    for (int i = 0; i < 2; ++i) {
      CHECK(file.bytes() == content);
      file.forget();
    }
    CHECK(file.bytes() == content);
  }
  std::remove(path);
}

}  // namespace
}  // namespace edgebert

int main() {
  edgebert::test_sha2();
  edgebert::test_ed25519();
  edgebert::test_spec();
  edgebert::test_sound_file();
  edgebert::test_weight_only_file();
  edgebert::test_damaged_file();
  edgebert::test_tampered_file();
  edgebert::test_mapped_file();
}
