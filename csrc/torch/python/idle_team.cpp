#include "torch/python/idle_team.h"

#include <omp.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace cnnlstm::idle_team {
namespace {

using Clock = std::chrono::steady_clock;

// After the last use. PyTorch's threads spin for up to 4 ms after a parallel region, so that calls which are
// further apart lose little without a team.
constexpr std::chrono::milliseconds kWhile{200};

struct Team {
  std::mutex control;  // of those who start and end it
  std::thread leader;
  std::atomic<bool> lives{false};
  std::atomic<Clock::time_point> used{};

  std::mutex mutex;  // of `ending` and `changed`
  std::condition_variable changed;
  bool ending = false;

  void lead() {
    // As many as there are cores: with the callers' own teams that is more. OpenMP keeps them until this
    // thread ends.
#pragma omp parallel num_threads(omp_get_num_procs())
    {
#pragma omp barrier  // the compiler leaves out an empty region
    }
    std::unique_lock lock(mutex);
    while (!ending && Clock::now() < used.load() + kWhile) changed.wait_until(lock, used.load() + kWhile);
    lives.store(false);
  }

  void start() {
    const std::lock_guard lock(control);
    if (lives.load()) return;
    if (leader.joinable()) leader.join();  // it has ended by itself
    ending = false;
    lives.store(true);  // also if it cannot be started: no second try
    leader = std::thread(&Team::lead, this);
  }

  void end() {
    const std::lock_guard lock(control);
    if (!leader.joinable()) return;
    {
      const std::lock_guard wake(mutex);
      ending = true;
      changed.notify_one();
    }
    leader.join();
  }
};

// Never freed: its thread may outlive the process's static objects.
Team* team = new Team;

// A child of fork has not got the thread, and locks may have been held.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { team = new Team; });

}  // namespace

void use() {
  team->used.store(Clock::now(), std::memory_order_relaxed);
  if (!team->lives.load(std::memory_order_relaxed)) team->start();
}

void end() { team->end(); }

}  // namespace cnnlstm::idle_team
