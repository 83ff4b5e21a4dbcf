// Seconds of this thread on a CPU: what other processes take does not count.
#pragma once

#include <time.h>

#include <algorithm>

namespace edgebert {

inline double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The shortest of several runs that take about `seconds` together.
template <class Run>
double shortest(double seconds, Run run) {
  run();
  double best = 1e9, total = 0.0;
  for (int i = 0; i < 5 || total < seconds; ++i) {
    const double begun = thread_seconds();
    run();
    const double taken = thread_seconds() - begun;
    best = std::min(best, taken);
    total += taken;
  }
  return best;
}

}  // namespace edgebert
