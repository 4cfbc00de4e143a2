#include <chrono>
#include <thread>
#include <utility>

#include "cpu/threads.h"

namespace cnnlstm {

namespace {

using Clock = std::chrono::steady_clock;

// A thread first spins, for about as long as the threads' steps differ in duration. Then it yields its core,
// which costs nothing on an idle machine. It sleeps only after a long wait, since waking up is slow.
constexpr std::chrono::microseconds kSpin{50}, kYield{1000};
constexpr int kSpinsPerClockRead = 32;

thread_local int64_t wait_nanoseconds = 0;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void Barrier::wait(int size) {
  if (size == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
    arrived_.store(0, std::memory_order_relaxed);
    // notify_all() wakes nobody where it reads that nobody sleeps. That must not be read before the new phase
    // is visible, as after a release store it may: a thread that goes to sleep in between would never wake.
    phase_.store(phase + 1, std::memory_order_seq_cst);
    phase_.notify_all();
    return;
  }
  const auto passed = [&] { return phase_.load(std::memory_order_acquire) != phase; };
  for (int spins = 0; spins < kSpinsPerClockRead; ++spins) {
    if (passed()) return;
    relax();
  }
  const Clock::time_point start = Clock::now();
  do {
    for (int spins = 0; spins < kSpinsPerClockRead; ++spins) {
      if (passed()) return;
      relax();
    }
  } while (Clock::now() - start < kSpin);
  while (!passed() && Clock::now() - start < kYield) std::this_thread::yield();
  phase_.wait(phase, std::memory_order_acquire);
  wait_nanoseconds += std::chrono::nanoseconds(Clock::now() - start).count();
}

int64_t take_wait_time() { return std::exchange(wait_nanoseconds, 0); }

}  // namespace cnnlstm
