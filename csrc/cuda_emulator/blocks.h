// The resident blocks: their threads, what these wait for, and what is in flight between them. The functions
// of machine.h are defined by topic: waiting in blocks.cpp, memory in memory.cpp, clusters in cluster.cpp.
#pragma once

#include <string>
#include <vector>

#include "cuda_emulator/fibers.h"
#include "cuda_emulator/machine.h"

namespace cnnlstm::emulator {

// An asynchronous copy of 16 bytes, and the group of the thread's copies that it belongs to.
struct Copy {
  char* to;
  const char* from;
  bool exists;
  int group;

  void land() const;
};

struct BlockPlace {
  int x, y, z;
};

struct Block;
struct Warp;

struct Thread {
  Place place;
  Block* block;
  Warp* warp;
  const char* waits_in = nullptr;
  std::vector<Copy> copies;
  int copy_group = 0;
};

// Threads that wait for each other.
struct Meeting {
  int size = 0;
  std::vector<Thread*> waiting = {};
  const Thread* ended = nullptr;
};

struct Warp {
  Meeting meeting;
  void* lanes[kLanes];
};

// An mbarrier. Reading its 8 bytes of shared memory is an error, so its state need not lie there.
struct Barrier {
  const uint64_t* at;
  int arrivals;  // of a phase
  int missing;   // of this phase
  int64_t bytes = 0;
  int phase = 0;
  std::vector<Thread*> waiting = {};
};

struct Block {
  BlockPlace place;
  char* shared;
  int living;  // threads that have not ended
  Meeting meeting;
  std::vector<Barrier> barriers;
};

// 16 bytes that are being sent to another block.
struct Send {
  const Thread* sender;
  Block* to;
  char* at;
  const uint64_t* barrier;
  uint4 value;
};

// Throws an error that names the thread.
[[noreturn]] void fail(const Thread& thread, const std::string& what);
std::string name(const BlockPlace& block);
std::string name(const Thread& thread);

// The blocks that run at once.
class Blocks {
 public:
  Blocks(const LaunchShape& shape, const std::vector<Array>& arrays, const std::vector<BlockPlace>& places);

  // Runs until all threads have ended; throws what a thread throws.
  void run(const std::function<void()>& kernel);

  Thread& self() { return threads_[fibers_.running()]; }
  void let_others_go_first();

  // The thread continues when all have arrived.
  void meet(Meeting& meeting, const char* where);
  void meet_cluster() { meet(everybody_, "cluster_barrier"); }
  // The last lane to arrive computes for all of them.
  void meet_warp(const char* what, void* mine, void (*compute)(void* const* lanes));

  void check_shared(Access access, const void* at, size_t bytes, size_t alignment);
  void check_global(Access access, const void* at, size_t bytes, size_t alignment);

  void stored_word();
  void wait_for_words();

  void arrivals_init(const uint64_t* at, int arrivals);
  void arrive(const uint64_t* at, int expected_bytes);
  void wait_phase(const uint64_t* at, int parity);
  void send(const void* own, uint4 value, const uint64_t* barrier, int rank);

 private:
  void wait(const char* where);
  void wake(std::vector<Thread*>& waiting);
  void end(Thread& thread);
  void idle();
  void deliver_one();
  Barrier& barrier(Block& block, const uint64_t* at, const Thread& caller);
  void end_phase_if_complete(Barrier& barrier);
  [[noreturn]] void fail_deadlocked() const;

  const std::vector<Array>& arrays_;
  const int64_t shared_bytes_;
  std::vector<char> memory_;
  std::vector<Block> blocks_;
  std::vector<Warp> warps_;
  std::vector<Thread> threads_;
  Meeting everybody_;
  std::vector<Send> sends_;
  std::vector<Thread*> polling_;  // threads that wait for words
  bool stored_ = false;           // whether a word was stored since all of them read theirs
  Fibers fibers_;
};

extern Blocks* blocks;  // those that run now

}  // namespace cnnlstm::emulator
