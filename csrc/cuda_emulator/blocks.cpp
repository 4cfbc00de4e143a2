#include "cuda_emulator/blocks.h"

#include <string.h>

#include <stdexcept>

#include "cuda_emulator/chance.h"
#include "cuda_emulator/faults.h"

namespace cnnlstm::emulator {

Blocks* blocks = nullptr;

std::string name(const BlockPlace& block) {
  return "block (" + std::to_string(block.x) + ", " + std::to_string(block.y) + ", " +
         std::to_string(block.z) + ")";
}

std::string name(const Thread& thread) {
  const Place& place = thread.place;
  return "thread " + std::to_string(place.thread) + " of " +
         name(BlockPlace{place.block_x, place.block_y, place.block_z});
}

[[noreturn]] void fail(const Thread& thread, const std::string& what) {
  throw std::runtime_error(name(thread) + ": " + what);
}

static int64_t rounded_up(int64_t bytes) { return (bytes + 15) / 16 * 16; }

Blocks::Blocks(const LaunchShape& shape, const std::vector<Array>& arrays,
               const std::vector<BlockPlace>& places)
    : arrays_(arrays),
      shared_bytes_(static_cast<int64_t>(shape.shared_bytes)),
      memory_(places.size() * rounded_up(shared_bytes_) + 16, static_cast<char>(0xff)),
      blocks_(places.size()),
      warps_(places.size() * ((shape.threads + kLanes - 1) / kLanes)),
      threads_(places.size() * shape.threads),
      fibers_(static_cast<int>(threads_.size()), shape.threads) {
  char* const memory = memory_.data() + (16 - reinterpret_cast<uintptr_t>(memory_.data()) % 16) % 16;
  const size_t warps = warps_.size() / blocks_.size();
  everybody_.size = static_cast<int>(threads_.size());
  for (size_t b = 0; b < blocks_.size(); ++b) {
    Block& block = blocks_[b];
    block.place = places[b];
    block.shared = memory + b * rounded_up(shared_bytes_);
    block.meeting.size = block.living = shape.threads;
    for (int t = 0; t < shape.threads; ++t) {
      Thread& thread = threads_[b * shape.threads + t];
      thread.place = {t, shape.threads, places[b].x, places[b].y, places[b].z, shape.x, shape.y};
      thread.block = &block;
      thread.warp = &warps_[b * warps + t / kLanes];
      ++thread.warp->meeting.size;
    }
  }
}

void Blocks::run(const std::function<void()>& kernel) {
  const auto body = [&](int fiber) {
    kernel();
    end(threads_[fiber]);
  };
  fibers_.run(body, [this] { idle(); });
  while (!sends_.empty()) deliver_one();
}

void Blocks::wait(const char* where) {
  if (!sends_.empty() && chance.one_in(8)) deliver_one();
  Thread& thread = self();
  thread.waits_in = where;
  fibers_.wait();
  thread.waits_in = nullptr;
}

void Blocks::wake(std::vector<Thread*>& waiting) {
  for (const Thread* thread : waiting) fibers_.wake(static_cast<int>(thread - threads_.data()));
  waiting.clear();
}

void Blocks::let_others_go_first() {
  if (!chance.switches()) return;
  std::vector<Copy>& copies = self().copies;
  if (!copies.empty()) {
    std::swap(copies[chance.below(copies.size())], copies.back());
    copies.back().land();
    copies.pop_back();
  }
  if (!sends_.empty() && chance.one_in(8)) deliver_one();
  fibers_.yield();
}

void Blocks::end(Thread& thread) {
  for (Meeting* meeting : {&thread.warp->meeting, &thread.block->meeting, &everybody_}) {
    if (!meeting->waiting.empty()) {
      const Thread& other = *meeting->waiting.front();
      fail(thread, "it has ended while " + name(other) + " waits for it in " + other.waits_in);
    }
    meeting->ended = &thread;
  }
  --thread.block->living;
}

// Called when every live thread waits.
void Blocks::idle() {
  if (!sends_.empty()) return deliver_one();
  if (!stored_ || polling_.empty()) fail_deadlocked();
  stored_ = false;
  wake(polling_);
}

void Blocks::fail_deadlocked() const {
  const Thread* first = nullptr;
  int waiting = 0;
  for (const Thread& thread : threads_) {
    if (thread.waits_in == nullptr) continue;
    if (waiting++ == 0) first = &thread;
  }
  fail(*first, std::string("it waits in ") + first->waits_in +
                   " for ever, as do all threads that have not ended (" + std::to_string(waiting) + ")");
}

void Blocks::meet(Meeting& meeting, const char* where) {
  Thread& thread = self();
  if (meeting.ended != nullptr)
    fail(thread, std::string("it waits in ") + where + " for " + name(*meeting.ended) + ", which has ended");
  if (static_cast<int>(meeting.waiting.size()) + 1 < meeting.size) {
    meeting.waiting.push_back(&thread);
    wait(where);
  } else {
    wake(meeting.waiting);
  }
}

void Blocks::meet_warp(const char* what, void* mine, void (*compute)(void* const* lanes)) {
  Thread& thread = self();
  Warp& warp = *thread.warp;
  const std::vector<Thread*>& waiting = warp.meeting.waiting;
  if (warp.meeting.size < kLanes)
    fail(thread,
         std::string("it calls ") + what + " in a warp of " + std::to_string(warp.meeting.size) + " threads");
  if (!waiting.empty() && strcmp(waiting.front()->waits_in, what) != 0)
    fail(thread, std::string("it calls ") + what + " while " + name(*waiting.front()) +
                     " of its warp waits in " + waiting.front()->waits_in);
  warp.lanes[thread.place.thread % kLanes] = mine;
  if (waiting.size() + 1 == kLanes && compute != nullptr) compute(warp.lanes);
  meet(warp.meeting, what);
}

void Blocks::stored_word() {
  stored_ = true;
  if (polling_.empty()) return;
  std::swap(polling_[chance.below(polling_.size())], polling_.back());
  fibers_.wake(static_cast<int>(polling_.back() - threads_.data()));
  polling_.pop_back();
}

void Blocks::wait_for_words() {
  polling_.push_back(&self());
  wait("a loop that watches words");
}

const Place& here() { return blocks->self().place; }

void block_barrier() {
  if (planted != Fault::kBlockBarrier) blocks->meet(blocks->self().block->meeting, "block_barrier");
}

void warp_barrier() {
  if (planted != Fault::kWarpBarrier) blocks->meet_warp("warp_barrier", nullptr, nullptr);
}

void cluster_barrier() { blocks->meet_cluster(); }

void shuffle(ShuffleLane& lane) { blocks->meet_warp("shuffle_xor", &lane, exchange); }

void product(ProductLane& lane) { blocks->meet_warp("mma", &lane, multiply); }

void matrices(MatricesLane& lane) {
  blocks->check_shared(Access::kLoad, lane.row, 16, 16);
  blocks->meet_warp("load_matrices", &lane, read_matrices);
}

void store_word(uint64_t* at, uint64_t word) {
  touch_global(Access::kStore, at, sizeof(word), sizeof(word));
  if (loses(Fault::kWordLost)) return;
  *at = word;
  blocks->stored_word();
}

void wait_for_words() { blocks->wait_for_words(); }

}  // namespace cnnlstm::emulator
