// How the blocks of a tile exchange the input of a step's product.
//
// Tile n is the input of the n-th product of a launch. Every owner lane writes its own values to it, then its
// warp calls publish(n), and all threads call receive(n) before they multiply tile n:
//
//     Block     the tile is private to the block: a barrier suffices.
//     Cluster   values are written to the block's own tile; every warp sends its slice to the other blocks'
//               tiles; an mbarrier counts the bytes.
//     Grid      values are written to global memory, as words of 4 bytes of data and the number n, and every
//               thread reads words until they carry that number: no fence and no separate flag is needed.
//
// Two tiles (in a grid: planes in global memory) alternate. No block overwrites what another still reads: a
// block publishes n+1 only after it has received all of n, and it sends its slice of n only after its own
// warps have read n-1. A block that ends has received everything that was sent to it.
//
// kUnitBytes: what a unit has in a row of the tile; kSplit: whether warps share a group, and with it the
// columns (fragments.h).
#pragma once

#include "cuda/compute_types.cuh"
#include "cuda/device.cuh"
#include "cuda/layout.h"
#include "cuda/plan.h"

namespace cnnlstm {

// The most threads of a kernel's block. A single persistent block needs no more than the units whose row of
// weights a warp can hold.
template <class ComputeType>
constexpr int most_threads(int algorithm, int tiles) {
  constexpr int kBytes = sizeof(typename ComputeType::Stored);
  return algorithm == CNNLSTM_PERSISTENT_BLOCK ? 32 * tiles * kPiece / kBytes / kGroup
                                               : most_threads(ComputeType::kComputeType);
}

// A word of tile n.
CNNLSTM_DEVICE uint64_t numbered(int n, uint32_t data) {
  return static_cast<uint64_t>(static_cast<uint32_t>(n)) << 32 | data;
}
CNNLSTM_DEVICE bool bears(uint64_t word, int n) {
  return static_cast<uint32_t>(word >> 32) == static_cast<uint32_t>(n);
}

// The batch tiles of a launch (its blocks along y), starting at `first`, and the words of all `count` tiles
// in every direction.
struct Tiles {
  uint64_t* words;    // of a grid (D, count, 2, row words, kSequences), of a stream (D, count, 2, sequences,
                      // row words)
  int words_of_tile;  // in a direction
  int first, count;

  int64_t all_words(int64_t D) const { return D * count * words_of_tile; }
  CNNLSTM_DEVICE int tile() const { return first + device::anew(device::block_y()); }
  CNNLSTM_DEVICE uint64_t* own_words() const {
    return words + int64_t{device::anew(device::block_z()) * count + tile()} * words_of_tile;
  }
};

// What a kernel of either pass may touch beside the pass's own arrays.
template <class Arguments, class F>
void each_array_of_launch(const Arguments& arguments, F f) {
  const int64_t D = arguments.pass.D;
  f(arguments.packed, arguments.layout.packed_bytes(D) / 16);
  f(arguments.tiles.words, arguments.tiles.all_words(D));
}

// Sends a lane's values of its unit in tile n: one, or those of its four gates. `place(i)`: where word i of
// the sequence's row lies. All lanes of a warp call it together; those that are not `there` send
// nothing.
template <class Value, class Place>
CNNLSTM_DEVICE void send_words(int n, int unit, const Value& value, bool there, Place place) {
  if constexpr (sizeof(Value) == 2) {  // two units to a word: the next one is four lanes away (fragments.h)
    const Value next = device::from_float<Value>(device::shuffle_xor(device::to_float(value), 4));
    const Value both[2] = {value, next};
    uint32_t data;
    __builtin_memcpy(&data, both, sizeof data);
    if (there && unit % 2 == 0) device::store_word(place(unit / 2), numbered(n, data));
  } else {
    constexpr int kWords = sizeof(Value) / 4;
    uint32_t data[kWords];
    __builtin_memcpy(data, &value, sizeof data);
    CNNLSTM_UNROLL
    for (int w = 0; w < kWords; ++w)
      if (there) device::store_word(place(unit * kWords + w), numbered(n, data[w]));
  }
}

// It stores almost nothing: what can be read from the layout and the tiles costs no registers.
template <int kUnitBytes, bool kSplit>
class ExchangeBase {
 public:
  // `unit`: any of the warp's group.
  CNNLSTM_DEVICE ExchangeBase(const Layout& layout, const Tiles& tiles, int unit, int part)
      : layout_(layout), tiles_(tiles), unit_(unit), part_(part) {}

  // Where row `sequence` of tile n begins.
  CNNLSTM_DEVICE char* row(int n, int sequence) const {
    const int buffer = layout_.buffers == 1 ? 0 : n & 1;
    return device::shared_memory() + (buffer * kSequences + sequence) * layout_.row_bytes;
  }

  // Writes a lane's own values of a unit to tile n.
  template <class Value>
  CNNLSTM_DEVICE void put(int n, int sequence, int unit, const Value& value) const {
    static_assert(sizeof(Value) == kUnitBytes);
    device::store_shared(reinterpret_cast<Value*>(row(n, sequence)) + unit, value);
  }

  // Zeros in all tiles: places that are never written are multiplied by weights of zero.
  CNNLSTM_DEVICE void clear_tiles() const {
    const int bytes = layout_.buffers * kSequences * layout_.row_bytes;
    CNNLSTM_NO_UNROLL
    for (int at = 16 * device::thread(); at < bytes; at += 16 * device::threads())
      device::store_shared(reinterpret_cast<uint4*>(device::shared_memory() + at), make_uint4(0, 0, 0, 0));
  }

 protected:
  const Layout& layout_;
  const Tiles& tiles_;
  const int unit_, part_;
};

template <int kUnitBytes, bool kSplit>
class BlockExchange : public ExchangeBase<kUnitBytes, kSplit> {
 public:
  using ExchangeBase<kUnitBytes, kSplit>::ExchangeBase;

  CNNLSTM_DEVICE void start() const { device::block_barrier(); }
  CNNLSTM_DEVICE void publish(int) const {}
  CNNLSTM_DEVICE void receive(int n) const {
    if (n > 0) device::block_barrier();
  }
};

template <int kUnitBytes, bool kSplit>
class ClusterExchange : public ExchangeBase<kUnitBytes, kSplit> {
  using Base = ExchangeBase<kUnitBytes, kSplit>;

 public:
  using Base::Base;

  // Tile 0, if there is one, was computed by every block itself.
  CNNLSTM_DEVICE void start() const {
    if (device::thread() == 0) {
      const int senders = this->layout_.groups * (kSplit ? 2 : 1);
      for (int n = 0; n < 2; ++n) device::arrivals_init(barrier(n), senders + 1);
      for (int n = 1; n < 3; ++n) expect(n);
    }
    device::cluster_barrier();
  }

  CNNLSTM_DEVICE void publish(int n) const {
    device::warp_barrier();
    const int lane = device::anew(device::thread()) % 32;
    if (lane == 0) device::arrive(barrier(n));
    constexpr int kChunks = kGroupBytes / 16, kOfBlock = kSliceRows * kChunks;
    const int all = (device::blocks_x() - 1) * kOfBlock;
    CNNLSTM_NO_UNROLL
    for (int i = lane; i < all; i += 32) {
      const int chunk = i % kOfBlock;
      char* const at = this->row(n, slice_row(chunk / kChunks)) + slice_at() + 16 * (chunk % kChunks);
      // beginning behind itself, so that the blocks do not all send to the same one at once
      int rank = device::block_x() + 1 + i / kOfBlock;
      if (rank >= device::blocks_x()) rank -= device::blocks_x();
      device::send(at, device::load_shared(reinterpret_cast<const uint4*>(at)), barrier(n), rank);
    }
  }

  CNNLSTM_DEVICE void receive(int n) const {
    if (n == 0) return;
    // the first use of barrier 1 is tile 1, of barrier 0 tile 2
    device::wait_phase(barrier(n), ((n - 1) >> 1) & 1);
    if (device::thread() == 0) expect(n + 2);
  }

 private:
  CNNLSTM_DEVICE uint64_t* barrier(int n) const {
    return reinterpret_cast<uint64_t*>(device::shared_memory() + this->layout_.barriers_at) + (n & 1);
  }
  CNNLSTM_DEVICE void expect(int n) const {
    device::arrive_expecting(barrier(n),
                             (device::blocks_x() - 1) * this->layout_.groups * kGroupBytes * kSequences);
  }

  static constexpr int kGroupBytes = kGroup * kUnitBytes;
  static constexpr int kSliceRows = kSplit ? kSequences / 2 : kSequences;  // those whose cells the warp has
  // Where they begin in a row.
  CNNLSTM_DEVICE int slice_at() const { return device::anew(this->unit_) / kGroup * kGroupBytes; }
  CNNLSTM_DEVICE int slice_row(int i) const { return kSplit ? 2 * i + this->part_ : i; }
};

template <int kUnitBytes, bool kSplit>
class GridExchange : public ExchangeBase<kUnitBytes, kSplit> {
 public:
  using ExchangeBase<kUnitBytes, kSplit>::ExchangeBase;

  CNNLSTM_DEVICE void start() const { device::block_barrier(); }

  template <class Value>
  CNNLSTM_DEVICE void put(int n, int sequence, int unit, const Value& value) const {
    uint64_t* const plane = this->tiles_.own_words() + (n & 1) * plane_words();
    send_words(n, unit, value, true, [&](int i) { return plane + i * kSequences + sequence; });
  }
  CNNLSTM_DEVICE void publish(int) const {}

  CNNLSTM_DEVICE void receive(int n) const {
    if (n == 0) return;
    // A warp takes runs of words; all runs are multiples of 32.
    const int thread = device::anew(device::thread());
    CNNLSTM_NO_UNROLL
    for (int first = thread / 32 * (32 * kAtOnce) + thread % 32; first < plane_words();
         first += kAtOnce * device::threads())
      take(n, first);
    device::block_barrier();
  }

 private:
  // Words that a thread loads at once: the latency of a load exceeds the rest of a step. More do not fit its
  // registers.
  static constexpr int kAtOnce = 4;

  // Takes words first, first + 32... of the tile. Those of this block are among them, which costs less than
  // skipping them.
  CNNLSTM_DEVICE void take(int n, int first) const {
    const uint64_t* const words = this->tiles_.own_words() + (n & 1) * plane_words() + first;
    const int left = plane_words() - first;
    uint64_t found[kAtOnce];
    device::Watch watch(n > 1);  // with tile 1 all blocks have started
    while (true) {
      bool complete = true;
      CNNLSTM_UNROLL
      for (int k = 0; k < kAtOnce; ++k)
        if (32 * k < left) found[k] = device::load_word(words + 32 * k);
      CNNLSTM_UNROLL
      for (int k = 0; k < kAtOnce; ++k)
        if (32 * k < left && !bears(found[k], n)) complete = false;
      if (complete) break;
      watch.turn();
    }
    uint32_t* const to = reinterpret_cast<uint32_t*>(this->row(n, first % kSequences)) + first / kSequences;
    CNNLSTM_UNROLL
    for (int k = 0; k < kAtOnce; ++k)
      if (32 * k < left) device::store_shared(to + 32 / kSequences * k, static_cast<uint32_t>(found[k]));
  }

  CNNLSTM_DEVICE int plane_words() const { return this->tiles_.words_of_tile / 2; }
};

template <int kAlgorithm, int kUnitBytes, bool kSplit>
struct ChosenExchange {
  using Type = GridExchange<kUnitBytes, kSplit>;
};
template <int kUnitBytes, bool kSplit>
struct ChosenExchange<CNNLSTM_PERSISTENT_BLOCK, kUnitBytes, kSplit> {
  using Type = BlockExchange<kUnitBytes, kSplit>;
};
template <int kUnitBytes, bool kSplit>
struct ChosenExchange<CNNLSTM_PERSISTENT_CLUSTER, kUnitBytes, kSplit> {
  using Type = ClusterExchange<kUnitBytes, kSplit>;
};
template <int kAlgorithm, int kUnitBytes, bool kSplit>
using Exchange = typename ChosenExchange<kAlgorithm, kUnitBytes, kSplit>::Type;

}  // namespace cnnlstm
