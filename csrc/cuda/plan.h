// How a recurrence is split into blocks and warps, by its size and the properties of the GPU; never by T.
// Plain C++: no CUDA.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// How a recurrence is run. Persistent: W_hh stays in registers for all steps.
enum CnnlstmAlgorithm {
  CNNLSTM_PERSISTENT_BLOCK = 0,    // one block has all units of its sequences, and h never leaves it
  CNNLSTM_PERSISTENT_CLUSTER = 1,  // the blocks of a cluster send each other h through shared memory (sm_90)
  CNNLSTM_PERSISTENT_GRID = 2,     // the blocks of a cooperative launch exchange h through global memory
  CNNLSTM_STREAMING = 3,           // like it, but every step reads W_hh again, which is too large to be held
  CNNLSTM_PER_STEP = 4,            // a library's matrix product and a cell kernel for every step
};
#ifdef __cplusplus
// By the value of CnnlstmAlgorithm.
inline constexpr const char* kCnnlstmAlgorithmNames[] = {"persistent_block", "persistent_cluster",
                                                         "persistent_grid", "streaming", "per_step"};
#endif

// What the parts of a step cost on a GPU: nanoseconds, and bytes or operations per nanosecond.
// bench/calibrate/micro measures each. A piece is one product of a warp: 16 rows times 32 bytes of k times 8
// sequences (layout.h).
typedef struct {
  double piece_16;       // an SM with all warps at work: nanoseconds from one piece to the next, in 16 bits
  double piece_tf32;     // the same in TF32
  double piece_float32;  // the same in exact float32
  double piece_latency;  // until the next piece can add to the sum of one
  double special;        // an SM: nanoseconds from one exp2, reciprocal or tanh of a lane to the next
  double cell_latency;   // from the sums of a cell to its h
  double shared;         // bytes an SM reads or writes of its shared memory
  double block_barrier;  // among 512 threads
  double send_2, send_4, send_8,
      send_16;        // every block of a cluster of so many sends to every other, until all have it
  double cluster;     // bytes that arrive at an SM from its cluster
  double word;        // from a block's store of a word to global memory until another one has it
  double word_turn;   // from one load of a thread's words to its next
  double l2_sm;       // bytes one SM reads of L2
  double l2, memory;  // bytes all of them read together
  double gemm_16, gemm_float32;  // floating-point operations of a library's large products
  double launch;                 // from the end of a kernel to the end of an empty one behind it
  double issue;                  // time of the CPU to launch a product of a library
} CnnlstmCosts;

// The properties of a GPU that a plan depends on.
typedef struct {
  int sm;  // 90 for compute capability 9.0
  int multiprocessors;
  int64_t shared_bytes;  // that one block may have
  int largest_cluster;   // blocks: 16, 8, or 0 where there are none
  int64_t l2_bytes;
  int measured;  // whether the costs are, else they are guessed
  CnnlstmCosts costs;
} CnnlstmGpu;

// One pass over one layer. Every batch tile has kSequences = 8 sequences, the n of the tensor cores'
// products, times `batch`; a group is the 8 units whose four gates a warp computes. A block has groups *
// splits warps: warp w has group w % groups and part w / groups of the sum over k, which is `tiles` pieces
// long. A backward warp computes the gradient of h for two groups, 2 (w % groups / 2) and the next; its part
// 2 (w / groups) + w % 2 of the sum over 4H gate gradients is 2 * tiles pieces long. All of that `turns`
// times: the parts of a turn lie behind those of the turn before.
typedef struct {
  int algorithm;
  int groups;  // of 8 units in a block; even in a backward pass
  int splits;  // warps that share a group's sum; 1 only in CNNLSTM_PERSISTENT_BLOCK
  int tiles;   // 32-byte pieces of a row of weights that a warp holds in registers, per gate row pair: 4 or 8
  int turns;   // 1, but in CNNLSTM_STREAMING
  int blocks;  // along the units: the size of a cluster
  int batch;   // 1, but in CNNLSTM_STREAMING
  int batch_tiles;    // ceil(B / (8 batch))
  int tiles_at_once;  // batch tiles of one launch: fewer where all blocks have to run at once
                      // (CNNLSTM_PERSISTENT_GRID, CNNLSTM_STREAMING), 65535 at most
  int threads;        // of a block
  int64_t shared_bytes;
  int64_t exchange_bytes;  // of global memory, 16-byte aligned: packed weights, then words
} CnnlstmPlan;

// Fills in the costs as they were measured on GPUs of that name and returns 1, else guesses by the
// architecture and returns 0.
int cnnlstm_costs(const char* name, int sm, CnnlstmCosts* costs);

// All plans for a pass of D directions in one launch that fit a GPU, CNNLSTM_PER_STEP the last of them.
// `compute_type`: arguments.h. Writes at most `capacity` and returns how many there are, or -1 where H, B or
// D is below 1, D above 2, B or H above 2^31 - 8 or the compute type unknown.
int cnnlstm_plans(const CnnlstmGpu* gpu, int backward, int compute_type, int64_t H, int64_t B, int D,
                  CnnlstmPlan* plans, int capacity);

// The one whose steps are expected to be the quickest; CNNLSTM_PERSISTENT_BLOCK unless another takes two
// thirds of its time. Returns 0, or -1 as above.
int cnnlstm_plan(const CnnlstmGpu* gpu, int backward, int compute_type, int64_t H, int64_t B, int D,
                 CnnlstmPlan* plan);

// The time that a step of the plan is expected to take for all sequences and directions, and a lower
// bound that assumes perfect overlap: the time of the busiest part alone. T steps take T times as long.
double cnnlstm_step_seconds(const CnnlstmGpu* gpu, int backward, int compute_type, int64_t H, int64_t B,
                            int D, const CnnlstmPlan* plan);
double cnnlstm_step_floor_seconds(const CnnlstmGpu* gpu, int backward, int compute_type, int64_t H, int64_t B,
                                  int D, const CnnlstmPlan* plan);

#ifdef __cplusplus
}
#endif
