#include "pool.h"

#include <chrono>
#include <stdexcept>
#include <string>

namespace etude {
namespace {

// Long enough to bridge the short serial parts of a step, far shorter than a scheduler's time slice.
constexpr auto spin_time = std::chrono::microseconds(60);
constexpr int spins_per_look = 64;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int checked(int threads) {
  if (threads < 1 || threads > 1024) throw std::invalid_argument("threads = " + std::to_string(threads) + ", allowed 1 to 1024");
  return threads;
}

}  // namespace

Pool::Pool(int threads) : threads_(checked(threads)) {
  for (int i = 1; i < threads_; i++) workers_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
  closing_ = true;
  job_.fetch_add(1);
  wake();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::wait_change(const std::atomic<unsigned>& value, unsigned seen) {
  const auto deadline = std::chrono::steady_clock::now() + spin_time;
  do {
    for (int i = 0; i < spins_per_look; i++) {
      if (value.load(std::memory_order_acquire) != seen) return;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1);
  wakeup_.wait(lock, [&] { return value.load() != seen; });
  sleepers_.fetch_sub(1);
}

// A sleeper counts itself under the mutex before it looks at the value for the last time, so none is missed.
void Pool::wake() {
  if (sleepers_.load() == 0) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (sleepers_.load() == 0) return;
  }
  { std::lock_guard<std::mutex> lock(mutex_); }
  wakeup_.notify_all();
}

void Pool::barrier() {
  if (threads_ == 1) {
    next_.store(0, std::memory_order_relaxed);
    return;
  }
  const unsigned phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads_) return wait_change(phase_, phase);
  arrived_.store(0, std::memory_order_relaxed);
  next_.store(0, std::memory_order_relaxed);
  phase_.store(phase + 1);
  wake();
}

void Pool::run(const std::function<void(int)>& body) {
  next_.store(0, std::memory_order_relaxed);
  body_ = &body;
  job_.fetch_add(1);
  wake();
  body(0);
  barrier();
}

void Pool::work(int index) {
  unsigned seen = 0;
  for (;;) {
    wait_change(job_, seen);
    seen++;
    if (closing_) return;
    (*body_)(index);
    barrier();
  }
}

}  // namespace etude
