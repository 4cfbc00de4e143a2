#include "cpu/threads.h"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>

namespace cnnlstm {

namespace {

std::atomic<bool> forked{false};

[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

int64_t now() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Whether others use the cores that a team would have. The threads of a team then wait for each other most of
// the time, at every step and in OpenMP's own barriers, which spin for milliseconds: one thread is faster. So
// a team that has slept for long is not formed again for a while, which doubles each time that the next try
// is as bad.
class Crowd {
 public:
  bool is_here() const { return now() < until_.load(std::memory_order_relaxed); }

  void judge(int64_t asleep, int64_t elapsed) {
    if (asleep < kSlept || asleep * 3 < elapsed) {
      pause_.store(kShortest, std::memory_order_relaxed);
      return;
    }
    const int64_t pause = pause_.load(std::memory_order_relaxed);
    until_.store(now() + pause, std::memory_order_relaxed);
    pause_.store(std::min(2 * pause, kLongest), std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kSlept = 1000000, kShortest = 20000000, kLongest = 400000000;  // nanoseconds
  std::atomic<int64_t> until_{0}, pause_{kShortest};
};

Crowd crowd;

}  // namespace

bool is_forked_child() { return forked.load(std::memory_order_relaxed); }

bool is_crowded() { return crowd.is_here(); }

void run_team(int wanted, void (*body)(void* context, int rank, int size), void* context) {
  if (wanted <= 1 || omp_in_parallel() || is_forked_child() || is_crowded()) {
    body(context, 0, 1);
    return;
  }
  Barrier end;  // where a thread may sleep until the others are done, as in OpenMP's own it may not
  std::atomic<int64_t> asleep{0};
  const int64_t start = now();
#pragma omp parallel num_threads(wanted)
  {
    take_time_asleep();
    body(context, omp_get_thread_num(), omp_get_num_threads());
    end.wait(omp_get_num_threads());
    const int64_t mine = take_time_asleep();
    int64_t most = asleep.load(std::memory_order_relaxed);
    while (mine > most && !asleep.compare_exchange_weak(most, mine, std::memory_order_relaxed)) {
    }
  }
  crowd.judge(asleep.load(), now() - start);
}

}  // namespace cnnlstm
