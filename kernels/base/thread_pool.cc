#include "base/thread_pool.h"

#include "base/platform.h"

#if EDGEBERT_THREADS
#include <chrono>
#include <condition_variable>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/status.h"

namespace edgebert {
namespace {

constexpr int kSpins = 4000;                                // then yield: somebody else has the CPU
constexpr auto kIdleSpin = std::chrono::microseconds(100);  // then sleep: the next run is not near

template <class Done>
void spin_then_yield(Done done) {
  for (int spins = 0; !done(); ++spins) {
    if (spins < kSpins)
      pause_cpu();
    else
      std::this_thread::yield();
  }
}

}  // namespace

void Team::await(const std::atomic<int>& value, int wanted) {
  spin_then_yield([&] { return value.load(std::memory_order_acquire) == wanted; });
}

struct ThreadPool::Workers {
  explicit Workers(int size) : size(size) {
    try {
      for (int rank = 1; rank < size; ++rank) threads.emplace_back([this, rank] { work(rank); });
    } catch (const std::system_error& error) {
      const size_t started = threads.size();
      stop();
      throw Error(EB_UNAVAILABLE, "of " + std::to_string(size) + " threads only " + std::to_string(1 + started) +
                                      " could be started (" + error.what() +
                                      "): load the model with fewer, or raise the limit of threads");
    }
  }
  ~Workers() { stop(); }

  void stop() {
    stopping = true;
    announce();
    for (std::thread& thread : threads) thread.join();
  }

  void prepare(size_t num_steps) {
    const size_t cursors = num_steps * (size + 1);
    if (steps.size() < num_steps) {
      memory = std::vector<Cursor>(cursors);
      steps.resize(num_steps);
      for (size_t i = 0; i < num_steps; ++i) {
        Cursor* first = &memory[i * (size + 1)];
        steps[i] = {first, first + size};
      }
    } else {
      for (size_t i = 0; i < cursors; ++i) memory[i].value.store(0, std::memory_order_relaxed);
    }
  }

  // Sequentially consistent on both sides: either the announcer sees the sleeper, or the sleeper the new generation.
  void announce() {
    generation.fetch_add(1);
    if (sleepers.load() == 0) return;
    {
      Lock lock(mutex);
    }
    wake.notify_all();
  }

  void await_generation_after(uint32_t seen) {
    const auto give_up = std::chrono::steady_clock::now() + kIdleSpin;
    do {
      for (int i = 0; i < 32; ++i) {
        if (generation.load(std::memory_order_acquire) != seen) return;
        pause_cpu();
      }
    } while (std::chrono::steady_clock::now() < give_up);
    std::unique_lock<Mutex> lock(mutex);
    sleepers.fetch_add(1);
    wake.wait(lock, [&] { return generation.load() != seen; });
    sleepers.fetch_sub(1);
  }

  void work(int rank) {
    for (uint32_t seen = 0;;) {
      await_generation_after(seen);
      seen = generation.load();
      if (stopping) return;
      // Likewise: either close() sees this thread inside, or this thread sees that the run is closed.
      inside.fetch_add(1);
      if (is_open.load()) {
        Team team(rank, size, steps.data());
        (*body)(team);
      }
      inside.fetch_sub(1);
    }
  }

  void close() {
    is_open.store(false);
    spin_then_yield([&] { return inside.load() == 0; });
  }

  const int size;
  const std::function<void(Team&)>* body = nullptr;
  std::vector<Cursor> memory;
  std::vector<Step> steps;
  alignas(64) std::atomic<uint32_t> generation{0};
  alignas(64) std::atomic<bool> is_open{false};
  alignas(64) std::atomic<int> inside{0};
  std::atomic<int> sleepers{0};
  std::atomic<bool> stopping{false};
  Mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> threads;
};

ThreadPool::ThreadPool(int num_threads) : size_(num_threads) {}

ThreadPool::~ThreadPool() = default;

void ThreadPool::run(const std::function<void(Team&)>& body) {
  Team counting(0, size_, nullptr);
  if (size_ > 1 && !workers_) workers_ = std::make_unique<Workers>(size_);
  body(counting);  // all of the work, if the team is of one
  if (size_ == 1) return;
  workers_->prepare(counting.num_steps());
  workers_->body = &body;
  workers_->is_open.store(true);
  workers_->announce();
  Team team(0, size_, workers_->steps.data());
  body(team);
  workers_->close();
}

void run_on_threads(int num_threads, const std::function<void()>& work) {
  std::vector<std::thread> threads;
  try {
    for (int i = 1; i < num_threads; ++i) threads.emplace_back(work);
  } catch (...) {  // no more threads to be had: those there are will do
  }
  work();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace edgebert

#else  // teams of one

namespace edgebert {

void Team::await(const std::atomic<int>&, int) {}

struct ThreadPool::Workers {};

ThreadPool::ThreadPool(int num_threads) : size_(num_threads) {}

ThreadPool::~ThreadPool() = default;

void ThreadPool::run(const std::function<void(Team&)>& body) {
  Team alone;
  body(alone);
}

void run_on_threads(int, const std::function<void()>& work) { work(); }

}  // namespace edgebert

#endif
