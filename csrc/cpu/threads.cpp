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
// after a few teams in a row that have waited for long (one alone may be chance), none is formed for a while,
// and for twice that each time that the next one is as bad.
class Crowd {
 public:
  bool is_here() const { return now() < until_.load(std::memory_order_relaxed); }

  void judge(int64_t waited, int64_t elapsed) {
    if (waited < kWaited || waited * 3 < elapsed) {
      bad_.store(0, std::memory_order_relaxed);
      pause_.store(kShortest, std::memory_order_relaxed);
    } else if (bad_.fetch_add(1, std::memory_order_relaxed) + 1 >= kTeams) {
      const int64_t pause = pause_.load(std::memory_order_relaxed);
      until_.store(now() + pause, std::memory_order_relaxed);
      pause_.store(std::min(2 * pause, kLongest), std::memory_order_relaxed);
    }
  }

 private:
  static constexpr int kTeams = 3;
  static constexpr int64_t kWaited = 1000000, kShortest = 20000000, kLongest = 400000000;  // nanoseconds
  std::atomic<int64_t> until_{0}, pause_{kShortest};
  std::atomic<int> bad_{0};
};

Crowd crowd;

}  // namespace

bool is_forked_child() { return forked.load(std::memory_order_relaxed); }

AloneInCrowd::AloneInCrowd() : threads_(omp_get_max_threads()) {
  if (crowd.is_here()) omp_set_num_threads(1);
}

AloneInCrowd::~AloneInCrowd() { omp_set_num_threads(threads_); }

void run_team(int wanted, void (*body)(void* context, int rank, int size), void* context) {
  if (wanted <= 1 || omp_in_parallel() || is_forked_child()) {
    body(context, 0, 1);
    return;
  }
  Barrier
      end;  // where a thread may give its core away until the others are done, as it may not in OpenMP's own
  std::atomic<int64_t> waited{0};
  const int64_t start = now();
#pragma omp parallel num_threads(wanted)
  {
    take_time_waited();
    body(context, omp_get_thread_num(), omp_get_num_threads());
    end.wait(omp_get_num_threads());
    const int64_t mine = take_time_waited();
    int64_t most = waited.load(std::memory_order_relaxed);
    while (mine > most && !waited.compare_exchange_weak(most, mine, std::memory_order_relaxed)) {
    }
  }
  crowd.judge(waited.load(), now() - start);
}

}  // namespace cnnlstm
