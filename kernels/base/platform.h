// What operating systems and processors do each in their own way. No other file asks which of them it is compiled for,
// but for the instruction sets of cpu/ and the program of roof/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#ifndef EDGEBERT_THREADS
#define EDGEBERT_THREADS 1  // 0: everything runs on the calling thread
#endif

namespace edgebert {

// ---- Memory and files -------------------------------------------------------------------------------------------

struct FreeAligned {
  void operator()(void* p) const;
};
using AlignedBytes = std::unique_ptr<unsigned char, FreeAligned>;

// `alignment` is a power of two. Throws std::bad_alloc.
AlignedBytes allocate_aligned(size_t bytes, size_t alignment);

struct FreeZeros {
  size_t bytes = 0;
  void operator()(void* p) const;
};
using ZeroBytes = std::unique_ptr<void, FreeZeros>;

// Zeros, aligned to 64 bytes. Those that nobody touches take no memory, where the system can do that. Throws
// std::bad_alloc.
ZeroBytes allocate_zeros(size_t bytes);

// What large blocks are made of.
#if defined(__wasm__)
constexpr size_t kHugePage = size_t{64} << 10;
#else
constexpr size_t kHugePage = size_t{2} << 20;
#endif
// A hint, for memory that is read end to end again and again.
void prefer_huge_pages(void* memory, size_t bytes);

// A whole file, mapped read-only for as long as the object lives; read, where there is no mapping.
class MappedFile {
 public:
  // The path is in UTF-8 on Windows, and the system's own bytes elsewhere. Throws Error(EB_MODEL_FORMAT) if it is not
  // a readable file with at least one byte.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view bytes() const { return {data_, size_}; }
  // A hint that what was read is not wanted soon: it no longer counts as this process's memory until it is read again.
  // Of the whole file, because the system maps neighbours along, megabytes of them.
  void forget() const;

 private:
  const char* data_ = nullptr;
  size_t size_ = 0;
};

// ---- CPUs and threads -------------------------------------------------------------------------------------------

// CPUs in this process's affinity mask, cut to its cgroup's CPU quota (v1 and v2, rounded up), at least 1; one without
// threads.
int usable_cpus();

// Whether 64-bit Arm has sdot here, of Armv8.2.
bool has_arm_dot_product();

// Seconds that this thread has had a CPU; on Windows, whose clock of that kind is too coarse, and in WebAssembly, which
// has none, seconds passed.
double thread_seconds();

// For loops that wait for another thread: some ten cycles that leave the core to its other threads.
inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // where yield is a no-op on most cores
#endif
}

#if EDGEBERT_THREADS
using Mutex = std::mutex;
#else
struct Mutex {
  void lock() {}
  void unlock() {}
};
#endif
using Lock = std::lock_guard<Mutex>;

// How many forks this process is away from the one that loaded the library. Unlike process ids it never comes again in
// a descendant, and costs no system call.
uint32_t fork_depth();

}  // namespace edgebert
