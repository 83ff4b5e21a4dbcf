// ThreadPool: runs of several callers at once, on a fixed number of threads together. A run works in a team: the
// caller's thread and the pool's that are free, which share out the items of each step.
//
// One fork and join a forward pass, not one a kernel. A step ends when its items are done, not when every thread has
// arrived: a thread that the machine has taken away holds up nobody but for the item in its hands, one that comes late
// finds the step closed and goes on, and one whose CPU another caller wants leaves. Waiting threads spin for a short,
// bounded time, then sleep, so that a busy machine or a tight CPU quota is not made worse.
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

struct TeamPlace;  // what the threads of a team have in common

// A thread's view of the team it works in.
class Team {
 public:
  Team() = default;  // a team of one
  // Without steps it only counts them.
  Team(int rank, int size, const Step* steps, TeamPlace* place)
      : rank_(rank), size_(size), step_(steps), place_(place) {}
  int rank() const { return rank_; }
  int size() const { return size_; }
  size_t num_steps() const { return num_steps_; }  // calls of share() so far
  // Whether this is the call before a run that only counts them: at least as many as the run will make.
  bool is_counting() const { return size_ > 1 && step_ == nullptr; }

  // Calls body(begin, end) for ranges that cover [0, items) once, on all threads; returns when all items are done, or
  // on a thread that has left the team. Every thread of the team makes the same calls in the same order. A range has
  // `chunk` items, or less at the end of a thread's share; with 0 it has a quarter of what is left of the share.
  template <class Body>
  void share(int items, Body body, int chunk = 0) {
    if (size_ == 1) {
      if (items > 0) body(0, items);
      return;
    }
    ++num_steps_;
    if (step_ == nullptr || leaves()) return;
    const Step& step = *step_++;
    int finished = 0;
    for (int i = 0; i < size_; ++i)
      finished += drain(step, (rank_ + i) % size_, items, chunk, body);  // own share first
    end_step(step, finished, items);
  }

 private:
  int share_begin(int rank, int items) const { return static_cast<int>(static_cast<int64_t>(items) * rank / size_); }

  // Claims what is left of one rank's share, piece by piece.
  template <class Body>
  int drain(const Step& step, int rank, int items, int chunk, Body& body) {
    const int begin = share_begin(rank, items), count = share_begin(rank + 1, items) - begin;
    std::atomic<int>& claimed = step.claimed[rank].value;
    int finished = 0;
    for (int at = claimed.load(std::memory_order_relaxed); at < count && !leaves();) {
      const int left = count - at, end = at + (chunk == 0 ? (left + 3) / 4 : chunk < left ? chunk : left);
      if (!claimed.compare_exchange_weak(at, end, std::memory_order_relaxed)) continue;
      body(begin + at, begin + end);
      finished += end - at;
      at = claimed.load(std::memory_order_relaxed);
    }
    return finished;
  }

  // Whether this thread has left the team, or does so now: never the caller's, rank 0, which ends what others leave.
  bool leaves() { return rank_ > 0 && (has_left_ || leave_if_crowded()); }
  bool leave_if_crowded();
  void end_step(const Step& step, int finished, int items);

  int rank_ = 0, size_ = 1;
  const Step* step_ = nullptr;
  [[maybe_unused]] TeamPlace* place_ = nullptr;
  size_t num_steps_ = 0;
  bool has_left_ = false;
};

// Of one process: a forked child has none of the threads, and needs a pool of its own.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();  // no turn is taken any more
  int size() const { return size_; }

  // A caller's turn, for as long as it lives: there are at most size() at once, on at most size() threads; further
  // callers wait. One alone gets all threads, several get equal parts, and none has less than its own thread.
  class Turn {
   public:
    // A short run does without helpers just after others ran beside it: waking them costs more than they would bring.
    Turn(ThreadPool& pool, bool is_short);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

    int place() const { return place_; }              // 0 to size() - 1, no other turn's; the lowest that is free
    int num_threads() const { return num_threads_; }  // of the team
    // Calls body(team) on the calling thread, rank 0, and on those helpers that come in time; returns when all that
    // came are through. `body` must not throw, and leaves all work to share(): it is called once more before, with a
    // team that counts these calls and does nothing in them.
    void run(const std::function<void(Team&)>& body);

   private:
    [[maybe_unused]] ThreadPool& pool_;
    int place_ = 0, num_threads_ = 1;
  };

 private:
  struct Workers;

  const int size_;
  std::unique_ptr<Workers> workers_;
};

// Calls work() on the calling thread and on num_threads - 1 others, or as many as can be started; returns when all are
// through. `work` must not throw.
void run_on_threads(int num_threads, const std::function<void()>& work);

}  // namespace edgebert
