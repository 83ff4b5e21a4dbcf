// Fuzzes the loader: random changes to a sound model file must be refused or run, never crash.
//
//   fuzz_model MODEL COUNT SEED
//
// Half of the mutants get a graph hash that fits again, so that the code behind that check is reached. A mutant that
// loads runs a small batch. Run it under AddressSanitizer; anything but a clean status aborts.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "edgebert.h"
#include "format/onnx_proto.h"
#include "onnx_wire.h"

namespace edgebert {
namespace {

std::mt19937_64 generator;

size_t pick(size_t count) { return count == 0 ? 0 : generator() % count; }

char random_byte() {
  static constexpr unsigned char kInteresting[] = {0x00, 0x01, 0x02, 0x7F, 0x80, 0x81, 0xFF};
  return static_cast<char>(pick(2) != 0 ? kInteresting[pick(sizeof kInteresting)] : pick(256));
}

// The parts of a sound file, taken apart so that they can be changed and put together with fitting lengths.
struct Parts {
  std::vector<std::string> graph_fields;  // each with its key and length
  std::vector<std::pair<std::string, std::string>> metadata;

  explicit Parts(const std::string& file) {
    for (const auto& [number, field, content] : split(file)) {
      if (number == 7) {
        for (const auto& part : split(content)) graph_fields.push_back(part.field);
      } else if (number == 14) {
        std::pair<std::string, std::string> entry;
        for (const auto& part : split(content)) (part.number == 1 ? entry.first : entry.second) = part.content;
        metadata.push_back(entry);
      }
    }
  }

  std::string join() const {
    std::string graph, file = varint_field(1, 8);
    for (const std::string& field : graph_fields) graph += field;
    file += bytes_field(7, graph);
    for (const auto& [key, value] : metadata) file += metadata_field(key, value);
    return file;
  }

 private:
  struct Part {
    uint64_t number;
    std::string field, content;
  };

  static uint64_t read_varint(std::string_view bytes, size_t* at) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const uint64_t byte = static_cast<unsigned char>(bytes.at((*at)++));
      value |= (byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
  }

  // The fields of a message, which is known to be sound.
  static std::vector<Part> split(std::string_view message) {
    std::vector<Part> parts;
    for (size_t at = 0; at < message.size();) {
      const size_t start = at;
      const uint64_t key = read_varint(message, &at);
      const uint64_t value = read_varint(message, &at);
      std::string content;
      if ((key & 7) == 2) {
        content = message.substr(at, value);
        at += value;
      }
      parts.push_back({key >> 3, std::string(message.substr(start, at - start)), content});
    }
    return parts;
  }
};

// Random bytes flipped, overwritten, inserted, removed or copied around, near the start where most structure lies.
void mutate_bytes(std::string* bytes) {
  for (size_t i = 0, count = 1 + pick(4); i < count && !bytes->empty(); ++i) {
    const size_t at = pick(pick(2) != 0 ? std::min<size_t>(bytes->size(), 64) : bytes->size());
    const size_t size = std::min(1 + pick(16), bytes->size() - at);
    switch (pick(6)) {
      case 0:
        (*bytes)[at] = static_cast<char>((*bytes)[at] ^ 1 << pick(8));
        break;
      case 1:
        (*bytes)[at] = random_byte();
        break;
      case 2:
        bytes->insert(at, 1, random_byte());
        break;
      case 3:
        bytes->erase(at, size);
        break;
      case 4:
        bytes->insert(pick(bytes->size()), bytes->substr(at, size));
        break;
      case 5:
        bytes->resize(at);
        break;
    }
  }
}

// Numbers, words and members of the spec replaced by others that may be just inside or just outside what is allowed.
void mutate_spec(std::string* spec) {
  static const char* const kValues[] = {"0",
                                        "1",
                                        "2",
                                        "-1",
                                        "7",
                                        "65000",
                                        "65001",
                                        "1048576",
                                        "1e9",
                                        "0.5",
                                        "1e-12",
                                        "[]",
                                        "{}",
                                        "null",
                                        "true",
                                        "\"s8\"",
                                        "\"f32\"",
                                        "\"cls\"",
                                        "\"mean\"",
                                        "\"none\"",
                                        "\"relu\"",
                                        "\"fill-mask\"",
                                        "[\"a\",\"b\"]",
                                        "\"embedding\"",
                                        "\"text-classification\"",
                                        "\"question-answering\"",
                                        "\"pretraining\""};
  for (size_t i = 0, count = 1 + pick(3); i < count; ++i) {
    const size_t colon = spec->find(':', pick(spec->size()));
    if (colon == std::string::npos) continue;
    const size_t end = std::min(spec->find_first_of(",}]", colon), spec->size());
    spec->replace(colon + 1, end - colon - 1, kValues[pick(std::size(kValues))]);
  }
  if (pick(8) == 0) mutate_bytes(spec);
}

std::string mutate(const std::string& file, Parts parts) {
  std::vector<std::string>& fields = parts.graph_fields;
  const size_t at = pick(fields.size());
  std::string bytes;
  switch (pick(6)) {
    case 0:  // anywhere, lengths left as they were
      bytes = file;
      mutate_bytes(&bytes);
      return bytes;
    case 1:  // one part of the graph
      mutate_bytes(&fields[at]);
      break;
    case 2:
      fields.erase(fields.begin() + static_cast<std::ptrdiff_t>(at));
      break;
    case 3:
      fields[at] = fields[pick(fields.size())];
      break;
    case 4: {
      std::string& value = parts.metadata[pick(parts.metadata.size())].second;
      mutate_bytes(&value);
      break;
    }
    default:
      for (auto& [key, value] : parts.metadata) {
        if (key == "edgebert.spec") mutate_spec(&value);
      }
  }
  return parts.join();
}

// Writes the hash of the mutant's own graph over the one it holds.
void repair_hash(std::string* file) {
  try {
    const OnnxModel model = parse_onnx(*file);
    const auto it = model.metadata.find("edgebert.graph_hash");
    if (it == model.metadata.end() || it->second.size() != model.graph_hash.size()) return;
    std::memcpy(file->data() + (it->second.data() - file->data()), model.graph_hash.data(), model.graph_hash.size());
  } catch (const Error&) {  // it will be refused before its hash is looked at
  }
}

[[noreturn]] void die(const char* call, eb_status status) {
  std::fprintf(stderr, "fuzz_model: %s gave status %d: %s\n", call, status, eb_last_error());
  std::abort();
}

void run(eb_model* model) {
  static const char* const kOutputs[] = {"last_hidden_state",      "sentence_embedding", "logits",
                                         "start_logits",           "end_logits",         "prediction_logits",
                                         "seq_relationship_logits"};
  std::vector<int32_t> ids, cu_seqlens = {0};
  for (size_t i = 0, count = 1 + pick(4); i < count; ++i) {
    for (size_t length = 1 + pick(5); length > 0; --length) ids.push_back(static_cast<int32_t>(pick(3)));
    cu_seqlens.push_back(static_cast<int32_t>(ids.size()));
  }
  const std::vector<int32_t> types(ids.size(), 0);
  const eb_batch batch = {
      ids.data(), types.data(), cu_seqlens.data(), static_cast<int32_t>(cu_seqlens.size() - 1), nullptr, 0};
  for (const char* name : kOutputs) {
    const size_t capacity = pick(2) != 0 ? 1 << 16 : pick(4096);
    const std::unique_ptr<float[]> data(new float[capacity]);
    eb_output output = {name, data.get(), capacity};
    const eb_status status = eb_run(model, &batch, &output, 1);
    if (status != EB_OK && status != EB_INVALID_INPUT) die("eb_run", status);
  }
}

int fuzz(const char* path, int count, unsigned seed) {
  std::ifstream stream(path, std::ios::binary);
  const std::string file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  eb_model* model = nullptr;
  eb_status status = eb_load_memory(file.data(), file.size(), nullptr, &model);
  if (status != EB_OK) die("the unchanged model: eb_load_memory", status);
  run(model);
  eb_free(model);

  generator.seed(seed);
  const Parts parts(file);
  int num_loaded = 0;
  for (int i = 0; i < count; ++i) {
    std::string mutant = mutate(file, parts);
    if (pick(2) != 0) repair_hash(&mutant);
    // an exact copy on the heap, so that a read past the end is seen
    const std::unique_ptr<char[]> bytes(new char[mutant.size()]);
    std::copy(mutant.begin(), mutant.end(), bytes.get());
    eb_options options = {};
    options.num_threads = static_cast<int32_t>(1 + pick(2));
    options.verify = pick(8) == 0;
    status = eb_load_memory(bytes.get(), mutant.size(), &options, &model);
    if (status == EB_OK) {
      ++num_loaded;
      run(model);
      eb_free(model);
    } else if (status != EB_MODEL_FORMAT && status != EB_UNSUPPORTED) {
      die("eb_load_memory", status);
    }
  }
  std::printf("fuzz_model: %d mutants of %s, %d loaded and ran, none crashed\n", count, path, num_loaded);
  return 0;
}

}  // namespace
}  // namespace edgebert

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: fuzz_model MODEL COUNT SEED\n");
    return 2;
  }
  return edgebert::fuzz(argv[1], std::atoi(argv[2]), static_cast<unsigned>(std::atoi(argv[3])));
}
