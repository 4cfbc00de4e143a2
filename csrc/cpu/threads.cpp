#include "cpu/threads.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>

namespace cnnlstm {

namespace {

// Long enough for a step of the other thread, short enough that a descheduled partner costs little:
// with more runnable threads than cores, spinning keeps the awaited one from running at all.
constexpr int kSpins = 1500;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::atomic<bool> forked{false};

[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

}  // namespace

void Barrier::wait(int size) {
  if (size == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
    if (spins < kSpins) {
      relax();
    } else {
      sched_yield();
    }
  }
}

bool is_forked_child() { return forked.load(std::memory_order_relaxed); }

void run_team(int wanted, void (*body)(void* context, int rank, int size), void* context) {
  if (wanted <= 1 || omp_in_parallel() || is_forked_child()) {
    body(context, 0, 1);
    return;
  }
#pragma omp parallel num_threads(wanted)
  body(context, omp_get_thread_num(), omp_get_num_threads());
}

}  // namespace cnnlstm
