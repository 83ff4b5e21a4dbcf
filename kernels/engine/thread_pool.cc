#include "engine/thread_pool.h"

#include <chrono>

#if defined(__unix__)
#include <unistd.h>
#endif

namespace edgebert {
namespace {

constexpr int kBarrierSpins = 4000;                         // then yield: somebody else has the CPU
constexpr auto kIdleSpin = std::chrono::microseconds(100);  // then sleep: the next run is not near

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

int64_t current_pid() {
#if defined(__unix__)
  return getpid();
#else
  return 0;
#endif
}

template <class Done>
void spin_then_yield(Done done) {
  for (int spins = 0; !done(); ++spins) {
    if (spins < kBarrierSpins)
      pause();
    else
      std::this_thread::yield();
  }
}

}  // namespace

void Barrier::wait() {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  spin_then_yield([&] { return phase_.load(std::memory_order_acquire) != phase; });
}

struct ThreadPool::Workers {
  explicit Workers(int size) : barrier(size) {
    for (int rank = 1; rank < size; ++rank) threads.emplace_back([this, rank, size] { work(rank, size); });
  }
  ~Workers() {
    stopping = true;
    signal();
    for (std::thread& thread : threads) thread.join();
  }

  // seq_cst on both sides: either the signaller sees the sleeper, or the sleeper sees the new generation.
  void signal() {
    generation.fetch_add(1);
    if (sleepers.load() == 0) return;
    {
      std::lock_guard<std::mutex> lock(mutex);
    }
    wake.notify_all();
  }

  void await_generation_after(uint32_t seen) {
    const auto give_up = std::chrono::steady_clock::now() + kIdleSpin;
    do {
      for (int i = 0; i < 32; ++i) {
        if (generation.load(std::memory_order_acquire) != seen) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() < give_up);
    std::unique_lock<std::mutex> lock(mutex);
    sleepers.fetch_add(1);
    wake.wait(lock, [&] { return generation.load() != seen; });
    sleepers.fetch_sub(1);
  }

  void work(int rank, int size) {
    for (uint32_t seen = 0;;) {
      await_generation_after(seen);
      ++seen;
      if (stopping) return;
      (*body)(Team{rank, size, &barrier});
      running.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  Barrier barrier;
  const std::function<void(const Team&)>* body = nullptr;
  alignas(64) std::atomic<uint32_t> generation{0};
  alignas(64) std::atomic<int> running{0};
  std::atomic<int> sleepers{0};
  std::atomic<bool> stopping{false};
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> threads;
};

ThreadPool::ThreadPool(int num_threads) : size_(num_threads) {}

ThreadPool::~ThreadPool() {
  if (workers_ && owner_pid_ != current_pid()) workers_.release();  // a forked child has no threads to join
}

void ThreadPool::start() {
  if (workers_) workers_.release();  // the parent's, whose threads are not in this process
  workers_ = std::make_unique<Workers>(size_);
  owner_pid_ = current_pid();
}

void ThreadPool::run(const std::function<void(const Team&)>& body) {
  if (size_ == 1) return body(Team{0, 1, nullptr});
  if (!workers_ || owner_pid_ != current_pid()) start();
  workers_->body = &body;
  workers_->running.store(size_ - 1, std::memory_order_release);
  workers_->signal();
  body(Team{0, size_, &workers_->barrier});
  spin_then_yield([&] { return workers_->running.load(std::memory_order_acquire) == 0; });
}

}  // namespace edgebert
