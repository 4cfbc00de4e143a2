#include "cuda_emulator/fibers.h"

#include <boost/context/protected_fixedsize_stack.hpp>
#include <utility>

#include "cuda_emulator/chance.h"
#include "cuda_emulator/warp.h"

namespace cnnlstm::emulator {
namespace {

using boost::context::fiber;

// Stacks with a guard page, kept for the next launch: mapping them takes longer than most kernels run.
class Stacks {
 public:
  boost::context::stack_context allocate() {
    if (idle_.empty()) return fresh_.allocate();
    const auto stack = idle_.back();
    idle_.pop_back();
    return stack;
  }
  void deallocate(boost::context::stack_context& stack) { idle_.push_back(stack); }

 private:
  boost::context::protected_fixedsize_stack fresh_{64 * 1024};
  std::vector<boost::context::stack_context> idle_;
};

Stacks stacks;

// Boost copies the allocator into each stack.
struct SharedStacks {
  using traits_type = boost::context::stack_traits;
  boost::context::stack_context allocate() { return stacks.allocate(); }
  void deallocate(boost::context::stack_context& stack) { stacks.deallocate(stack); }
};

}  // namespace

void Fibers::run(const std::function<void(int)>& body, const std::function<void()>& idle) {
  living_ = static_cast<int>(fibers_.size());
  for (int i = 0; i < living_; ++i) {
    fibers_[i] = fiber(std::allocator_arg, SharedStacks{}, [this, i, &body](fiber&&) {
      try {
        body(i);
      } catch (const boost::context::detail::forced_unwind&) {
        throw;
      } catch (...) {
        error_ = std::current_exception();
      }
      --living_;
      running_ = kNobody;
      return std::move(caller_);
    });
    wake(i);
  }
  while (living_ > 0 && !error_) {
    const int fiber = next();
    if (fiber != kNobody) {
      switch_to(fiber);
      continue;
    }
    try {
      idle();
    } catch (...) {
      error_ = std::current_exception();
    }
  }
  fibers_.clear();
  if (error_) std::rethrow_exception(error_);
}

void Fibers::wait() { switch_to(next()); }

void Fibers::yield() {
  wake(running_);
  wait();
}

void Fibers::wake(int fiber) { (is_late(fiber) ? late_ : ready_).push_back(fiber); }

int Fibers::next() {
  if (--until_late_ == 0) choose_late();
  std::vector<int>& from = ready_.empty() ? late_ : ready_;
  if (from.empty()) return kNobody;
  std::swap(from[chance.below(from.size())], from.back());
  const int fiber = from.back();
  from.pop_back();
  return fiber;
}

void Fibers::switch_to(int fiber) {
  const int from = running_;
  if (fiber == from) return;
  running_ = fiber;
  std::move(context(fiber)).resume_with([this, from](boost::context::fiber&& stopped) {
    context(from) = std::move(stopped);
    return boost::context::fiber();
  });
}

void Fibers::choose_late() {
  late_key_ = chance.generator()();
  late_group_ = chance.one_in(2) ? neighbours_ : kLanes;
  until_late_ = 1 + chance.below(32 * fibers_.size());
}

// One group in four.
bool Fibers::is_late(int fiber) const {
  const uint64_t group = fiber / late_group_;
  return (late_key_ ^ group * 0x9e3779b97f4a7c15u) * 0xd6e8feb86659fd93u >> 62 == 0;
}

}  // namespace cnnlstm::emulator
