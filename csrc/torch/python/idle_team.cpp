#include "torch/python/idle_team.h"

#include <omp.h>
#include <unistd.h>

#include <atomic>

namespace cnnlstm {

struct IdleTeam::Signal {
  std::atomic<bool> started{false}, ended{false};
  const pid_t process = getpid();
};

IdleTeam::IdleTeam() : signal_(std::make_shared<Signal>()) {
  leader_ = std::make_unique<std::thread>([signal = signal_] {
  // As many as there are cores: with the callers' own teams that is more. OpenMP keeps them until this thread
  // ends.
#pragma omp parallel num_threads(omp_get_num_procs())
    {
#pragma omp barrier  // the compiler leaves out an empty region
    }
    signal->started.store(true);
    signal->started.notify_one();
    signal->ended.wait(false);
  });
  signal_->started.wait(false);
}

IdleTeam::~IdleTeam() {
  if (getpid() == signal_->process) {
    signal_->ended.store(true);
    signal_->ended.notify_one();
    leader_->join();
  } else {
    static_cast<void>(
        leader_.release());  // a child of fork: the thread is the parent's, and cannot be joined
  }
}

}  // namespace cnnlstm
