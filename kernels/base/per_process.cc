#include "base/per_process.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace edgebert {
namespace {

std::atomic<uint32_t> depth{0};

#if !defined(_WIN32)
// When the library is loaded, not at the first use: a fork in the middle of that would leave the child without it.
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { depth.fetch_add(1, std::memory_order_relaxed); });
#endif

}  // namespace

uint32_t fork_depth() { return depth.load(std::memory_order_relaxed); }

}  // namespace edgebert
