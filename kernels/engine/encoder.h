// Encoder: a loaded model on the device that this library is for; runs packed batches. libedgebert links the one in
// cpu/encoder.cc, on CPUs, libedgebert_cuda the one in cuda/encoder.cc.
#pragma once

#include <cstddef>
#include <memory>

#include "edgebert.h"
#include "format/encoder_spec.h"
#include "format/model_file.h"

namespace edgebert {

class Encoder {
 public:
  // Looks for what the options ask for. Throws Error(EB_UNAVAILABLE) if it is not there.
  static void require(const eb_options& options);

  // Copies what it needs out of a file, which may go away afterwards; what was copied is forgotten. Throws as
  // require(), and Error(EB_UNSUPPORTED) for a model that it does not run.
  Encoder(const ModelFile& file, const eb_options& options);
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
