// Linked into all that zig builds, in place of two parts of the C++ library that zig links statically.
#include <stdlib.h>

#include <new>

#define EB_HIDDEN __attribute__((visibility("hidden")))

// A tenth of the library, to make the type's name readable in the message about an exception that nobody catches.
extern "C" EB_HIDDEN char* __cxa_demangle(const char*, char*, size_t*, int* status) {
  if (status != nullptr) *status = -1;  // out of memory, which callers expect
  return nullptr;
}

#if defined(__APPLE__)
// zig's linker exports the C++ library's new and delete, which would then be those of the app, and has no option that
// hides them. C++ does not let them be declared hidden, so these have their symbols' names; all of them, or the C++
// library's are linked too. What a form of delete is told besides the pointer is of no use to free().
#define EB_NEW(name, symbol, parameters, memory)        \
  EB_HIDDEN void* name parameters __asm__("__" symbol); \
  void* name parameters { return memory; }
#define EB_DELETE(name, symbol)                               \
  EB_HIDDEN void name(void* p) noexcept __asm__("__" symbol); \
  void name(void* p) noexcept { free(p); }

namespace {

void* allocate(size_t size, size_t alignment = __STDCPP_DEFAULT_NEW_ALIGNMENT__) noexcept {
  void* p;
  return posix_memalign(&p, alignment < sizeof p ? sizeof p : alignment, size) == 0 ? p : nullptr;
}

void* or_throw(void* p) {
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

EB_NEW(new_one, "Znwm", (size_t size), or_throw(allocate(size)))
EB_NEW(new_one_or_null, "ZnwmRKSt9nothrow_t", (size_t size), allocate(size))
EB_NEW(new_one_aligned, "ZnwmSt11align_val_t", (size_t size, size_t alignment), or_throw(allocate(size, alignment)))
EB_NEW(new_one_aligned_or_null, "ZnwmSt11align_val_tRKSt9nothrow_t", (size_t size, size_t alignment),
       allocate(size, alignment))
EB_NEW(new_array, "Znam", (size_t size), or_throw(allocate(size)))
EB_NEW(new_array_or_null, "ZnamRKSt9nothrow_t", (size_t size), allocate(size))
EB_NEW(new_array_aligned, "ZnamSt11align_val_t", (size_t size, size_t alignment), or_throw(allocate(size, alignment)))
EB_NEW(new_array_aligned_or_null, "ZnamSt11align_val_tRKSt9nothrow_t", (size_t size, size_t alignment),
       allocate(size, alignment))
EB_DELETE(delete_1, "ZdlPv")
EB_DELETE(delete_2, "ZdlPvm")
EB_DELETE(delete_3, "ZdlPvRKSt9nothrow_t")
EB_DELETE(delete_4, "ZdlPvSt11align_val_t")
EB_DELETE(delete_5, "ZdlPvmSt11align_val_t")
EB_DELETE(delete_6, "ZdlPvSt11align_val_tRKSt9nothrow_t")
EB_DELETE(delete_7, "ZdaPv")
EB_DELETE(delete_8, "ZdaPvm")
EB_DELETE(delete_9, "ZdaPvRKSt9nothrow_t")
EB_DELETE(delete_10, "ZdaPvSt11align_val_t")
EB_DELETE(delete_11, "ZdaPvmSt11align_val_t")
EB_DELETE(delete_12, "ZdaPvSt11align_val_tRKSt9nothrow_t")
#endif
