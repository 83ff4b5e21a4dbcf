// The thread team: every item runs once, steps do not overlap, sleeping workers wake, and a forked child starts anew.
#include "engine/thread_pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "check.h"

using edgebert::Team;
using edgebert::ThreadPool;

namespace {

// Each item adds what its neighbour wrote in the step before; an item done twice, left out or begun early gives another
// sum. Some items are slow, so that shares are claimed by others.
int run_steps(ThreadPool& pool, int items, int steps) {
  std::vector<int> now(items, 1), next(items);
  pool.run(2 * steps, [&](Team& team) {
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

}  // namespace

int main() {
  for (const int size : {1, 2, 3, 5}) {
    ThreadPool pool(size);
    CHECK(pool.size() == size);
    for (int i = 0; i < 400; ++i) CHECK(run_steps(pool, 1 + i % 23, i % 7) == expected(1 + i % 23, i % 7));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the workers fall asleep
    CHECK(run_steps(pool, 9, 50) == expected(9, 50));

    for (const int items : {0, 1, size, 10 * size + 1}) {  // every item once
      std::vector<std::atomic<int>> times(items);
      pool.run(1, [&](Team& team) {
        team.share(items, [&](int begin, int end) {
          for (int k = begin; k < end; ++k) ++times[k];
        });
      });
      for (const std::atomic<int>& count : times) CHECK(count == 1);
    }

    const pid_t child = fork();
    if (child == 0) _exit(run_steps(pool, 9, 20) == expected(9, 20) ? 0 : 1);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(run_steps(pool, 9, 20) == expected(9, 20));
  }
  std::printf("thread pool checked\n");
}
