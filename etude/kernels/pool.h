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

  // Runs body(thread index) on all threads, or on the first `active`; returns when all are done. Not reentrant.
  void run(const std::function<void(int)>& body, int active = 0);

  // Inside run(): all threads arrive before any goes on. All work counts as not handed out again.
  void barrier();

  // Inside run(): where the next `size` of `total` units of work begin; `total` when this phase has none left. A thread first
  // works through a share of its own from front to end (so that what it prefetched or wrote in the last phase is near), then
  // helps the others.
  int take(int total, int size);

 private:
  void work(int index);
  // Waits until `value` differs from `seen`: spinning first, then asleep.
  void wait_change(const std::atomic<unsigned>& value, unsigned seen);
  void wake();
  void reset();

  const int threads_;
  int active_;  // of the running job
  std::vector<std::thread> workers_;
  std::atomic<unsigned> job_{0}, phase_{0};  // job: a count, and in the lowest bits how many threads it is for (0: the end)
  std::atomic<int> arrived_{0}, sleepers_{0};
  struct alignas(64) Share {
    std::atomic<int> taken{0};
  };
  std::vector<Share> shares_;
  std::mutex mutex_;
  std::condition_variable wakeup_;
  const std::function<void(int)>* body_ = nullptr;
};

// How many threads to run a step on while a neighbour wants the processor too.
//
// The threads of a short step meet at a barrier every few microseconds, so all of them wait while one is preempted for a
// scheduler's slice of some milliseconds: two threads and one neighbour on two cores reach a third of their speed, one thread
// alone on a core of its own reaches half. So when the caller of a step lost much of its time to waiting, the next steps run on
// one thread less, and after a while it is tried again with all.
class Crowding {
 public:
  explicit Crowding(int threads) : threads_(threads) {}
  // Wraps one short step: takes the number of threads to use.
  void run(const std::function<void(int)>& step);

 private:
  const int threads_;
  double until_s_ = 0, hold_s_ = 0;
};

}  // namespace etude
