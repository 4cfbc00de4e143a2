// How a recurrence is split into blocks and warps, by its size and the facts of the GPU; never by T. Plain C++: no CUDA.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum CnnlstmWay {
  CNNLSTM_BLOCK = 0,    // one block has all units of its sequences, and h never leaves it
  CNNLSTM_CLUSTER = 1,  // the blocks of a cluster send each other h through shared memory (sm_90)
  CNNLSTM_GRID = 2,     // the blocks of a cooperative launch exchange h through global memory
  CNNLSTM_STEP = 3,     // a product of a library's and a cell kernel for every step: no kernel holds these weights
};

// One pass over one layer. Every block tile has kSequences = 8 sequences, the n of the tensor cores' products; a group is the 8
// units whose four gates a warp computes. A block has groups * splits warps: warp w has group w % groups and part w / groups of
// the sum over k.
typedef struct {
  int way;
  int groups;       // of 8 units in a block; even in a backward pass
  int splits;       // warps that share a group's sum; 1 only in CNNLSTM_BLOCK
  int tiles;        // 32-byte pieces of a row of weights that a warp holds in registers, per gate row pair: 4 or 8
  int blocks;       // along the units: the size of a cluster
  int batch_tiles;  // ceil(B / 8)
  int tiles_at_once;  // batch tiles of one launch: fewer where all blocks have to run at once (CNNLSTM_GRID)
  int threads;        // of a block
  int64_t shared_bytes;
  int64_t exchange_bytes;  // of global memory, 8-byte aligned; a launch clears it (CNNLSTM_GRID)
} CnnlstmPlan;

#ifdef __cplusplus
}
#endif
