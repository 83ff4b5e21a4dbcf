// Arena: 64-byte aligned memory that lives as long as the model, in large blocks the OS may back with huge pages.
#pragma once

#include <cstddef>
#include <vector>

#include "base/platform.h"

namespace edgebert {

class Arena {
 public:
  // Puts what is allocated next, so many bytes together, into one block.
  void reserve(size_t bytes) { grow(bytes); }

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
  void grow(size_t bytes) {
    const size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    blocks_.push_back(allocate_aligned(size, kHugePage));
    next_ = blocks_.back().get();
    left_ = size;
    prefer_huge_pages(next_, size);  // weights are read at every forward pass
  }

  std::vector<AlignedBytes> blocks_;
  unsigned char* next_ = nullptr;
  size_t left_ = 0;
};

}  // namespace edgebert
