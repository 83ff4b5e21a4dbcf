// PerProcess: a value that a forked child makes anew. Threads of the parent that were using its value at the fork are
// not in the child, but what they left is: locks that nobody will open, memory half-written, a team of threads that
// are not there. The child never looks at it and never frees it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/platform.h"

namespace edgebert {

template <class T>
class PerProcess {
 public:
  PerProcess() = default;
  PerProcess(const PerProcess&) = delete;
  PerProcess& operator=(const PerProcess&) = delete;
  ~PerProcess() {
    Made* made = made_.load();
    if (made && made->depth == fork_depth()) delete made;
  }

  // This process's value; make(), a std::unique_ptr<T>, if it has none yet. Threads may ask at once: one's is kept.
  template <class Make>
  T& get(const Make& make) {
    Made* found = made_.load(std::memory_order_acquire);
    if (found && found->depth == fork_depth()) return *found->value;
    std::unique_ptr<Made> made(new Made{fork_depth(), make()});
    if (made_.compare_exchange_strong(found, made.get())) return *made.release()->value;
    return *found->value;
  }

 private:
  struct Made {
    uint32_t depth;
    std::unique_ptr<T> value;
  };

  std::atomic<Made*> made_{nullptr};
};

}  // namespace edgebert
