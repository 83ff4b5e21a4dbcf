// How long something takes a thread.
#pragma once

#include <algorithm>

#include "base/platform.h"

namespace edgebert {

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
