// A recurrence's steps without what it computes: every warp sends its part of a tile, and all receive all of
// it.
#pragma once

#include "cuda/exchange.cuh"
#include "cuda/fragments.h"

namespace cnnlstm::micro {

// `Value`: what a unit has in a row of the tile, in bfloat16: one forward, four backward.
template <int kAlgorithm, class Value>
struct Exchanges {
  static constexpr bool kBackward = sizeof(Value) == 8;
  static constexpr int kThreads = kMostThreads;
  static constexpr bool kCluster = kAlgorithm == CNNLSTM_PERSISTENT_CLUSTER;
  static constexpr int kSplits = 2;  // whose warps own all cells of a group together

  struct Arguments {
    Layout layout;
    Tiles tiles;
    int rounds;
    int silent_from;  // the round in which half the warps cease to send; behind `rounds` where all work
    uint32_t* sums;   // of each thread: the 4-byte parts of the last tile that it added up
  };

  template <class F>
  static void each_array(const Arguments& arguments, F f) {
    f(arguments.tiles.words, arguments.tiles.all_words(1));
    f(arguments.sums, sums(arguments.layout.blocks));
  }
  static int64_t sums(int blocks) { return int64_t{blocks} * kThreads; }

  static CnnlstmPlan plan(int groups, int blocks, int multiprocessors) {
    CnnlstmPlan split = {};
    split.algorithm = kAlgorithm;
    split.groups = groups;
    split.splits = kSplits;
    split.tiles = 8;
    split.turns = 1;
    split.blocks = blocks;
    split.batch = 1;
    return plan_of(split, kBackward, CNNLSTM_BFLOAT16, kSequences, 1, multiprocessors);
  }

  // Of a cell in tile n: small whole numbers, which are exact in bfloat16.
  CNNLSTM_EMULATOR_DEVICE static float sent(int n, int sequence, int unit) {
    return static_cast<float>((n + kSequences * unit + sequence) % 251);
  }

  CNNLSTM_DEVICE static void run(const Arguments& arguments) {
    const Layout& layout = arguments.layout;
    const int lane = device::thread() % 32, warp = device::thread() / 32, part = warp / layout.groups;
    const int unit =
        (device::block_x() * layout.groups + warp % layout.groups) * kGroup + place_in_d(lane, 0).row;
    const int sequence = column_of(lane, true, part, 0);
    Exchange<kAlgorithm, sizeof(Value), true> exchange(layout, arguments.tiles, unit, part);
    exchange.clear_tiles();
    device::block_barrier();
    exchange.start();
    CNNLSTM_NO_UNROLL
    for (int n = 1; n <= arguments.rounds; ++n) {
      if (part == 0 || n < arguments.silent_from) {
        exchange.put(n, sequence, unit, value(sent(n, sequence, unit)));
        exchange.publish(n);
      }
      exchange.receive(n);
      device::block_barrier();
    }
    uint32_t sum = 0;
    const int parts = layout.units * static_cast<int>(sizeof(Value)) / 4;
    for (int i = device::thread(); i < kSequences * parts; i += device::threads())
      sum += device::load_shared(
          reinterpret_cast<const uint32_t*>(exchange.row(arguments.rounds, i / parts)) + i % parts);
    device::store(arguments.sums + device::block_x() * kThreads + device::thread(), sum);
  }

 private:
  CNNLSTM_DEVICE static Value value(float x) {
    if constexpr (kBackward) {
      return quad<bf16>(x, x, x, x);
    } else {
      return device::from_float<Value>(x);
    }
  }
};

}  // namespace cnnlstm::micro
