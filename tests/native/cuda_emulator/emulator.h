// Runs CUDA kernels on the CPU, so that their own sources can be tested where there is no GPU.
//
// A block's threads are fibers on one CPU thread: each runs until it must wait for others (__syncthreads, or an
// instruction of the whole warp), then the next runs. It is slow and exact, and strict where a GPU is not:
// - an asynchronous copy fills its target with 0xff when it is issued, and delivers when it is waited for;
// - device and shared memory begin as 0xff, NaN in every float type, and are heap blocks of exactly the size asked for,
//   so that AddressSanitizer sees a step past their ends;
// - a barrier that some threads of the block or lanes of the warp do not reach ends the process, as does a misaligned
//   copy or, though it only costs time, rows of ldmatrix that share memory banks;
// - set_reversed makes later threads run first: results that differ tell of a missing barrier.
// Not emulated: memory consistency inside a warp between barriers, and time.
#pragma once

#include <stddef.h>

#include <functional>

#include "cuda_runtime_api.h"

// Of the thread that runs.
struct uint3 {
  unsigned x, y, z;
};
extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim;

namespace emulator {

void sync_block();
void sync_warp();
float shuffle_xor(float x, int lanes);

// Queues a grid of `body` on the stream.
cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, std::function<void()> body);

void set_reversed(bool is_reversed);

}  // namespace emulator
