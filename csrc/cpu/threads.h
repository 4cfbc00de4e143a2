// Threads for the recurrence: a team, and a barrier that is cheap enough for every time step.
#pragma once

#include <atomic>
#include <cstdint>

namespace cnnlstm {

class Barrier {
 public:
  // Returns when `size` threads have called it; what they wrote before is visible to all after. Spins
  // briefly, then yields the core.
  void wait(int size);

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

// Nanoseconds that this thread has spent in barrier waits longer than a spin since the last call; resets the
// count.
int64_t take_wait_time();

// Whether this process was forked from one that had loaded this library. Its OpenMP runtime would then wait
// forever for worker threads that only the parent process has.
bool is_forked_child();

// While it exists, the calling thread and the libraries that it calls use one OpenMP thread, if the machine
// was recently oversubscribed: other work prevented a team's threads from running at the same time. MKL is
// not affected, which keeps the number from torch.set_num_threads.
class OversubscriptionGuard {
 public:
  OversubscriptionGuard();
  ~OversubscriptionGuard();

 private:
  int threads_;  // to restore
};

// Runs body(context, rank, size) on a team of `size` <= wanted threads, 0 <= rank < size; the calling
// thread is rank 0. The team is smaller where OpenMP gives fewer threads, and 1 inside another
// parallel region or in a forked child.
void run_team(int wanted, void (*body)(void* context, int rank, int size), void* context);

}  // namespace cnnlstm
