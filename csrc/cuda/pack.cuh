// W_hh as the warps of a pass hold it in registers, laid out in global memory: the kernels then load vectors
// that lie beside each other, and need no mask, address or conversion for each value, for which they have no
// registers.
#pragma once

#include "cuda/compute_types.cuh"
#include "cuda/device.cuh"
#include "cuda/fragments.h"
#include "cuda/launch.h"
#include "cuda/product.cuh"

namespace cnnlstm {

// Where a lane's first vector of turn 0 lies; the next ones follow in strides of 32.
CNNLSTM_DEVICE int64_t packed_at(const Layout& layout, int direction, int block, int warp, int lane) {
  const int64_t before = (int64_t{direction} * layout.blocks + block) * layout.turns * layout.warps + warp;
  return before * layout.vectors * 32 + lane;
}
// From a vector to that of the next turn.
CNNLSTM_DEVICE int packed_turn(const Layout& layout) { return layout.warps * layout.vectors * 32; }

struct PackArguments {
  const void* weight_hh[2];  // (4H, H) in nn.LSTM's order
  int64_t H;
  int D;
  Layout layout;
  uint4* packed;
};

// kTiles of the plan; block (unit block and warp, turn, direction), a thread for each vector and lane.
template <class ComputeType, bool kBackward, int kTiles>
struct Pack {
  using T = typename ComputeType::Stored;
  using Arguments = PackArguments;
  static constexpr int kThreads = 2 * kTiles * 32;
  static constexpr bool kCluster = false;
  using WarpProduct = Product<ComputeType, kBackward ? 2 : 4, kBackward ? 2 * kTiles : kTiles>;
  static_assert(WarpProduct::kVectors == 2 * kTiles, "Layout::vectors");

  template <class F>
  static void each_array(const Arguments& arguments, F f) {
    for (int d = 0; d < arguments.D; ++d)
      f(static_cast<const T*>(arguments.weight_hh[d]), 4 * arguments.H * arguments.H);
    f(arguments.packed, arguments.layout.packed_bytes(arguments.D) / 16);
  }

  CNNLSTM_DEVICE static void run(const Arguments& arguments) {
    const Layout& layout = arguments.layout;
    const int lane = device::thread() % 32, vector = device::thread() / 32, direction = device::block_z();
    const int turn = device::block_y();
    const int block = device::block_x() / layout.warps, warp = device::block_x() % layout.warps;
    const int group = warp % layout.groups, part = warp / layout.groups;
    const int64_t H = arguments.H;
    const T* const weight_hh = static_cast<const T*>(arguments.weight_hh[direction]);
    const auto weight = [&](int gate, int64_t unit, int64_t k) {
      return unit < H && k < H ? device::load(weight_hh + (gate * H + unit) * H + k)
                               : device::from_float<T>(0);
    };
    constexpr int kPart = (kBackward ? 2 : 1) * kTiles * kPiece / static_cast<int>(sizeof(T));  // values of k
    uint4 packed;
    if constexpr (kBackward) {
      // Row: one of the 16 units of two groups; k: gate and unit of a gate gradient. Which part of k:
      // the mirror image of forward.cuh.
      const int first = (block * layout.groups + group / 2 * 2) * kGroup + place_in_d(lane, 0).row;
      const int begin = ((turn * layout.splits + part) * 2 + group % 2) * kPart;
      packed = WarpProduct::pack(
          lane, vector, [&](int row, int k) { return weight(k % 4, (begin + k) / 4, first + row * kGroup); });
    } else {
      const int unit = (block * layout.groups + group) * kGroup + place_in_d(lane, 0).row;
      const int begin = (turn * layout.splits + part) * kPart;
      packed =
          WarpProduct::pack(lane, vector, [&](int gate, int k) { return weight(gate, unit, begin + k); });
    }
    const int64_t at = packed_at(layout, direction, block, warp, lane) + turn * packed_turn(layout);
    device::store(arguments.packed + at + vector * 32, packed);
  }
};

}  // namespace cnnlstm
