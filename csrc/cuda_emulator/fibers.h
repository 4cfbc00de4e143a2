// Fibers: many threads of control on one thread, of which one runs until it waits. Which one runs next is
// random.
#pragma once

#include <boost/context/fiber.hpp>
#include <exception>
#include <functional>
#include <vector>

namespace cnnlstm::emulator {

class Fibers {
 public:
  // Fibers 0 .. count-1, of which every `neighbours` consecutive ones form a group.
  Fibers(int count, int neighbours) : neighbours_(neighbours), fibers_(count) { choose_late(); }
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;

  // Runs body(i) in every fiber i until all have ended. When all of them wait, `idle` is called to wake some;
  // it throws if it cannot. Throws what a fiber or `idle` throws; the remaining fibers are unwound first.
  void run(const std::function<void(int)>& body, const std::function<void()>& idle);

  // The three below are called in a fiber.
  int running() const { return running_; }
  void wait();   // until it is woken
  void yield();  // others may run first

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

  // Those that can run. Some, warps or whole blocks, are delayed at random for a while: they run only when no
  // other can. A uniform choice alone would keep all of them near each other.
  std::vector<int> ready_, late_;
  uint64_t late_key_;
  int late_group_;
  uint64_t until_late_;  // calls of next() until others are delayed
};

}  // namespace cnnlstm::emulator
