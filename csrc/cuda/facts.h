// Properties of the GPUs of this machine. C++ callers see no CUDA header.
#pragma once

#include <stddef.h>

#include "cuda/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  char name[256];
  int compute_major, compute_minor;
  int multiprocessors;
  size_t memory_bytes;
  size_t shared_memory_per_block;  // bytes, with opt-in
  int registers_per_multiprocessor;
  size_t l2_bytes;
  int clock_khz, memory_clock_khz;  // 0 where the driver does not report them
  int cooperative_launch, cluster_launch;
} CnnlstmCudaDevice;

// Writes at most `capacity` devices and returns how many there are. 0 without a driver or a GPU, which is not
// an error. On another error returns -1 and fills `message`.
int cnnlstm_cuda_devices(CnnlstmCudaDevice* devices, int capacity, char* message, size_t message_size);

// What a plan depends on, of the device with that index. largest_cluster is 0 where this build has no code of
// compute capability 9.0 or later for it. Takes tens of milliseconds if nothing has used the device before.
// Returns 0; else -1, and fills `message`.
int cnnlstm_cuda_gpu(int index, CnnlstmGpu* gpu, char* message, size_t message_size);

#ifdef __cplusplus
}
#endif
