// The memory layout: the one definition that the plan (plain C++), the launches and the kernels share.
//
// A block's tile holds what enters the product: for each of its 8 sequences a row of k (forward: h of all
// units; backward: the four gate gradients of all units). Its row begins 16 bytes past a multiple of 128, so
// that the eight rows that one load_matrices reads lie in different banks.
#pragma once

#include <stdint.h>

#include "cuda/arguments.h"
#include "cuda/plan.h"

namespace cnnlstm {

constexpr int kSequences = 8;      // of a batch tile: the n of a product
constexpr int kGroup = 8;          // units of a group
constexpr int kPiece = 32;         // bytes of k that one mma reads of a row
constexpr int kStages = 4;         // steps of gate inputs that are in flight or in use
constexpr int kMostBatch = 4;      // times kSequences in a batch tile
constexpr int kStreamTiles = 4;    // CnnlstmPlan::tiles of a stream: half the registers, for more sums
constexpr int kMostThreads = 512;  // of a block: each has 128 registers then, half of them for weights

// Of a block, by compute type: exact products need more registers for intermediate values.
constexpr int most_threads(int compute_type) { return compute_type == CNNLSTM_FLOAT32 ? 384 : kMostThreads; }

// What a lane of a stream keeps of its cell in the forward pass, where sums take the registers.
struct alignas(16) StreamedState {
  float gate_inputs[4];  // of the next step
  float c, h;
  int length;  // below 0 where there is no cell
};

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

constexpr int element_bytes_of(int compute_type) {
  return compute_type == CNNLSTM_FLOAT32 || compute_type == CNNLSTM_TF32 ? 4 : 2;
}

// The sizes of a pass and the places in a block's shared memory, all computed on the host.
struct Layout {
  bool backward, cluster, grid, stream;
  int element_bytes;
  int groups, splits, tiles, turns, blocks, batch;  // of CnnlstmPlan

  int per_unit;                   // values of a unit in a row of the tile
  int units;                      // of all blocks, those beyond H included
  int warps;                      // of a block
  int vectors;                    // of 16 bytes of weights that a lane holds
  int read_bytes;                 // of a row that the warps read in a turn
  int row_bytes;                  // of a tile; of a stream, what a turn reads of it
  int buffers;                    // tiles; the first lies at 0
  int ring_at;                    // gate inputs that are in flight, 16 bytes for each cell and stage; of a
                                  // stream a StreamedState for each cell
  int bias_at;                    // both biases of each unit, summed up
  int partial_at, partial_bytes;  // float32 sums of warps that share a group
  int barriers_at;
  int shared_bytes;

  // Packed weights of all blocks, a vector for each of 32 lanes.
  int64_t packed_bytes(int64_t D) const { return D * blocks * turns * warps * vectors * 32 * 16; }
  // Words of a grid or stream: each carries 4 bytes of a row and the number of its step, and there are two
  // planes.
  int64_t words_of_tile() const {
    return grid || stream ? int64_t{2} * kSequences * batch * units * per_unit * element_bytes / 4 : 0;
  }
  // Global memory that the launches of a pass need: packed weights, then words.
  int64_t exchange_bytes(int64_t D, int64_t batch_tiles) const {
    return packed_bytes(D) + 8 * words_of_tile() * D * batch_tiles;
  }
};

constexpr Layout layout_of(const CnnlstmPlan& plan, bool backward, int compute_type) {
  Layout layout = {};
  layout.backward = backward;
  layout.cluster = plan.algorithm == CNNLSTM_PERSISTENT_CLUSTER;
  layout.grid = plan.algorithm == CNNLSTM_PERSISTENT_GRID;
  layout.stream = plan.algorithm == CNNLSTM_STREAMING;
  layout.element_bytes = element_bytes_of(compute_type);
  layout.groups = plan.groups;
  layout.splits = plan.splits;
  layout.tiles = plan.tiles;
  layout.turns = plan.turns;
  layout.blocks = plan.blocks;
  layout.batch = plan.batch;

  layout.per_unit = backward ? 4 : 1;
  layout.units = plan.blocks * plan.groups * kGroup;
  layout.warps = plan.groups * plan.splits;
  layout.vectors = 2 * plan.tiles;
  // A backward warp holds twice the pieces for half the rows, and there are twice as many parts.
  layout.read_bytes = plan.splits * plan.tiles * kPiece * layout.per_unit;
  const int written = layout.stream ? 0 : layout.units * layout.per_unit * layout.element_bytes;
  const int row = layout.read_bytes > written ? layout.read_bytes : written;
  layout.row_bytes = static_cast<int>(round_up(row, 128)) + 16;
  // In a grid a barrier lies between the product and the next tile's arrival.
  layout.buffers = layout.grid ? 1 : 2;
  layout.ring_at = layout.buffers * plan.batch * kSequences * layout.row_bytes;
  const int cells = plan.groups * kGroup * kSequences * plan.batch;
  const int of_cell = layout.stream ? static_cast<int>(sizeof(StreamedState)) : kStages * 16;
  layout.bias_at = layout.ring_at + (backward ? 0 : cells * of_cell);
  layout.partial_at = layout.bias_at + (backward ? 0 : plan.groups * kGroup * 16);
  // 8 sums a lane forward, 4 backward
  layout.partial_bytes = plan.batch * (backward          ? layout.warps * 32 * 4 * 4
                                       : plan.splits > 1 ? layout.warps * 32 * 8 * 4
                                                         : 0);
  layout.barriers_at = layout.partial_at + layout.partial_bytes;
  layout.shared_bytes = layout.barriers_at + (layout.cluster ? 16 : 0);
  return layout;
}

// The plan of a split with all that follows from it: every plan is made here. Of `split` count algorithm,
// groups, splits, tiles, turns, blocks and batch.
CnnlstmPlan plan_of(const CnnlstmPlan& split, bool backward, int compute_type, int64_t B, int D,
                    int multiprocessors);

}  // namespace cnnlstm
