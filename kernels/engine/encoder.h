// Encoder: a loaded model on the device that this library is for; runs packed batches. libedgebert links the one in
// cpu/encoder.cc, on CPUs, libedgebert_cuda the one in cuda/encoder.cc.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

#include "edgebert.h"
#include "format/encoder_spec.h"

namespace edgebert {

class Encoder {
 public:
  // Reads a model file and copies what it needs out of it; the bytes may go away afterwards. What the options ask for
  // is looked for first: throws Error(EB_UNAVAILABLE) if it is not there, or what read_model_file throws. The file's
  // tokenizer, which is a part of the bytes or nothing, is left to the caller.
  Encoder(std::string_view bytes, const eb_options& options, std::string_view* tokenizer_json);
  ~Encoder();

  // The batch and the outputs have been checked by the caller (ids, types and lengths in range, names known,
  // capacities large enough, at least one sequence). Several threads may call it: on CPUs runs go on side by side, with
  // CUDA they take turns. In a forked child it works on CPUs as in the parent; with CUDA, whose contexts no fork
  // survives, it throws Error(EB_UNAVAILABLE).
  void run(const eb_batch& batch, const eb_output* outputs, int num_outputs);

  const EncoderSpec& spec() const;
  const char* isa() const;
  int num_threads() const;
  size_t workspace_bytes() const;

  // What the functions of these names in edgebert.h answer. usable_isas throws Error(EB_UNAVAILABLE) if there is none.
  static const char* built_isas();
  static const char* usable_isas();
  static int default_threads();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace edgebert
