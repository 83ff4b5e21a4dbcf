// Arena: 64-byte aligned memory that lives as long as the model, in large blocks the OS may back with huge pages.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace edgebert {

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
using AlignedBytes = std::unique_ptr<unsigned char, FreeDeleter>;

inline AlignedBytes allocate_aligned(size_t bytes, size_t alignment) {
  void* p = nullptr;
  if (posix_memalign(&p, alignment, bytes) != 0) throw std::bad_alloc();
  return AlignedBytes(static_cast<unsigned char*>(p));
}

class Arena {
 public:
  template <class T>
  T* allocate(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    if (bytes > left_) grow(bytes);
    T* p = reinterpret_cast<T*>(next_);
    next_ += bytes;
    left_ -= bytes;
    return p;
  }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;

  void grow(size_t bytes) {
    const size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    blocks_.push_back(allocate_aligned(size, kHugePage));
    next_ = blocks_.back().get();
    left_ = size;
#if defined(__linux__)
    madvise(next_, size, MADV_HUGEPAGE);  // a hint: weights are read end to end at every forward pass
#endif
  }

  std::vector<AlignedBytes> blocks_;
  unsigned char* next_ = nullptr;
  size_t left_ = 0;
};

}  // namespace edgebert
