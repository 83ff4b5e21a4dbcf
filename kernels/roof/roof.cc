// The roof of this machine as JSON: int8 and f32 operations a second of each instruction set, registers only, and
// bytes a second read from sets of several sizes, for each count of threads asked for.
//
//   edgebert_roof [THREADS ...]     (left out: 1)
#include <stdio.h>
#include <stdlib.h>

#include <atomic>
#include <thread>
#include <vector>

#include "cpu/cpu_features.h"
#include "roof/clock.h"
#include "roof/loops.h"

namespace edgebert {

#define EB_BUILT_ISA(name)       \
  namespace name {               \
  extern const RoofLoops kLoops; \
  }
#include "built_isas.inc"
#undef EB_BUILT_ISA

namespace {

constexpr double kSeconds = 0.1;
constexpr double kMegabytes[] = {0.5, 8, 96};  // of one thread: about an L2, an L3, and memory

// The sum over `threads` threads, running at once, of rate(thread).
template <class Rate>
double sum_rates(int threads, Rate rate) {
  std::atomic<int> arrived{0};
  std::vector<double> rates(static_cast<size_t>(threads));
  std::vector<std::thread> team;
  for (double& mine : rates)
    team.emplace_back([&] {
      ++arrived;
      while (arrived.load() < threads) std::this_thread::yield();
      mine = rate();
    });
  double sum = 0.0;
  for (std::thread& thread : team) thread.join();
  for (const double mine : rates) sum += mine;
  return sum;
}

// The best rate of slices of about a millisecond.
double best_rate(void (*run)(int), double ops) {
  int steps = 1000;
  while (shortest(0.0, [&] { run(steps); }) < 1e-3) steps *= 2;
  return ops * steps / shortest(kSeconds, [&] { run(steps); });
}

void print_isa(const char* name, const RoofLoops& loops, int threads, bool is_last) {
  const double s8 = sum_rates(threads, [&] { return best_rate(loops.run_s8, loops.s8_ops); });
  const double f32 = sum_rates(threads, [&] { return best_rate(loops.run_f32, loops.f32_ops); });
  printf("      \"%s\": {\"int8_gops\": %.1f, \"fp32_gops\": %.1f}%s\n", name, s8 / 1e9, f32 / 1e9, is_last ? "" : ",");
}

struct Entry {
  const char* name;
  const RoofLoops* loops;
};

void print_threads(const std::vector<Entry>& entries, int threads, bool is_last) {
  printf("  \"%d\": {\n    \"isas\": {\n", threads);
  for (const Entry& entry : entries) print_isa(entry.name, *entry.loops, threads, &entry == &entries.back());
  printf("    },\n    \"read\": [");
  for (const double megabytes : kMegabytes) {
    const size_t size = static_cast<size_t>(megabytes * 1e6 / 4);
    const double rate = sum_rates(threads, [&] {
      std::vector<int32_t> data(size, 1);
      return 4.0 * static_cast<double>(size) /
             shortest(kSeconds, [&] { entries.front().loops->read(data.data(), size); });
    });
    printf("%s{\"mb\": %g, \"gb_per_s\": %.1f}", megabytes == kMegabytes[0] ? "" : ", ", megabytes * threads,
           rate / 1e9);
  }
  printf("]\n  }%s\n", is_last ? "" : ",");
}

}  // namespace
}  // namespace edgebert

int main(int argc, char** argv) {
  using namespace edgebert;
  std::vector<Entry> entries;
#define EB_BUILT_ISA(name) \
  if (cpu_features().name) entries.push_back({#name, &name::kLoops});
#include "built_isas.inc"
#undef EB_BUILT_ISA
  printf("{\n");
  if (argc < 2) print_threads(entries, 1, true);
  for (int i = 1; i < argc; ++i) print_threads(entries, atoi(argv[i]), i + 1 == argc);
  printf("}\n");
  return 0;
}
