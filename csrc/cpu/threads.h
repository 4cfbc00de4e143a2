// Threads for the recurrence: a team, and a barrier cheap enough to stand between two time steps.
#pragma once

#include <atomic>
#include <cstdint>

namespace cnnlstm {

class Barrier {
 public:
  // Returns when `size` threads have called it; what they wrote before is visible to all after. Spins for a
  // moment, then gives its core to others.
  void wait(int size);

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

// Nanoseconds that this thread has waited long in barriers since it last asked.
int64_t take_time_waited();

// Whether this process was forked from one that had loaded this library. Its OpenMP runtime then
// believes in worker threads that no longer exist and would wait for them for ever.
bool is_forked_child();

// While it lives, the calling thread and the libraries that it calls run alone, if other threads of the
// machine have lately kept a team's threads from running at once. (MKL stays with what torch.set_num_threads
// told it.)
class AloneInCrowd {
 public:
  AloneInCrowd();
  ~AloneInCrowd();

 private:
  int threads_;  // to restore
};

// Runs body(context, rank, size) on a team of `size` <= wanted threads, 0 <= rank < size; the calling
// thread is rank 0. The team is smaller where OpenMP gives fewer threads, and 1 inside another
// parallel region or in a forked child.
void run_team(int wanted, void (*body)(void* context, int rank, int size), void* context);

}  // namespace cnnlstm
