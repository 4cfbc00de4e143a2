// The recurrent product where W_hh does not fit the registers of all blocks: every step reads it again.
//
// A block processes k in turns. A turn's weights are loaded while the block reads the part of the tile that
// they are multiplied by; up to kMostBatch times 8 sequences share them. h is exchanged in the words of a
// grid (exchange.cuh), without a tile of the block's own: the cell's lane writes its words itself, and reads
// back what other blocks read.
//
// Tile n, from 1 on, is the input of the n-th product. Two planes of words alternate like a grid's.
#pragma once

#include "cuda/exchange.cuh"
#include "cuda/fragments.h"
#include "cuda/pack.cuh"
#include "cuda/product.cuh"

namespace cnnlstm {

// The cell of the calling thread. Like everything in this file it is recomputed at each use: what a lane
// keeps during a product takes registers from sums and weights.
class StreamedLane {
 public:
  CNNLSTM_DEVICE StreamedLane(const Layout& layout, const Tiles& tiles) : layout_(layout), tiles_(tiles) {}

  // Whether it has one; a warp has 32 or none.
  CNNLSTM_DEVICE bool owner() const {
    return device::anew(device::thread()) / 32 < streamed_owners(layout_.groups, layout_.batch);
  }
  CNNLSTM_DEVICE StreamedCell cell() const {
    const int thread = device::anew(device::thread());
    return streamed_cell(thread / 32, thread % 32, layout_.groups);
  }
  // Of all blocks, those beyond H included.
  CNNLSTM_DEVICE int unit() const {
    const StreamedCell own = cell();
    return (device::anew(device::block_x()) * layout_.groups + own.group) * kGroup + own.unit;
  }
  // Of the call, those beyond B included.
  CNNLSTM_DEVICE int sequence() const { return tiles_.tile() * layout_.batch * kSequences + cell().sequence; }

 private:
  const Layout& layout_;
  const Tiles& tiles_;
};

template <class ComputeType, bool kBackward>
class StreamedProduct {
  using T = typename ComputeType::Stored;
  static constexpr int kRows = kBackward ? 2 : 4;
  using WarpProduct = Product<ComputeType, kRows, (kBackward ? 2 : 1) * kStreamTiles>;
  static constexpr int kPartBytes = (kBackward ? 2 : 1) * kStreamTiles * kPiece;
  static constexpr int kSums = 2 * kRows;
  static constexpr int kUnitBytes =
      (kBackward ? 4 : 1) * static_cast<int>(sizeof(T));  // in a row of the tile

 public:
  CNNLSTM_DEVICE StreamedProduct(const Layout& layout, const Tiles& tiles, const uint4* packed, int B)
      : layout_(layout), tiles_(tiles), packed_(packed), B_(B) {}

  // Rows of sequences that do not exist stay zero.
  CNNLSTM_DEVICE void start() const {
    for (int at = 16 * device::thread(); at < layout_.ring_at; at += 16 * device::threads())
      device::store_shared(reinterpret_cast<uint4*>(device::shared_memory() + at), make_uint4(0, 0, 0, 0));
    device::block_barrier();
  }

  // Writes a lane's values of its cell to tile n if the sequence exists. The whole warp calls it together.
  template <class Value>
  CNNLSTM_DEVICE void put(int n, const StreamedLane& lane, const Value& value) const {
    static_assert(sizeof(Value) == kUnitBytes);
    uint64_t* const of_row = plane(n) + lane.cell().sequence * row_words();
    send_words(n, lane.unit(), value, lane.sequence() < B_, [&](int i) { return of_row + i; });
  }

  // Called by all threads: the product of tile n, whose sums sum() then returns.
  CNNLSTM_DEVICE void multiply(int n) const {
    float sums[kMostBatch][kSums] = {};
    CNNLSTM_NO_UNROLL
    for (int turn = 0; turn < layout_.turns; ++turn) {
      WarpProduct product;
      // in flight while the thread waits for the words
      product.load(packed_ +
                   packed_at(layout_, device::anew(device::block_z()), device::anew(device::block_x()),
                             warp(), lane()) +
                   turn * packed_turn(layout_));
      receive(n, turn);
      device::block_barrier();
      const char* const part = row(turn, 0) + own_part(warp()) * kPartBytes;
      CNNLSTM_UNROLL
      for (int i = 0; i < kMostBatch; ++i) {
        if (i * kSequences >= sequences()) continue;
        product.multiply(lane(), part + i * kSequences * layout_.row_bytes, layout_.row_bytes, sums[i]);
      }
    }
    const int part = own_part(warp()), product = product_of(warp() % layout_.groups);
    CNNLSTM_UNROLL
    for (int i = 0; i < kMostBatch; ++i) {
      if (i * kSequences >= sequences()) continue;
      CNNLSTM_UNROLL
      for (int v = 0; v < kSums; ++v) device::store_shared(partial(part, product, i, v), sums[i][v]);
    }
    device::block_barrier();
  }

  // A row of the product at the lane's cell: forward one of its four gates; backward row 0, its unit.
  CNNLSTM_DEVICE float sum(const StreamedCell& cell, int row) const {
    const int product = product_of(cell.group);
    const int v = sum_of(kBackward ? cell.group % 2 : row, cell.parity);
    float sum = 0;
    CNNLSTM_NO_UNROLL
    for (int part = 0; part < parts(); ++part)
      sum += device::load_shared(partial(part, product, cell.tile, v));
    return sum;
  }

 private:
  // Words that a thread loads at once: the latency of a load exceeds the rest of a turn.
  static constexpr int kAtOnce = 4;

  CNNLSTM_DEVICE static int lane() { return device::anew(device::thread()) % 32; }
  CNNLSTM_DEVICE static int warp() { return device::anew(device::thread()) / 32; }
  CNNLSTM_DEVICE static int product_of(int group) { return kBackward ? group / 2 : group; }
  CNNLSTM_DEVICE int own_part(int warp) const {
    const int part = warp / layout_.groups;
    return kBackward ? 2 * part + warp % layout_.groups % 2 : part;
  }
  // Of the batch tile, those that exist.
  CNNLSTM_DEVICE int sequences() const {
    const int all = layout_.batch * kSequences, left = B_ - tiles_.tile() * all;
    return left < all ? left : all;
  }
  CNNLSTM_DEVICE int row_words() const { return layout_.units * kUnitBytes / 4; }
  CNNLSTM_DEVICE uint64_t* plane(int n) const {
    return tiles_.own_words() + (n & 1) * (tiles_.words_of_tile / 2);
  }
  CNNLSTM_DEVICE int parts() const { return layout_.splits * (kBackward ? 2 : 1); }

  CNNLSTM_DEVICE char* row(int turn, int sequence) const {
    const int buffer = turn & 1;
    return device::shared_memory() + (buffer * layout_.batch * kSequences + sequence) * layout_.row_bytes;
  }

  CNNLSTM_DEVICE float* partial(int part, int product, int tile, int v) const {
    const int products = kBackward ? layout_.groups / 2 : layout_.groups;
    float* const sums = reinterpret_cast<float*>(device::shared_memory() + layout_.partial_at);
    return sums + (((part * products + product) * layout_.batch + tile) * kSums + v) * 32 + lane();
  }

  // The turn's part of the tile: zeros behind a row's end, where the weights are zero. A row's part has
  // `splits` runs of 32 words, and backward four times as many. A warp has one run of every groups-th
  // sequence, or of each one four.
  CNNLSTM_DEVICE void receive(int n, int turn) const {
    const int run = warp() % layout_.splits, all = sequences();
    const int column = turn * layout_.read_bytes / 4 + run * 32 + lane();
    // from one of the words that are loaded at once to the next
    const int columns = kBackward ? layout_.splits * 32 : 0, rows = kBackward ? 0 : layout_.groups;
    CNNLSTM_NO_UNROLL
    for (int sequence = warp() / layout_.splits; sequence < all;
         sequence += layout_.groups * (kBackward ? 1 : kAtOnce)) {
      const uint64_t* const words = plane(n) + sequence * row_words() + column;
      const auto exists = [&](int k) { return sequence + k * rows < all; };
      const auto is_sent = [&](int k) { return exists(k) && column + k * columns < row_words(); };
      uint64_t found[kAtOnce] = {};
      device::Watch watch(n > 1);  // with tile 1 all blocks have started
      while (true) {
        bool complete = true;
        CNNLSTM_UNROLL
        for (int k = 0; k < kAtOnce; ++k)
          if (is_sent(k)) found[k] = device::load_word(words + k * (rows * row_words() + columns));
        CNNLSTM_UNROLL
        for (int k = 0; k < kAtOnce; ++k)
          if (is_sent(k) && !bears(found[k], n)) complete = false;
        if (complete) break;
        watch.turn();
      }
      char* const to = row(turn, sequence) + (run * 32 + lane()) * 4;
      CNNLSTM_UNROLL
      for (int k = 0; k < kAtOnce; ++k)
        if (exists(k))
          device::store_shared(reinterpret_cast<uint32_t*>(to + k * (rows * layout_.row_bytes + columns * 4)),
                               static_cast<uint32_t>(found[k]));
    }
  }

  const Layout& layout_;
  const Tiles& tiles_;
  const uint4* const packed_;
  const int B_;
};

}  // namespace cnnlstm
