// The thread team: every item runs once, steps do not overlap, sleeping workers wake, and a forked child, also of a
// fork during a run, makes a team of its own.
//
// With AddressSanitizer nothing forks during a run: its allocator (gcc 12's) is not made ready for a fork, so that a
// child waits for ever for a lock that another thread held. Nor with an argument, since emulators break: qemu does.
#include "base/thread_pool.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/per_process.h"
#include "check.h"

#if !defined(_WIN32) && !defined(__SANITIZE_ADDRESS__)
#define FORKS
#include <sys/wait.h>
#include <unistd.h>
#endif

using edgebert::PerProcess;
using edgebert::Team;
using edgebert::ThreadPool;

namespace {

// Each item adds what its neighbour wrote in the step before; an item done twice, left out or begun early gives another
// sum. Some items are slow, so that shares are claimed by others.
int run_steps(ThreadPool& pool, int items, int steps) {
  std::vector<int> now(items, 1), next(items);
  pool.run([&](Team& team) {
    for (int i = 0; i < steps; ++i) {
      team.share(items, [&](int begin, int end) {
        if (begin == 0 && i % 5 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
        for (int k = begin; k < end; ++k) next[k] += (now[k] + now[(k + 1) % items]) % 1000003 - next[k];
      });
      team.share(items, [&](int begin, int end) {
        for (int k = begin; k < end; ++k) now[k] += next[k] - now[k];
      });
    }
  });
  return now[0];
}

int expected(int size, int steps) {
  std::vector<int> now(size, 1);
  for (int i = 0; i < steps; ++i) {
    std::vector<int> next(size);
    for (int r = 0; r < size; ++r) next[r] = (now[r] + now[(r + 1) % size]) % 1000003;
    now = next;
  }
  return now[0];
}

// A pool as a model has it: runs take turns, in whatever thread or process.
class SharedPool {
 public:
  explicit SharedPool(int size) : size_(size) {}
  bool is_right(int items, int steps) {
    Turns& turns = turns_.get([this] { return std::make_unique<Turns>(size_); });
    const std::lock_guard<std::mutex> turn(turns.mutex);
    return run_steps(turns.pool, items, steps) == expected(items, steps);
  }

 private:
  struct Turns {
    explicit Turns(int size) : pool(size) {}
    std::mutex mutex;
    ThreadPool pool;
  };

  const int size_;
  PerProcess<Turns> turns_;
};

#if defined(FORKS)

// Forks, and waits for the child to come to its end with the pool right in it; one that hangs is ended by its alarm.
template <class Body>
bool succeeds_in_child(Body body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(body() ? 0 : 1);
  }
  int status = 0;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool is_right_in_threads(SharedPool& pool) {
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) threads.emplace_back([&] { right += pool.is_right(9, 20); });
  for (std::thread& thread : threads) thread.join();
  return right == 3;
}

void fork_during_runs(int size) {
  auto pool = std::make_unique<SharedPool>(size);
  CHECK(succeeds_in_child([&] { return is_right_in_threads(*pool); }));  // before the first run
  std::atomic<bool> stopping{false};
  std::vector<std::thread> runners;
  for (int i = 0; i < 2; ++i) {
    runners.emplace_back([&, i] {
      while (!stopping) CHECK(pool->is_right(5 + i, 40 + i));
    });
  }
  for (int i = 0; i < 25; ++i) {
    CHECK(succeeds_in_child(
        [&] { return is_right_in_threads(*pool) && succeeds_in_child([&] { return pool->is_right(9, 20); }); }));
    CHECK(succeeds_in_child([&] {
      pool.reset();  // unused in the child
      return true;
    }));
  }
  stopping = true;
  for (std::thread& runner : runners) runner.join();
}

#endif

}  // namespace

int main([[maybe_unused]] int argc, char**) {
  for (const int size : {1, 2, 3, 5}) {
    ThreadPool pool(size);
    CHECK(pool.size() == size);
    for (int i = 0; i < 400; ++i) CHECK(run_steps(pool, 1 + i % 23, i % 7) == expected(1 + i % 23, i % 7));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the workers fall asleep
    CHECK(run_steps(pool, 9, 50) == expected(9, 50));

    for (const int items : {0, 1, size, 10 * size + 1}) {  // every item once
      std::vector<std::atomic<int>> times(items);
      pool.run([&](Team& team) {
        team.share(items, [&](int begin, int end) {
          for (int k = begin; k < end; ++k) ++times[k];
        });
      });
      for (const std::atomic<int>& count : times) CHECK(count == 1);
    }
#if defined(FORKS)
    if (argc == 1) fork_during_runs(size);
#endif
  }
  std::printf("thread pool checked\n");
}
