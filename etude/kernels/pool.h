// Persistent threads for one model step: every thread runs the same body and meets the others at barriers.
//
// Waiting threads spin briefly, then sleep: on a busy machine a spinning thread would burn the time slice that its
// preempted sibling needs. Work inside a phase is handed out in small pieces, so a slow thread takes fewer of them.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace etude {

class Pool {
 public:
  explicit Pool(int threads);  // std::invalid_argument outside 1..1024
  ~Pool();
  int threads() const { return threads_; }

  // Runs body(thread index) on all threads; returns when all are done. Not reentrant.
  void run(const std::function<void(int)>& body);

  // Inside run(): all threads arrive before any goes on. The piece counter starts again at 0.
  void barrier();

  // Inside run(): the first piece of the next `size` not yet handed out in this phase.
  int take(int size) { return next_.fetch_add(size, std::memory_order_relaxed); }

 private:
  void work(int index);
  // Waits until `value` differs from `seen`: spinning first, then asleep.
  void wait_change(const std::atomic<unsigned>& value, unsigned seen);
  void wake();

  const int threads_;
  std::vector<std::thread> workers_;
  std::atomic<unsigned> job_{0}, phase_{0};
  std::atomic<int> arrived_{0}, next_{0}, sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wakeup_;
  const std::function<void(int)>* body_ = nullptr;
  bool closing_ = false;
};

}  // namespace etude
