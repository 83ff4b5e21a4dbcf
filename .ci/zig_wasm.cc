// Linked into what zig builds for WebAssembly, whose C++ library there cannot throw: zig's own sources of the parts
// that it leaves out, for WebAssembly's native exceptions.
#pragma clang diagnostic ignored "-Weverything"
#define _LIBCPP_BUILDING_LIBRARY
#define _LIBCPP_ENABLE_CXX17_REMOVED_UNEXPECTED_FUNCTIONS
#define _LIBCXXABI_BUILDING_LIBRARY
#define _LIBCXXABI_HAS_NO_THREADS
#define _LIBUNWIND_HIDE_SYMBOLS
#include <../../libcxxabi/src/cxa_exception.cpp>
#include <../../libcxxabi/src/cxa_personality.cpp>

extern "C" {  // which C would not say
_Unwind_Reason_Code _Unwind_CallPersonality(void*);
_Unwind_Reason_Code __gxx_personality_wasm0(int, _Unwind_Action, uint64_t, _Unwind_Exception*, _Unwind_Context*);
}
#include <../../libunwind/src/Unwind-wasm.c>

__asm__(".globl __cpp_exception\n.tagtype __cpp_exception i32\n__cpp_exception:\n");  // what is thrown: a pointer
