#include <string.h>

#include "cuda_emulator/blocks.h"
#include "cuda_emulator/chance.h"
#include "cuda_emulator/faults.h"

namespace cnnlstm::emulator {

constexpr int64_t kMostBarrierBytes = (1 << 20) - 1;  // that an mbarrier counts

Barrier& Blocks::barrier(Block& block, const uint64_t* at, const Thread& caller) {
  for (Barrier& barrier : block.barriers) {
    if (barrier.at == at) return barrier;
  }
  fail(caller, "it uses an mbarrier at byte " +
                   std::to_string(reinterpret_cast<const char*>(at) - block.shared) +
                   " of the shared memory of " + name(block.place) + " before that is initialised");
}

void Blocks::end_phase_if_complete(Barrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.missing = barrier.arrivals;
  wake(barrier.waiting);
}

void Blocks::arrivals_init(const uint64_t* at, int arrivals) {
  Thread& thread = self();
  for (const Barrier& barrier : thread.block->barriers) {
    if (barrier.at == at) fail(thread, "it initialises an mbarrier a second time");
  }
  thread.block->barriers.push_back({at, arrivals, arrivals});
}

void Blocks::arrive(const uint64_t* at, int expected_bytes) {
  const Thread& thread = self();
  Barrier& barrier = this->barrier(*thread.block, at, thread);
  if (barrier.missing == 0)
    fail(thread, "it arrives at an mbarrier at which all arrivals of the phase have come");
  barrier.bytes += expected_bytes;
  if (barrier.bytes > kMostBarrierBytes) fail(thread, "it expects more bytes than an mbarrier can count");
  --barrier.missing;
  end_phase_if_complete(barrier);
}

void Blocks::wait_phase(const uint64_t* at, int parity) {
  Thread& thread = self();
  // as on the GPU: a phase of this parity has ended if the current one has the other parity
  while (barrier(*thread.block, at, thread).phase % 2 == parity) {
    barrier(*thread.block, at, thread).waiting.push_back(&thread);
    wait("wait_phase");
  }
}

void Blocks::send(const void* own, uint4 value, const uint64_t* barrier, int rank) {
  const Thread& thread = self();
  if (rank < 0 || rank >= static_cast<int>(blocks_.size()))
    fail(thread,
         "it sends to block " + std::to_string(rank) + " of a cluster of " + std::to_string(blocks_.size()));
  Block& to = blocks_[rank];
  const int64_t distance = to.shared - thread.block->shared;
  const auto there = [&](const void* here) { return reinterpret_cast<intptr_t>(here) + distance; };
  sends_.push_back({&thread, &to, reinterpret_cast<char*>(there(own)),
                    reinterpret_cast<const uint64_t*>(there(barrier)), value});
}

// One of the transfers in flight arrives.
void Blocks::deliver_one() {
  std::swap(sends_[chance.below(sends_.size())], sends_.back());
  const Send send = sends_.back();
  sends_.pop_back();
  if (send.to->living == 0)
    fail(*send.sender, "it sends to " + name(send.to->place) + ", which has ended before that arrives");
  Barrier& barrier = this->barrier(*send.to, send.barrier, *send.sender);
  memcpy(send.at, &send.value, sizeof(send.value));
  barrier.bytes -= sizeof(send.value);
  if (barrier.bytes < -kMostBarrierBytes)
    fail(*send.sender, "it sends more bytes than an mbarrier can count");
  end_phase_if_complete(barrier);
}

void arrivals_init(uint64_t* barrier, int arrivals) {
  touch_shared(Access::kBarrier, barrier, sizeof(*barrier), sizeof(*barrier));
  blocks->arrivals_init(barrier, arrivals);
}

void arrive(uint64_t* barrier, int expected_bytes) {
  touch_shared(Access::kBarrier, barrier, sizeof(*barrier), sizeof(*barrier));
  if (!loses(Fault::kArrivalLost)) blocks->arrive(barrier, expected_bytes);
}

void wait_phase(uint64_t* barrier, int parity) {
  touch_shared(Access::kBarrier, barrier, sizeof(*barrier), sizeof(*barrier));
  blocks->wait_phase(barrier, parity);
}

void send(void* own, uint4 value, uint64_t* barrier, int rank) {
  blocks->check_shared(Access::kBarrier, barrier, sizeof(*barrier), sizeof(*barrier));
  touch_shared(Access::kStore, own, sizeof(value), sizeof(value));
  if (!loses(Fault::kSendLost)) blocks->send(own, value, barrier, rank);
}

}  // namespace cnnlstm::emulator
