// The thread pool: every item runs once, steps do not overlap, sleeping workers wake, callers at once share the
// threads, and a forked child, also of a fork during runs, makes a pool of its own.
//
// With AddressSanitizer nothing forks during a run: its allocator (gcc 12's) is not made ready for a fork, so that a
// child waits for ever for a lock that another thread held. Nor with an argument, since emulators break: qemu does.
#include "base/thread_pool.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
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
  ThreadPool::Turn turn(pool, items % 2 == 0);
  turn.run([&](Team& team) {
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

// A pool as a model has it: in whatever thread or process.
class SharedPool {
 public:
  explicit SharedPool(int size) : size_(size) {}
  bool is_right(int items, int steps) {
    ThreadPool& pool = pool_.get([this] { return std::make_unique<ThreadPool>(size_); });
    return run_steps(pool, items, steps) == expected(items, steps);
  }

 private:
  const int size_;
  PerProcess<ThreadPool> pool_;
};

// Of several callers none sees another's items, and no more are at work than the pool has threads, each at its place.
void run_callers(int size, int callers) {
  ThreadPool pool(size);
  std::atomic<int> num_turns{0};
  std::vector<std::atomic<int>> places(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int c = 0; c < callers; ++c) {
    threads.emplace_back([&, c] {
      for (int i = 0; i < 100; ++i) {
        CHECK(run_steps(pool, 1 + (i + c) % 11, 3) == expected(1 + (i + c) % 11, 3));
        const ThreadPool::Turn turn(pool, false);
        CHECK(++num_turns <= size);
        CHECK(++places[static_cast<size_t>(turn.place())] == 1);
        std::this_thread::yield();
        --places[static_cast<size_t>(turn.place())];
        --num_turns;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Who is alone has all threads, who comes later his part of them, and what others have no use for.
void share_threads() {
  ThreadPool pool(4);
  auto first = std::make_unique<ThreadPool::Turn>(pool, true);
  CHECK(first->num_threads() == 4 && first->place() == 0);
  auto second = std::make_unique<ThreadPool::Turn>(pool, false);
  CHECK(second->num_threads() == 2 && second->place() == 1);
  first.reset();
  const ThreadPool::Turn third(pool, false);
  CHECK(third.num_threads() == 2 && third.place() == 0);
  const ThreadPool::Turn fourth(pool, false);  // of the others each keeps its own thread
  CHECK(fourth.num_threads() == 2 && fourth.place() == 2);
  const ThreadPool::Turn fifth(pool, false);
  CHECK(fifth.num_threads() == 1 && fifth.place() == 3);
}

void await(const std::atomic<bool>& value) {
  while (!value) std::this_thread::yield();
}

// A caller takes a CPU from a run that has two: the helper ends the item in its hands, and leaves the rest.
void leave_when_crowded() {
  ThreadPool pool(2);
  std::atomic<bool> has_helper{false}, is_crowded{false}, is_over{false};
  std::thread other([&] {
    await(has_helper);
    const ThreadPool::Turn turn(pool, false);
    CHECK(turn.num_threads() == 1);
    is_crowded = true;
    await(is_over);
  });
  std::atomic<int> first_step{0}, of_helper{0}, second_step{0};
  {
    ThreadPool::Turn turn(pool, false);
    CHECK(turn.num_threads() == 2);
    turn.run([&](Team& team) {
      team.share(
          40,
          [&](int begin, int end) {
            first_step += end - begin;
            if (team.rank() == 1) has_helper = true;
            await(is_crowded);
            if (team.rank() == 1) of_helper += end - begin;
          },
          1);
      team.share(40, [&](int begin, int end) {
        second_step += end - begin;
        if (team.rank() == 1) of_helper += end - begin;
      });
    });
  }
  CHECK(first_step == 40 && second_step == 40 && of_helper == 1);
  is_over = true;
  other.join();
  CHECK(ThreadPool::Turn(pool, false).num_threads() == 2);
}

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
      ThreadPool::Turn turn(pool, false);
      turn.run([&](Team& team) {
        team.share(items, [&](int begin, int end) {
          for (int k = begin; k < end; ++k) ++times[k];
        });
      });
      for (const std::atomic<int>& count : times) CHECK(count == 1);
    }
    for (const int callers : {2, 7}) run_callers(size, callers);
#if defined(FORKS)
    if (argc == 1) fork_during_runs(size);
#endif
  }
  share_threads();
  leave_when_crowded();
  std::printf("thread pool checked\n");
}
