// Makes OpenMP's threads leave their cores to an engine with threads of its own.
#pragma once

#include <memory>
#include <thread>

namespace cnnlstm {

// While one exists, GNU's OpenMP, which PyTorch uses on Linux, puts a thread to sleep a few microseconds
// after its part of a parallel region. Otherwise it spins for milliseconds and takes a core from whatever
// runs next. OpenMP does so by itself when it manages more threads than there are cores; this is a team of
// further threads, which all sleep. With another OpenMP it has no effect.
class IdleTeam {
 public:
  IdleTeam();
  ~IdleTeam();
  IdleTeam(const IdleTeam&) = delete;
  IdleTeam& operator=(const IdleTeam&) = delete;

 private:
  struct Signal;
  std::shared_ptr<Signal> signal_;
  std::unique_ptr<std::thread> leader_;
};

}  // namespace cnnlstm
