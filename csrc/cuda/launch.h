// Launching a kernel: launch.cuh does it on a GPU, cuda_emulator/device.h on the CPU.
#pragma once

#include <stddef.h>

namespace cnnlstm {

struct LaunchShape {
  int x, y, z;  // blocks
  int threads;  // of a block
  size_t shared_bytes;
  bool cluster;      // the x blocks form a cluster
  bool cooperative;  // all blocks run at once
};

// Both put work on a stream, and throw std::runtime_error with the reason where they cannot.
template <class Kernel>
void launch(const LaunchShape& shape, const typename Kernel::Arguments& arguments, void* stream);
void clear(void* memory, size_t bytes, void* stream);

// Of a thread of a kernel on the current device; throws like them.
template <class Kernel>
int registers_of();

}  // namespace cnnlstm
