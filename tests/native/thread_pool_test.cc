// The thread team: every rank runs once a run, barriers hold, sleeping workers wake, and a forked child starts anew.
#include "engine/thread_pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <vector>

#include "check.h"

using edgebert::Team;
using edgebert::ThreadPool;

namespace {

// Each rank adds what its neighbour wrote before the barrier; a barrier that leaks gives another sum.
int run_steps(ThreadPool& pool, int steps) {
  std::vector<int> now(pool.size(), 1), next(pool.size());
  pool.run([&](const Team& team) {
    for (int i = 0; i < steps; ++i) {
      next[team.rank] = (now[team.rank] + now[(team.rank + 1) % team.size]) % 1000003;
      team.barrier();
      now[team.rank] = next[team.rank];
      team.barrier();
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
    for (int i = 0; i < 300; ++i) CHECK(run_steps(pool, i % 7) == expected(size, i % 7));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the workers fall asleep
    CHECK(run_steps(pool, 50) == expected(size, 50));

    for (int count : {0, 1, size, 10 * size + 1}) {  // shares are whole, in order, without gaps
      int at = 0;
      for (int rank = 0; rank < size; ++rank) {
        const Team team{rank, size, nullptr};
        CHECK(team.begin(count) == at && team.end(count) >= at);
        at = team.end(count);
      }
      CHECK(at == count);
    }

    const pid_t child = fork();
    if (child == 0) _exit(run_steps(pool, 20) == expected(size, 20) ? 0 : 1);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(run_steps(pool, 20) == expected(size, 20));
  }
  std::printf("thread pool checked\n");
}
