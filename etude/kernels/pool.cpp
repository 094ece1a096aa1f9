#include "pool.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include <time.h>

namespace etude {
namespace {

// Long enough to bridge the short serial parts of a step, far shorter than a scheduler's time slice.
constexpr auto spin_time = std::chrono::microseconds(60);
constexpr int spins_per_look = 64;
constexpr unsigned job_step = 2048;  // more than the most threads

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

thread_local int thread_index = 0;  // in its pool; the thread that calls run() is 0

int checked(int threads) {
  if (threads < 1 || threads > 1024) throw std::invalid_argument("threads = " + std::to_string(threads) + ", allowed 1 to 1024");
  return threads;
}

}  // namespace

Pool::Pool(int threads) : threads_(checked(threads)), active_(threads), shares_(threads) {
  for (int i = 1; i < threads_; i++) workers_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
  job_.store(job_.load() / job_step * job_step + job_step);
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

void Pool::reset() {
  for (Share& share : shares_) share.taken.store(0, std::memory_order_relaxed);
}

int Pool::take(int total, int size) {
  const int64_t pieces = (int64_t(total) + size - 1) / size;
  for (int i = 0; i < active_; i++) {
    const int owner = (thread_index + i) % active_;
    const int64_t first = pieces * owner / active_, end = pieces * (owner + 1) / active_;
    const int64_t piece = first + shares_[owner].taken.fetch_add(1, std::memory_order_relaxed);
    if (piece < end) return int(piece * size);
  }
  return total;
}

void Pool::barrier() {
  const int active = active_;  // read before arriving: after the last barrier of a job the next may begin with other threads
  if (active == 1) return reset();
  const unsigned phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < active) return wait_change(phase_, phase);
  arrived_.store(0, std::memory_order_relaxed);
  reset();
  phase_.store(phase + 1);
  wake();
}

void Pool::run(const std::function<void(int)>& body, int active) {
  active_ = active ? std::min(active, threads_) : threads_;
  reset();
  if (active_ > 1) {  // alone, the others go on sleeping
    body_ = &body;
    job_.store(job_.load() / job_step * job_step + job_step + unsigned(active_));
    wake();
  }
  body(0);
  barrier();
}

// A job that this thread has no part in may be over, and the next begun, before it looks: it takes the newest.
void Pool::work(int index) {
  thread_index = index;
  unsigned seen = 0;
  for (;;) {
    wait_change(job_, seen);
    seen = job_.load();
    if (seen % job_step == 0) return;
    if (index >= int(seen % job_step)) continue;
    (*body_)(index);
    barrier();
  }
}

#if defined(CLOCK_THREAD_CPUTIME_ID)
static double seconds(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

void Crowding::run(const std::function<void(int)>& step) {
  constexpr double lost_share = 0.2, first_hold_s = 0.1, hold_growth = 4, longest_hold_s = 2;
  const double start = seconds(CLOCK_MONOTONIC);
  if (start < until_s_) return step(threads_ - 1);
  const double cpu = seconds(CLOCK_THREAD_CPUTIME_ID);
  step(threads_);
  const double end = seconds(CLOCK_MONOTONIC), used = seconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
  if (threads_ == 1 || used > (1 - lost_share) * (end - start)) {
    hold_s_ = 0;
    return;
  }
  hold_s_ = hold_s_ ? std::min(hold_growth * hold_s_, longest_hold_s) : first_hold_s;
  until_s_ = end + hold_s_;
}
#else
void Crowding::run(const std::function<void(int)>& step) { step(threads_); }
#endif

}  // namespace etude
