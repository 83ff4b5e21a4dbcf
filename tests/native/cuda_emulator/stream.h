// Streams of the emulator: work runs when it is queued, or goes into the graph that the stream is captured into.
#pragma once

#include <functional>
#include <vector>

#include "cuda_runtime_api.h"

struct CUgraph_st {
  std::vector<std::function<void()>> work;
};
struct CUgraphExec_st : CUgraph_st {};
struct CUstream_st {
  CUgraph_st* captured = nullptr;
};

namespace emulator {
inline void queue(cudaStream_t stream, std::function<void()> work) {
  if (stream && stream->captured)
    stream->captured->work.push_back(std::move(work));
  else
    work();
}
}  // namespace emulator
