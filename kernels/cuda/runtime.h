// What the host side needs of the CUDA runtime: devices, errors as exceptions, memory and a stream that free
// themselves.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <utility>

namespace edgebert {
namespace cuda {

// Throws Error(EB_OUT_OF_MEMORY) where memory ran out, else Error(EB_INTERNAL) for anything but success.
void check(cudaError_t error, const char* what);

struct Device {
  int index;
  std::string name;
  int major, minor;  // compute capability
  int num_multiprocessors;
};

// Throws Error(EB_UNAVAILABLE): no driver, one that is too old, no such device, or one that this build cannot run on.
Device find_device(int index);

// Throws Error(EB_UNAVAILABLE) for a process that was forked from one in which CUDA was at work.
[[noreturn]] void fail_after_fork();

// "cuda:0 NAME (sm_90)", comma-separated, of the devices that this build can run on. Throws Error(EB_UNAVAILABLE) if
// there is none.
std::string list_devices();

// Makes a device the calling thread's, for as long as it lives.
class UseDevice {
 public:
  explicit UseDevice(int index) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    check(cudaSetDevice(index), "cudaSetDevice");
  }
  ~UseDevice() { cudaSetDevice(previous_); }
  UseDevice(const UseDevice&) = delete;
  UseDevice& operator=(const UseDevice&) = delete;

 private:
  int previous_ = 0;
};

// A block of memory, aligned to 256 bytes at least; `allocate` and `release` are the runtime's functions.
template <cudaError_t (*allocate)(void**, size_t), cudaError_t (*release)(void*)>
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) : bytes_(bytes) {
    if (bytes) check(allocate(&data_, bytes), "allocating memory");
  }
  ~Memory() {
    if (data_) release(data_);
  }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }

  unsigned char* data() const { return static_cast<unsigned char*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  void swap(Memory& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

inline cudaError_t allocate_device(void** data, size_t bytes) { return cudaMalloc(data, bytes); }
inline cudaError_t allocate_pinned(void** data, size_t bytes) { return cudaMallocHost(data, bytes); }
using DeviceMemory = Memory<allocate_device, cudaFree>;
using PinnedMemory = Memory<allocate_pinned, cudaFreeHost>;  // on the host; copies of it need no staging

}  // namespace cuda
}  // namespace edgebert
