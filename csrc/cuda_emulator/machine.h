// A GPU on the CPU: the blocks of a launch, whose threads are fibers, and what hardware promises them, with
// as little more as possible. What it does not promise comes out as chance has it, and what it forbids ends
// the launch with an error in a sentence.
//
// All functions but check_shape and launch are called by a thread of a kernel.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <functional>
#include <vector>

#include "cuda/launch.h"
#include "cuda_emulator/numbers.h"
#include "cuda_emulator/warp.h"

namespace cnnlstm::emulator {

// An array of global memory that the kernel may touch.
struct Array {
  const char* begin;
  int64_t bytes;
  bool writable;
};

// Throws where no GPU would take a kernel so.
void check_shape(const LaunchShape& shape, int most_threads, bool makes_clusters);

// Runs a kernel on one launch's blocks, on the calling thread, until it has ended; one launch at a time in a
// process.
void launch(const LaunchShape& shape, const std::vector<Array>& arrays, const std::function<void()>& kernel);

// Where the calling thread stands.
struct Place {
  int thread, threads;
  int block_x, block_y, block_z;
  int blocks_x, blocks_y;
};
const Place& here();

void block_barrier();
void warp_barrier();
void cluster_barrier();

// In: what a lane brings; out: what it gets.
void shuffle(ShuffleLane& lane);
void product(ProductLane& lane);
void matrices(MatricesLane& lane);

enum class Access { kLoad, kStore, kBarrier };

char* shared_memory();
// Lets another thread go first, if chance wants it, and checks that the access is allowed.
void touch_shared(Access access, const void* at, size_t bytes, size_t alignment);
void touch_global(Access access, const void* at, size_t bytes, size_t alignment);

void copy_async(void* to_shared, const void* from, bool exists);
void copy_commit();
void copy_wait(int pending);

void store_word(uint64_t* at, uint64_t word);
void wait_for_words();  // until some word was stored

void arrivals_init(uint64_t* barrier, int arrivals);
void arrive(uint64_t* barrier, int expected_bytes);
void wait_phase(uint64_t* barrier, int parity);
void send(void* own, uint4 value, uint64_t* barrier, int rank);

}  // namespace cnnlstm::emulator
