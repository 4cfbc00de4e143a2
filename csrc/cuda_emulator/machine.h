// A GPU on the CPU: the blocks of a launch, whose threads are fibers, with the guarantees of the hardware and
// as few others as possible. What the hardware does not specify is random, and what it forbids ends the
// launch with an error message.
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

// Throws if no GPU would accept the launch.
void check_shape(const LaunchShape& shape, int most_threads, bool makes_clusters);

// Runs a kernel on one launch's blocks, on the calling thread, until it has ended; one launch at a time in a
// process.
void launch(const LaunchShape& shape, const std::vector<Array>& arrays, const std::function<void()>& kernel);

// Indices of the calling thread.
struct Place {
  int thread, threads;
  int block_x, block_y, block_z;
  int blocks_x, blocks_y;
};
const Place& here();

void block_barrier();
void warp_barrier();
void cluster_barrier();

// In: the operands of a lane; out: its result.
void shuffle(ShuffleLane& lane);
void product(ProductLane& lane);
void matrices(MatricesLane& lane);

enum class Access { kLoad, kStore, kBarrier };

char* shared_memory();
// Yields at random, and checks that the access is allowed.
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
