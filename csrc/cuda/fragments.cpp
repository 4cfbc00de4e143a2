// Compile-time proofs of fragments.h and of the tile's rows: every map covers its range exactly once.
#include "cuda/fragments.h"

#include <array>

namespace cnnlstm {
namespace {

constexpr int kLanes = 32;
constexpr int kWord = 4;     // bytes of a register
constexpr int kBanks = 128;  // bytes of all banks of shared memory

// Whether index(lane, r) takes each of kSize values once for all lanes and r = 0..kEach-1.
template <int kSize, int kEach, class Index>
constexpr bool covers(Index index) {
  static_assert(kSize == kLanes * kEach);
  std::array<bool, kSize> seen = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int r = 0; r < kEach; ++r) {
      const int at = index(lane, r);
      if (at < 0 || at >= kSize || seen[at]) return false;
      seen[at] = true;
    }
  }
  return true;
}

constexpr int kWordsOfPiece = kPiece / kWord;

// a: 16 rows of a piece; b: a piece of 8 sequences; d: 16 rows of 8 sequences.
static_assert(covers<16 * kWordsOfPiece, 4>([](int lane, int r) {
  const Place place = place_in_a(lane, r);
  return place.row * kWordsOfPiece + place.column / kWord;
}));
static_assert(covers<kSequences * kWordsOfPiece, 2>([](int lane, int r) {
  const Place place = place_in_b(lane, r);
  return place.row * kWordsOfPiece + place.column / kWord;
}));
static_assert(covers<16 * kSequences, 4>([](int lane, int r) {
  const Place place = place_in_d(lane, r);
  return place.row * kSequences + place.column;
}));

// load_matrices: 16 bytes of two pieces of 8 sequences from each lane. What lane l gets of matrix r, 4 bytes
// of the row that lane 8r + l/4 names, is register r % 2 of b of piece r / 2.
static_assert(covers<kSequences * 4, 1>([](int lane, int) {
  const Place place = place_of_matrix_row(lane);
  return place.row * 4 + place.column / 16;
}));
constexpr bool matrices_are_b() {
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int r = 0; r < 4; ++r) {
      const Place row = place_of_matrix_row(8 * r + lane / 4), b = place_in_b(lane, r % 2);
      if (row.row != b.row || row.column + kWord * (lane % 4) != r / 2 * kPiece + b.column) return false;
    }
  }
  return true;
}
static_assert(matrices_are_b());

// The exact product: the four lanes of a unit have the 64 bytes of two pieces among them, the same as all
// other units'.
constexpr bool exact_lanes_cover_two_pieces() {
  for (int lane = 0; lane < kLanes; ++lane)
    if (exact_byte(lane) != 16 * (lane % 4)) return false;
  return 4 * 16 == 2 * kPiece;
}
static_assert(exact_lanes_cover_two_pieces());

// A lane's sums: gates of unit g forward (rows g and g + 8 of two products), units g and g + 8 backward.
constexpr bool sums_lie_in_d() {
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int row = 0; row < 4; ++row) {
      for (int column = 0; column < 2; ++column) {
        const Place place = place_in_d(lane, sum_of(row, column) % 4);
        if (place.row != lane / 4 + 8 * (row % 2) || place.column != column_of(lane, false, 0, column))
          return false;
        if (place.column != column_of(lane, true, column, 0)) return false;
      }
    }
  }
  return true;
}
static_assert(sums_lie_in_d());

// Cells: 8 units x 8 sequences of a group, two for each lane of one warp, or one for each lane of two.
static_assert(covers<kGroup * kSequences, 2>([](int lane, int j) {
  return place_in_d(lane, 0).row * kSequences + column_of(lane, false, 0, j);
}));
static_assert(covers<kGroup * kSequences, 2>([](int lane, int part) {
  return place_in_d(lane, 0).row * kSequences + column_of(lane, true, part, 0);
}));

// Cells of the streaming algorithm: all units of all groups for all sequences of the tile, with one warp for
// each 32.
constexpr bool streamed_cells_cover_the_tile() {
  for (int groups = 1; groups <= 8; ++groups) {
    for (int batch = 1; batch <= kMostBatch; ++batch) {
      std::array<bool, 8 * kGroup * kMostBatch * kSequences> seen = {};
      const int sequences = batch * kSequences, cells = groups * kGroup * sequences;
      if (streamed_owners(groups, batch) * kLanes != cells) return false;
      for (int i = 0; i < cells; ++i) {
        const StreamedCell cell = streamed_cell(i / kLanes, i % kLanes, groups);
        const int at = (cell.group * kGroup + cell.unit) * sequences + cell.sequence;
        if (at < 0 || at >= cells || seen[at]) return false;
        seen[at] = true;
        if (cell.sequence / kSequences != cell.tile || cell.sequence % 2 != cell.parity) return false;
      }
    }
  }
  return true;
}
static_assert(streamed_cells_cover_the_tile());

// The 8 rows of a matrix lie in different banks, whatever the sizes.
constexpr bool rows_lie_in_different_banks() {
  for (int splits = 1; splits <= 16; ++splits) {
    for (int groups = 1; groups * splits <= 16; ++groups) {
      for (int blocks = 1; blocks <= 132; ++blocks) {
        CnnlstmPlan plan = {};
        plan.groups = groups, plan.splits = splits, plan.tiles = 8, plan.blocks = blocks;
        plan.batch = plan.turns = 1;
        if (layout_of(plan, false, CNNLSTM_BFLOAT16).row_bytes % kBanks != 16) return false;
      }
    }
  }
  return true;
}
static_assert(rows_lie_in_different_banks());

}  // namespace
}  // namespace cnnlstm
