// Encoder: a loaded model, packed for one ISA; runs packed batches.
#pragma once

#include <cstddef>
#include <memory>

#include "edgebert.h"
#include "engine/encoder_spec.h"
#include "engine/encoder_weights.h"

namespace edgebert {

struct KernelTable;  // cpu/kernel_table.h

class Encoder {
 public:
  // Copies what it needs out of `weights`, laid out for `kernels`; the file may be unmapped afterwards.
  Encoder(const EncoderSpec& spec, const EncoderWeights& weights, const KernelTable& kernels, int num_threads);
  ~Encoder();

  // The batch and the outputs have been checked by the caller (ids, types and lengths in range, names known,
  // capacities large enough, at least one sequence). Not reentrant: the caller lets runs take turns.
  void run(const eb_batch& batch, const eb_output* outputs, int num_outputs);

  const char* isa() const;
  int num_threads() const;
  size_t workspace_bytes() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace edgebert
