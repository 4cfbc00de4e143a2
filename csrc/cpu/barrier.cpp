#include <chrono>
#include <thread>
#include <utility>

#include "cpu/threads.h"

namespace cnnlstm {

namespace {

using Clock = std::chrono::steady_clock;

// Long enough for what a step of one thread may take longer than that of another. After it the core is
// offered to others, which costs nothing where there are none; only after long waits does a thread sleep,
// since it takes long to wake.
constexpr std::chrono::microseconds kSpin{50}, kYield{1000};
constexpr int kSpinsPerLook = 32;  // at the clock

thread_local int64_t waited = 0;

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
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
    return;
  }
  const auto passed = [&] { return phase_.load(std::memory_order_acquire) != phase; };
  for (int spins = 0; spins < kSpinsPerLook; ++spins) {
    if (passed()) return;
    relax();
  }
  const Clock::time_point start = Clock::now();
  do {
    for (int spins = 0; spins < kSpinsPerLook; ++spins) {
      if (passed()) return;
      relax();
    }
  } while (Clock::now() - start < kSpin);
  while (!passed() && Clock::now() - start < kYield) std::this_thread::yield();
  phase_.wait(phase, std::memory_order_acquire);
  waited += std::chrono::nanoseconds(Clock::now() - start).count();
}

int64_t take_time_waited() { return std::exchange(waited, 0); }

}  // namespace cnnlstm
