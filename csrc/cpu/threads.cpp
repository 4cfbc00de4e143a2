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

// Detects that other work occupies the cores of a team. The threads of a team then wait for each other most
// of the time, at every step and in OpenMP's own barriers, which spin for milliseconds: one thread is faster.
// After several slow teams in a row (a single one may be chance) no team is formed for a pause, which doubles
// each time that the next team is slow, too.
class OversubscriptionMonitor {
 public:
  bool detected() const { return now() < until_.load(std::memory_order_relaxed); }

  void record_team(int64_t waited, int64_t elapsed) {
    if (waited < kMinWait || waited * 3 < elapsed) {
      slow_teams_.store(0, std::memory_order_relaxed);
      pause_.store(kMinPause, std::memory_order_relaxed);
    } else if (slow_teams_.fetch_add(1, std::memory_order_relaxed) + 1 >= kSlowTeams) {
      const int64_t pause = pause_.load(std::memory_order_relaxed);
      until_.store(now() + pause, std::memory_order_relaxed);
      pause_.store(std::min(2 * pause, kMaxPause), std::memory_order_relaxed);
    }
  }

 private:
  static constexpr int kSlowTeams = 3;
  static constexpr int64_t kMinWait = 1000000, kMinPause = 20000000, kMaxPause = 400000000;  // nanoseconds
  std::atomic<int64_t> until_{0}, pause_{kMinPause};
  std::atomic<int> slow_teams_{0};
};

OversubscriptionMonitor oversubscription;

}  // namespace

bool is_forked_child() { return forked.load(std::memory_order_relaxed); }

OversubscriptionGuard::OversubscriptionGuard() : threads_(omp_get_max_threads()) {
  if (oversubscription.detected()) omp_set_num_threads(1);
}

OversubscriptionGuard::~OversubscriptionGuard() { omp_set_num_threads(threads_); }

void run_team(int wanted, void (*body)(void* context, int rank, int size), void* context) {
  if (wanted <= 1 || omp_in_parallel() || is_forked_child()) {
    body(context, 0, 1);
    return;
  }
  // Threads that are done wait here for the others, since this barrier yields the core and OpenMP's does not.
  Barrier end;
  std::atomic<int64_t> waited{0};
  const int64_t start = now();
#pragma omp parallel num_threads(wanted)
  {
    take_wait_time();
    body(context, omp_get_thread_num(), omp_get_num_threads());
    end.wait(omp_get_num_threads());
    const int64_t mine = take_wait_time();
    int64_t most = waited.load(std::memory_order_relaxed);
    while (mine > most && !waited.compare_exchange_weak(most, mine, std::memory_order_relaxed)) {
    }
  }
  oversubscription.record_team(waited.load(), now() - start);
}

}  // namespace cnnlstm
