// ThreadPool: runs one body on a fixed team of threads at once; the team meets at barriers inside.
//
// One fork and join a forward pass, not one a kernel. Threads spin for a short, bounded time, then sleep (between runs)
// or yield (at a barrier), so that a busy machine or a tight CPU quota is not made worse.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace edgebert {

class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  void wait();

 private:
  const int size_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

// A thread's view of the team it works in.
struct Team {
  int rank;
  int size;
  Barrier* barrier_;  // nullptr: a team of one
  void barrier() const {
    if (barrier_) barrier_->wait();
  }
  // This thread's share of `count` items, in order.
  int begin(int count) const { return static_cast<int>(static_cast<int64_t>(count) * rank / size); }
  int end(int count) const { return static_cast<int>(static_cast<int64_t>(count) * (rank + 1) / size); }
};

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  int size() const { return size_; }
  // Calls body(team) on every thread of the team, rank 0 being the caller, and returns when all have. `body` must not
  // throw.
  void run(const std::function<void(const Team&)>& body);

 private:
  struct Workers;
  void start();

  const int size_;
  std::unique_ptr<Workers> workers_;  // started at the first run, and anew in a forked child
  int64_t owner_pid_ = 0;
};

}  // namespace edgebert
