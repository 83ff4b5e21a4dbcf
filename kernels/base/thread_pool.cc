#include "base/thread_pool.h"

#include "base/platform.h"

#if EDGEBERT_THREADS
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/status.h"

namespace edgebert {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kSpin = std::chrono::microseconds(100);   // then sleep: what is awaited is not near
constexpr auto kCrowded = std::chrono::milliseconds(1);  // after which nobody else is thought to be calling

// Spins until `done`, for a bounded time; returns whether it is.
template <class Done>
bool spin_until(const Done& done) {
  Clock::time_point give_up{};  // most waits end before it is worth a look at the clock
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      pause_cpu();
    }
    if (give_up == Clock::time_point{}) give_up = Clock::now() + kSpin;
  } while (Clock::now() < give_up);
  return false;
}

// Where threads sleep until something is so. Whoever makes it so calls wake() afterwards. All is sequentially
// consistent: either the waker sees the sleeper, or the sleeper what was done.
class Bed {
 public:
  template <class Done>
  void sleep_until(const Done& done) {
    std::unique_lock<Mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, done);
    sleepers_.fetch_sub(1);
  }
  void wake(int threads) {
    const int sleepers = sleepers_.load();
    if (sleepers == 0) return;
    {
      Lock lock(mutex_);
    }
    if (threads >= sleepers) return wake_.notify_all();
    for (int i = 0; i < threads; ++i) wake_.notify_one();
  }

 private:
  std::atomic<int> sleepers_{0};
  Mutex mutex_;
  std::condition_variable wake_;
};

constexpr int kAll = 1 << 30;

}  // namespace

struct alignas(64) TeamPlace {
  bool is_taken = false;
  int team_size = 1;
  std::atomic<int> tickets{0};  // helpers that may still come: the next one's rank
  std::atomic<int> inside{0};   // that came, or are looking for a ticket
  std::atomic<int> helpers{0};  // that did not leave, or may still come
  std::atomic<int> allowed{0};  // of these; the others leave
  const std::function<void(Team&)>* body = nullptr;
  std::vector<Cursor> memory;
  std::vector<Step> steps;
  Bed bed;  // of threads that wait for the others' items, and for the others

  void prepare(size_t num_steps, int size) {
    team_size = size;
    const size_t stride = static_cast<size_t>(size) + 1, cursors = num_steps * stride;
    if (memory.size() < cursors) memory = std::vector<Cursor>(cursors);
    for (size_t i = 0; i < cursors; ++i) memory[i].value.store(0, std::memory_order_relaxed);
    steps.resize(num_steps);
    for (size_t i = 0; i < num_steps; ++i) steps[i] = {&memory[i * stride], &memory[i * stride + stride - 1]};
  }

  template <class Done>
  void await(const Done& done) {
    if (!spin_until(done)) bed.sleep_until(done);
  }

  // Of a helper: works in the team that it finds here, if there is one that wants it.
  bool help() {
    if (tickets.load(std::memory_order_relaxed) == 0) return false;
    // Either the caller, who closes, sees this thread inside, or this thread sees that no ticket is left.
    inside.fetch_add(1);
    int rank = tickets.load();
    while (rank > 0 && !tickets.compare_exchange_weak(rank, rank - 1)) {
    }
    if (rank > 0) {
      Team team(rank, team_size, steps.data(), this);
      (*body)(team);
    }
    if (inside.fetch_sub(1) == 1) bed.wake(kAll);
    return rank > 0;
  }

  void close() {
    tickets.store(0);
    await([this] { return inside.load() == 0; });
  }
};

bool Team::leave_if_crowded() {
  int helpers = place_->helpers.load(std::memory_order_relaxed);
  while (helpers > place_->allowed.load(std::memory_order_relaxed)) {
    if (place_->helpers.compare_exchange_weak(helpers, helpers - 1)) return has_left_ = true;
  }
  return false;
}

void Team::end_step(const Step& step, int finished, int items) {
  std::atomic<int>& done = step.done->value;
  if (finished > 0 && done.fetch_add(finished) + finished == items) return place_->bed.wake(kAll);
  if (!leaves()) place_->await([&done, items] { return done.load() == items; });
}

struct ThreadPool::Workers {
  explicit Workers(int size) : size(size), places(static_cast<size_t>(size)) {}
  ~Workers() {
    stopping = true;
    announce(kAll);
    for (std::thread& thread : threads) thread.join();
  }

  // At the first run.
  void start() {
    try {
      while (static_cast<int>(threads.size()) + 1 < size) threads.emplace_back([this] { work(); });
    } catch (const std::system_error& error) {
      throw Error(EB_UNAVAILABLE, "of " + std::to_string(size) + " threads only " + std::to_string(1 + threads.size()) +
                                      " could be started (" + error.what() +
                                      "): load the model with fewer, or raise the limit of threads");
    }
  }

  void announce(int helpers) {
    generation.fetch_add(1);
    bed.wake(helpers);
  }

  void work() {
    for (;;) {
      const uint32_t seen = generation.load();
      if (stopping) return;
      bool has_helped = false;
      for (TeamPlace& place : places) has_helped |= place.help();
      if (has_helped) continue;
      const auto is_called = [&] { return generation.load() != seen; };
      // With as many callers as threads no CPU is free to spin on.
      const auto is_full = [&] { return num_turns.load(std::memory_order_relaxed) >= size; };
      spin_until([&] { return is_called() || is_full(); });
      if (!is_called()) bed.sleep_until(is_called);
    }
  }

  const int size;
  std::vector<TeamPlace> places;
  alignas(64) std::atomic<uint32_t> generation{0};
  std::atomic<bool> stopping{false};
  Bed bed;  // of the threads
  std::vector<std::thread> threads;

  Mutex mutex;  // of what follows, and of who has which place
  std::atomic<int> num_turns{0};
  int num_waiting = 0;
  std::condition_variable has_place;
  Clock::time_point last_crowded = Clock::time_point::min();
};

ThreadPool::ThreadPool(int num_threads) : size_(num_threads), workers_(std::make_unique<Workers>(num_threads)) {}

ThreadPool::~ThreadPool() = default;

ThreadPool::Turn::Turn(ThreadPool& pool, bool is_short) : pool_(pool) {
  Workers& all = *pool.workers_;
  std::unique_lock<Mutex> lock(all.mutex);
  all.start();
  ++all.num_waiting;
  all.has_place.wait(lock, [&] { return all.num_turns.load() < pool.size_; });
  --all.num_waiting;
  const int turns = all.num_turns.load() + 1, part = pool.size_ / turns;
  while (all.places[static_cast<size_t>(place_)].is_taken) ++place_;
  int others = 0;  // threads that they may keep
  for (TeamPlace& place : all.places) {
    if (turns == 1) break;
    if (!place.is_taken) continue;
    if (place.allowed.load() >= part) place.allowed.store(part - 1);
    others += 1 + place.allowed.load();
  }
  int helpers = pool.size_ - others - 1;
  const Clock::time_point now = Clock::now();
  if (turns > 1) all.last_crowded = now;
  if (is_short && all.last_crowded > now - kCrowded) helpers = 0;
  TeamPlace& place = all.places[static_cast<size_t>(place_)];
  place.is_taken = true;
  place.helpers.store(helpers);
  place.allowed.store(helpers);
  all.num_turns.store(turns);
  num_threads_ = 1 + helpers;
}

ThreadPool::Turn::~Turn() {
  Workers& all = *pool_.workers_;
  bool is_awaited;
  {
    const Lock lock(all.mutex);
    all.places[static_cast<size_t>(place_)].is_taken = false;
    all.num_turns.fetch_sub(1);
    is_awaited = all.num_waiting > 0;
  }
  if (is_awaited) all.has_place.notify_one();
}

void ThreadPool::Turn::run(const std::function<void(Team&)>& body) {
  if (num_threads_ == 1) {
    Team alone;
    return body(alone);
  }
  Workers& all = *pool_.workers_;
  TeamPlace& place = all.places[static_cast<size_t>(place_)];
  Team counting(0, num_threads_, nullptr, nullptr);
  body(counting);
  place.prepare(counting.num_steps(), num_threads_);
  place.body = &body;
  place.tickets.store(num_threads_ - 1);
  all.announce(num_threads_ - 1);
  Team team(0, num_threads_, place.steps.data(), &place);
  body(team);
  place.close();
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

bool Team::leave_if_crowded() { return false; }
void Team::end_step(const Step&, int, int) {}

struct ThreadPool::Workers {};

ThreadPool::ThreadPool(int num_threads) : size_(num_threads) {}
ThreadPool::~ThreadPool() = default;

ThreadPool::Turn::Turn(ThreadPool& pool, bool) : pool_(pool) {}
ThreadPool::Turn::~Turn() = default;

void ThreadPool::Turn::run(const std::function<void(Team&)>& body) {
  Team alone;
  body(alone);
}

void run_on_threads(int, const std::function<void()>& work) { work(); }

}  // namespace edgebert

#endif
