// What the parts of a recurrence's step cost on the current GPU: the source of CnnlstmCosts
// (plan.h). C++ callers see no CUDA header.
//
// Every function works on the default stream, takes the best of a few timed launches after an untimed one,
// frees what it took, and returns -1 and fills `message` on an error. `rounds`: how often a kernel does it.
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// Nanoseconds from one piece of a product to the next: of an SM whose 16 warps all multiply, and of
// dependent sums. `compute_type`: arguments.h.
double cnnlstm_micro_piece(int compute_type, int rounds, char* message, size_t message_size);
double cnnlstm_micro_piece_latency(int rounds, char* message, size_t message_size);

// Nanoseconds from one special function of a lane to the next, of an SM whose 512 threads all compute them.
double cnnlstm_micro_special(int rounds, char* message, size_t message_size);

// Nanoseconds from a cell's sums to its h, which the next sums wait for.
double cnnlstm_micro_cell(int rounds, char* message, size_t message_size);

// Bytes per nanosecond that an SM's warps load of its shared memory as matrices.
double cnnlstm_micro_shared(int rounds, char* message, size_t message_size);

// Nanoseconds of an exchange of one tile among `blocks` blocks of `groups` * 8 units each, in 16 bits, with
// the barrier of a block that lies in every step: through a cluster (2, 4, 8 or 16 blocks; an error where the
// GPU or this build has none so large) or through global memory (no more blocks than multiprocessors).
// `backward`: a unit has four values in the tile.
double cnnlstm_micro_exchange(int cluster, int backward, int groups, int blocks, int rounds, char* message,
                              size_t message_size);

// An exchange in which half the warps cease to send after the first round, so that all wait for ever: the
// time limit of waits has to end it. Returns -1 with the runtime's message; the process cannot use the GPU
// afterwards.
double cnnlstm_micro_hang(int cluster, char* message, size_t message_size);

// Bytes per nanosecond that so many blocks together read of 4 MB in L2.
double cnnlstm_micro_l2(int blocks, int rounds, char* message, size_t message_size);

// Nanoseconds of an empty kernel among others in a stream.
double cnnlstm_micro_launch(int rounds, char* message, size_t message_size);

#ifdef __cplusplus
}
#endif
