// Fibers: many threads of control on one thread, of which one runs until it stops to wait. Who runs next is
// left to chance.
#pragma once

#include <boost/context/fiber.hpp>
#include <exception>
#include <functional>
#include <vector>

namespace cnnlstm::emulator {

class Fibers {
 public:
  // Fibers 0 .. count-1, of which every `neighbours` that follow each other belong together.
  Fibers(int count, int neighbours) : neighbours_(neighbours), fibers_(count) { choose_late(); }
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;

  // Runs body(i) in every fiber i until all have ended. Where all of them wait, `idle` is asked to wake some;
  // it throws where it cannot. Throws what a fiber or `idle` throws; the fibers that are left are unwound
  // first.
  void run(const std::function<void(int)>& body, const std::function<void()>& idle);

  // The three below are called in a fiber.
  int running() const { return running_; }
  void wait();   // until somebody wakes it
  void yield();  // others may go first

  void wake(int fiber);

 private:
  static constexpr int kNobody = -1;  // also: the thread that called run

  int next();
  void switch_to(int fiber);
  boost::context::fiber& context(int fiber) { return fiber == kNobody ? caller_ : fibers_[fiber]; }
  void choose_late();
  bool is_late(int fiber) const;

  const int neighbours_;
  std::vector<boost::context::fiber> fibers_;
  boost::context::fiber caller_;
  std::exception_ptr error_;
  int running_ = kNobody;
  int living_ = 0;

  // Those that can run. Chance makes some late for a while, warps or whole blocks: they run when nobody else
  // can. Uniform chance alone would keep all of them near each other.
  std::vector<int> ready_, late_;
  uint64_t late_key_;
  int late_group_;
  uint64_t until_late_;  // calls of next() until others are
};

}  // namespace cnnlstm::emulator
