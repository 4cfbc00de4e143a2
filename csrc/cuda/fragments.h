// Which lane holds which element of a warp's product, d (rows x 8) = a (rows x k) b (k x 8): a the weights in
// registers, b the tile, d the sums. Lane l has the coordinates g = l / 4 and q = l % 4. The maps are those
// of mma.sync m16n8k16 and m16n8k8 in the PTX ISA, which are the same in bytes: a piece is 32 bytes of k, and
// a register 4 of them.
//
// fragments.cpp proves that each map covers its matrix exactly once.
#pragma once

#include "cuda/layout.h"

#ifdef __CUDACC__
#define CNNLSTM_ANYWHERE __host__ __device__
#else
#define CNNLSTM_ANYWHERE
#endif

namespace cnnlstm {

struct Place {
  int row, column;
};

// Register r (0..3) of a (16 x piece): row, and first byte within the piece.
CNNLSTM_ANYWHERE constexpr Place place_in_a(int lane, int r) {
  return {lane / 4 + 8 * (r & 1), 4 * (lane % 4) + 16 * (r >> 1)};
}

// Register r (0, 1) of b (piece x 8): the sequence, and first byte within the piece.
CNNLSTM_ANYWHERE constexpr Place place_in_b(int lane, int r) { return {lane / 4, 4 * (lane % 4) + 16 * r}; }

// Sum r (0..3) of d (16 x 8).
CNNLSTM_ANYWHERE constexpr Place place_in_d(int lane, int r) {
  return {lane / 4 + 8 * (r >> 1), 2 * (lane % 4) + (r & 1)};
}

// What lane l tells load_matrices so that its four registers become those of b for two pieces that lie beside
// each other: the sequence, and first byte within the two pieces.
CNNLSTM_ANYWHERE constexpr Place place_of_matrix_row(int lane) { return {lane % 8, 16 * (lane / 8)}; }

// The exact product splits k among the four lanes of a unit: lane l has 16 bytes of every two pieces.
CNNLSTM_ANYWHERE constexpr int exact_byte(int lane) { return 16 * (lane % 4); }

// A lane's rows of d are numbered 0..3 over two products of 16 rows, or 0, 1 over one: row number `row` is
// sum 2 (row % 2) + column of product row / 2. Forward they are the gates i f g o of unit g; backward units g
// and g + 8.
CNNLSTM_ANYWHERE constexpr int sum_of(int row, int column) { return 4 * (row / 2) + 2 * (row % 2) + column; }

// The columns (sequences) of the tile whose cells a lane computes: both of its sums' where no warps share a
// group, else the one that the first two of them have each.
CNNLSTM_ANYWHERE constexpr int column_of(int lane, bool split, int part, int j) {
  return 2 * (lane % 4) + (split ? part : j);
}

// A block of the streaming algorithm has as many warps with cells as half tiles, (tile of 8 sequences, group,
// odd or even columns): the cell of a lane.
struct StreamedCell {
  int group, unit;             // of the block, of the group
  int tile, parity, sequence;  // of the batch tile, of the column, of the batch tile
};
CNNLSTM_ANYWHERE constexpr int streamed_owners(int groups, int batch) { return 2 * groups * batch; }
CNNLSTM_ANYWHERE constexpr StreamedCell streamed_cell(int warp, int lane, int groups) {
  const int parity = warp % 2, tile = warp / 2 / groups;
  return {warp / 2 % groups, place_in_d(lane, 0).row, tile, parity,
          tile * kSequences + column_of(lane, true, parity, 0)};
}

}  // namespace cnnlstm
