// Where things lie: the one text that the plan (plain C++), the launches and the kernels share.
//
// A block's tile holds what enters the product: for each of its 8 sequences a row of k (forward: h of all units; backward: the
// four gate gradients of all units). Its row begins 16 bytes past a multiple of 128, so that the eight rows that one
// load_matrices reads lie in different banks.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define CNNLSTM_ANYWHERE __host__ __device__
#else
#define CNNLSTM_ANYWHERE
#endif

namespace cnnlstm {

constexpr int kSequences = 8;    // of a batch tile: the n of a product
constexpr int kGroup = 8;        // units of a group
constexpr int kPiece = 32;       // bytes of k that one mma reads of a row
constexpr int kStages = 4;       // steps of gate inputs that are under way or in use
constexpr int kMostThreads = 512;  // of a block: with so many each has 128 registers, half of them for weights

CNNLSTM_ANYWHERE constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// What decides the sizes of a pass; the names of CnnlstmPlan.
struct Layout {
  bool backward;
  bool cluster, grid;
  int number_bytes;
  int groups, splits, tiles, blocks;

  // Numbers that a unit puts into a row of the tile.
  CNNLSTM_ANYWHERE constexpr int per_unit() const { return backward ? 4 : 1; }
  CNNLSTM_ANYWHERE constexpr int64_t units() const { return int64_t{blocks} * groups * kGroup; }  // of all blocks
  CNNLSTM_ANYWHERE constexpr int64_t row_bytes() const {
    // a backward warp holds twice the pieces for half the rows, and there are twice as many parts
    const int64_t read = int64_t{splits} * tiles * kPiece * per_unit();
    const int64_t written = units() * per_unit() * number_bytes;
    return round_up(read > written ? read : written, 128) + 16;
  }
  // In a grid a barrier lies between the product and the next tile's arrival.
  CNNLSTM_ANYWHERE constexpr int buffers() const { return grid ? 1 : 2; }
  CNNLSTM_ANYWHERE constexpr int64_t tile_bytes() const { return kSequences * row_bytes(); }

  CNNLSTM_ANYWHERE constexpr int64_t tiles_at() const { return 0; }
  CNNLSTM_ANYWHERE constexpr int64_t ring_at() const { return tiles_at() + buffers() * tile_bytes(); }
  CNNLSTM_ANYWHERE constexpr int64_t ring_bytes() const {
    return backward ? 0 : int64_t{kStages} * groups * kGroup * kSequences * 16;
  }
  CNNLSTM_ANYWHERE constexpr int64_t partial_at() const { return ring_at() + ring_bytes(); }
  CNNLSTM_ANYWHERE constexpr int64_t partial_bytes() const {
    // float32 sums of every warp: 8 a lane forward, 4 backward
    if (backward) return int64_t{groups} * splits * 32 * 4 * 4;
    return splits > 1 ? int64_t{groups} * splits * 32 * 8 * 4 : 0;
  }
  CNNLSTM_ANYWHERE constexpr int64_t barriers_at() const { return partial_at() + partial_bytes(); }
  CNNLSTM_ANYWHERE constexpr int64_t shared_bytes() const { return barriers_at() + (cluster ? 16 : 0); }

  // A word carries 4 bytes of a row and the number of its step.
  CNNLSTM_ANYWHERE constexpr int64_t row_words() const { return units() * per_unit() * number_bytes / 4; }
  CNNLSTM_ANYWHERE constexpr int64_t exchange_bytes(int64_t D, int64_t batch_tiles) const {
    return grid ? 2 * D * batch_tiles * kSequences * row_words() * 8 : 0;
  }
};

}  // namespace cnnlstm
