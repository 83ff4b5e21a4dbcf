// The heap of the binary, in place of the C library's, which rounds every size up to a power of two: a model's file of
// 24 MB would take 34. Single-threaded. Small blocks are kept by their size and used again as they are; large ones lie
// in a list by address, the first that fits is cut, and neighbours are joined.
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>

extern "C" unsigned char __heap_base;

namespace {

constexpr size_t kAlign = 16, kPage = 65536, kLargestSmall = 1024, kChunk = 16384;

// Before each block that is in use; of a large block that is free, `next` follows it.
struct Header {
  size_t size;   // of what follows, a multiple of kAlign
  size_t space;  // from the beginning of the whole piece to this header, where the block is aligned to more
};
struct Free {
  Header header;
  Free* next;
};
static_assert(sizeof(Header) <= kAlign && sizeof(Free) <= 2 * kAlign);

Free* small_blocks[kLargestSmall / kAlign + 1];
Free* large_blocks;
uintptr_t top;  // of what the memory's owner has been asked for

Header* header_of(void* p) { return reinterpret_cast<Header*>(static_cast<char*>(p) - kAlign); }
char* end_of(Free* block) { return reinterpret_cast<char*>(block) + kAlign + block->header.size; }

void free_large(Free* block) {
  Free** at = &large_blocks;
  Free* before = nullptr;
  while (*at != nullptr && *at < block) {
    before = *at;
    at = &before->next;
  }
  block->next = *at;
  *at = block;
  if (block->next != nullptr && end_of(block) == reinterpret_cast<char*>(block->next)) {
    block->header.size += kAlign + block->next->header.size;
    block->next = block->next->next;
  }
  if (before != nullptr && end_of(before) == reinterpret_cast<char*>(block)) {
    before->header.size += kAlign + block->header.size;
    before->next = block->next;
  }
}

// More memory, as a free block; what is free at its end is used too.
bool grow(size_t size) {
  if (top == 0) top = (reinterpret_cast<uintptr_t>(&__heap_base) + kAlign - 1) / kAlign * kAlign;
  const size_t have = __builtin_wasm_memory_size(0) * kPage;
  Free* last = large_blocks;
  while (last != nullptr && last->next != nullptr) last = last->next;
  const uintptr_t from =
      last != nullptr && reinterpret_cast<uintptr_t>(end_of(last)) == top ? reinterpret_cast<uintptr_t>(last) : top;
  const uint64_t wanted = uint64_t{from} + kAlign + size;
  if (wanted > (uint64_t{1} << 32) - kPage) return false;
  size_t now = have;
  if (wanted > have) {
    const size_t pages = (wanted - have + kPage - 1) / kPage;
    if (__builtin_wasm_memory_grow(0, pages) == SIZE_MAX) return false;
    now = have + pages * kPage;
  }
  if (now < top + 2 * kAlign) return true;
  auto* block = reinterpret_cast<Free*>(top);
  block->header = {now - top - kAlign, 0};
  top = now;
  free_large(block);
  return true;
}

void* take_large(size_t size) {
  for (int tries = 0; tries < 2; ++tries) {
    for (Free** at = &large_blocks; *at != nullptr; at = &(*at)->next) {
      Free* const block = *at;
      if (block->header.size < size) continue;
      const size_t left = block->header.size - size;
      if (left >= 2 * kAlign) {
        block->header.size = size;
        auto* const rest = reinterpret_cast<Free*>(end_of(block));
        rest->header = {left - kAlign, 0};
        rest->next = block->next;
        *at = rest;
      } else {
        *at = block->next;
      }
      block->header.space = 0;
      return reinterpret_cast<char*>(block) + kAlign;
    }
    if (tries == 0 && !grow(size)) break;
  }
  errno = ENOMEM;
  return nullptr;
}

void* take_small(size_t size) {
  Free*& blocks = small_blocks[size / kAlign];
  if (blocks == nullptr) {
    auto* chunk = static_cast<char*>(take_large(kChunk));  // never given back
    if (chunk == nullptr) return nullptr;
    for (size_t at = 0; at + kAlign + size <= kChunk; at += kAlign + size) {
      auto* block = reinterpret_cast<Free*>(chunk + at);
      block->header = {size, 0};
      block->next = blocks;
      blocks = block;
    }
  }
  Free* const block = blocks;
  blocks = block->next;
  return reinterpret_cast<char*>(block) + kAlign;
}

size_t rounded(size_t size) { return size == 0 ? kAlign : (size + kAlign - 1) / kAlign * kAlign; }

}  // namespace

extern "C" {

void* malloc(size_t size) {
  if (size > SIZE_MAX - kPage) return nullptr;
  size = rounded(size);
  return size <= kLargestSmall ? take_small(size) : take_large(size);
}

void free(void* p) {
  if (p == nullptr) return;
  Header* header = header_of(p);
  if (header->space > 0) header = reinterpret_cast<Header*>(reinterpret_cast<char*>(header) - header->space);
  auto* block = reinterpret_cast<Free*>(header);
  if (header->size > kLargestSmall) {
    free_large(block);
  } else {
    block->next = small_blocks[header->size / kAlign];
    small_blocks[header->size / kAlign] = block;
  }
}

void* calloc(size_t count, size_t size) {
  if (size > 0 && count > SIZE_MAX / size) return nullptr;
  void* p = malloc(count * size);
  return p == nullptr ? nullptr : std::memset(p, 0, count * size);
}

void* aligned_alloc(size_t alignment, size_t size) {
  if (alignment <= kAlign) return malloc(size);
  if (size > SIZE_MAX - alignment - kPage) return nullptr;
  auto* p = static_cast<char*>(malloc(rounded(size) + alignment + kLargestSmall));
  if (p == nullptr) return nullptr;
  const uintptr_t at = (reinterpret_cast<uintptr_t>(p) + alignment - 1) / alignment * alignment;
  const size_t space = at - reinterpret_cast<uintptr_t>(p);
  if (space > 0) *header_of(reinterpret_cast<void*>(at)) = {0, space};
  return reinterpret_cast<void*>(at);
}

int posix_memalign(void** p, size_t alignment, size_t size) {
  *p = aligned_alloc(alignment, size);
  return *p == nullptr ? ENOMEM : 0;
}

void* realloc(void* p, size_t size) {
  if (p == nullptr) return malloc(size);
  const Header* header = header_of(p);
  void* moved = malloc(size);
  if (moved == nullptr) return nullptr;
  const size_t had = header->size;  // nobody resizes what is aligned
  std::memcpy(moved, p, had < size ? had : size);
  free(p);
  return moved;
}
}
