// ThreadPool: runs one body on a fixed team of threads at once; the team shares out the items of each step.
//
// One fork and join a forward pass, not one a kernel. A step ends when its items are done, not when every thread has
// arrived: a thread that the machine has taken away holds up nobody but for the item in its hands, and one that comes
// late finds the step closed and goes on. Waiting threads spin for a short, bounded time, then yield (inside a run) or
// sleep (between runs), so that a busy machine or a tight CPU quota is not made worse.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace edgebert {

// Counters of one step: how far each rank's share has been claimed, and how many items are done.
struct alignas(64) Cursor {
  std::atomic<int> value{0};
};
struct Step {
  Cursor* claimed;  // [team size]
  Cursor* done;
};

// A thread's view of the team it works in.
class Team {
 public:
  Team() = default;                                                                        // a team of one
  Team(int rank, int size, const Step* steps) : rank_(rank), size_(size), step_(steps) {}  // no steps: only counts
  int rank() const { return rank_; }
  int size() const { return size_; }
  size_t num_steps() const { return num_steps_; }  // calls of share() so far

  // Calls body(begin, end) for ranges that cover [0, items) once, on all threads; returns when all items are done.
  // Every thread of the team makes the same calls in the same order. A range has `chunk` items, or less at the end of a
  // thread's share; with 0 it has a quarter of what is left of the share.
  template <class Body>
  void share(int items, Body body, int chunk = 0) {
    if (size_ == 1) {
      if (items > 0) body(0, items);
      return;
    }
    ++num_steps_;
    if (step_ == nullptr) return;
    const Step& step = *step_++;
    int finished = 0;
    for (int i = 0; i < size_; ++i)
      finished += drain(step, (rank_ + i) % size_, items, chunk, body);  // own share first
    if (finished > 0) step.done->value.fetch_add(finished, std::memory_order_release);
    await(step.done->value, items);
  }

 private:
  int share_begin(int rank, int items) const { return static_cast<int>(static_cast<int64_t>(items) * rank / size_); }

  // Claims what is left of one rank's share, piece by piece.
  template <class Body>
  int drain(const Step& step, int rank, int items, int chunk, Body& body) {
    const int begin = share_begin(rank, items), count = share_begin(rank + 1, items) - begin;
    std::atomic<int>& claimed = step.claimed[rank].value;
    int finished = 0;
    for (int at = claimed.load(std::memory_order_relaxed); at < count;) {
      const int left = count - at, end = at + (chunk == 0 ? (left + 3) / 4 : chunk < left ? chunk : left);
      if (!claimed.compare_exchange_weak(at, end, std::memory_order_relaxed)) continue;
      body(begin + at, begin + end);
      finished += end - at;
      at = claimed.load(std::memory_order_relaxed);
    }
    return finished;
  }

  static void await(const std::atomic<int>& value, int wanted);

  int rank_ = 0, size_ = 1;
  const Step* step_ = nullptr;
  size_t num_steps_ = 0;
};

// Of one process: a forked child has none of the threads, and needs a pool of its own.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  int size() const { return size_; }
  // Calls body(team) on the calling thread, rank 0, and on those workers that come in time; returns when all that came
  // are through. `body` must not throw, and leaves all work to share(): it is called once more before, with a team that
  // counts these calls and does nothing in them.
  void run(const std::function<void(Team&)>& body);

 private:
  struct Workers;

  const int size_;
  std::unique_ptr<Workers> workers_;  // started at the first run
};

// Calls work() on the calling thread and on num_threads - 1 others, or as many as can be started; returns when all are
// through. `work` must not throw.
void run_on_threads(int num_threads, const std::function<void()>& work);

}  // namespace edgebert
