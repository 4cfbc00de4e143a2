// The roofline and the latencies of the current GPU. C++ callers see no CUDA header.
//
// Every function works on the default stream, takes the best of a few timed launches after an untimed one,
// subtracts nothing, frees what it took, and returns -1 and fills `message` on an error.
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// GB/s (read plus written) of a vectorised copy kernel: `bytes` copied `repeats` times.
double cnnlstm_cuda_copy_bandwidth(size_t bytes, int repeats, char* message, size_t message_size);

// Nanoseconds of a load that misses L1 and hits L2: one thread follows `hops` pointers, one in each 128 bytes
// of a buffer of `bytes`, which has to fit into L2, in random order.
double cnnlstm_cuda_l2_latency(size_t bytes, int hops, char* message, size_t message_size);

// Nanoseconds of a barrier among the `threads` of a block, the 8 blocks of a cluster (compute capability
// 9.0 and above; an error elsewhere) or as many blocks as the GPU has multiprocessors (through a counter in
// global memory), with 256 threads each. `rounds` of them follow each other.
double cnnlstm_cuda_block_barrier(int rounds, int threads, char* message, size_t message_size);
double cnnlstm_cuda_cluster_barrier(int rounds, char* message, size_t message_size);
double cnnlstm_cuda_grid_barrier(int rounds, char* message, size_t message_size);

#ifdef __cplusplus
}
#endif
