// The recurrence of one layer, forward, where every step reads W_hh again (streamed.cuh), both directions
// in one launch.
//
// Blocks (unit block, batch tile, direction). A lane has one cell, and keeps its c and h.
#pragma once

#include "cuda/cell.cuh"
#include "cuda/forward.cuh"
#include "cuda/streamed.cuh"

namespace cnnlstm {

template <class ComputeType_>
struct ForwardStreamed {
  using ComputeType = ComputeType_;
  using T = typename ComputeType::Stored;
  using Arguments = ForwardArguments;
  static constexpr int kThreads = most_threads(ComputeType::kComputeType);
  static constexpr bool kCluster = false;

  template <class F>
  static void each_array(const Arguments& arguments, F f) {
    each_array_of<T>(arguments.pass, f);
    each_array_of_launch(arguments, f);
  }

  CNNLSTM_DEVICE static void run(const Arguments& arguments) {
    const CnnlstmForward& pass = arguments.pass;
    const Layout& layout = arguments.layout;
    const int H = static_cast<int>(pass.H), direction = device::block_z();
    const Rows rows(pass.rows, direction);
    const StreamedLane lane(layout, arguments.tiles);
    const StreamedProduct<ComputeType, false> product(layout, arguments.tiles, arguments.packed, rows.B);
    product.start();

    const int begin = static_cast<int>(pass.begin), end = static_cast<int>(pass.end);
    const bool exists = lane.owner() && lane.unit() < H && lane.sequence() < rows.B;
    const auto state = [&] {
      return (int64_t{device::anew(direction)} * rows.B + lane.sequence()) * H + lane.unit();
    };
    // No other lane reads what a lane writes here.
    const auto own_state = [&] {
      return reinterpret_cast<StreamedState*>(device::shared_memory() + layout.ring_at) +
             device::anew(device::thread());
    };
    if (lane.owner()) {
      const T h =
          exists ? device::load(static_cast<const T*>(pass.h_in) + state()) : device::from_float<T>(0);
      device::store_shared(&own_state()->c, exists ? load_cell<T>(pass.c_in, pass.c_in_float, state()) : 0);
      device::store_shared(&own_state()->h, device::to_float(h));
      device::store_shared(&own_state()->length, exists ? rows.length(lane.sequence()) : -1);
    }
    const auto length = [&] { return lane.owner() ? device::load_shared(&own_state()->length) : -1; };
    const auto bias = [&] {
      const StreamedCell own = lane.cell();
      return reinterpret_cast<float4*>(device::shared_memory() + layout.bias_at) + own.group * kGroup +
             own.unit;
    };
    if (lane.owner() && lane.cell().sequence == 0)
      device::store_shared(bias(), load_bias<T>(pass, direction, lane.unit()));

    const auto put = [&](int n) {
      const float h = device::load_shared(&own_state()->h);
      product.put(n, lane, ComputeType::factor(device::from_float<T>(h)));
    };
    if (lane.owner()) put(1);
    CNNLSTM_NO_UNROLL
    for (int n = 1; n <= end - begin; ++n) {
      const auto row = [&] { return int64_t{rows.first(begin + n - 1)} + lane.sequence(); };
      const auto active = [&] { return rows.active(begin + n - 1, length()); };
      if (active()) {  // in flight during the product
        const int d = device::anew(direction);
        device::copy_async(
            own_state()->gate_inputs,
            pass.gate_inputs[d] + (row() - pass.first_row[d]) * pass.gate_inputs_stride + 4 * lane.unit(),
            true);
      }
      device::copy_commit();
      product.multiply(n);
      device::copy_wait<0>();
      if (!lane.owner()) continue;
      typename Cell<ComputeType>::State now = {};
      if (active()) {
        const bool kept = rows.kept(begin + n - 1, lane.sequence(), true);
        StreamedState* const own = own_state();
        const float4 x = device::load_shared(reinterpret_cast<const float4*>(own->gate_inputs)),
                     b = device::load_shared(bias());
        float a[4] = {b.x + x.x, b.y + x.y, b.z + x.z, b.w + x.w};
        CNNLSTM_UNROLL
        for (int gate = 0; gate < 4; ++gate)
          if (kept) a[gate] += product.sum(lane.cell(), gate);
        now = Cell<ComputeType>::forward(a[0], a[1], a[2], a[3], kept ? device::load_shared(&own->c) : 0);
        device::store_shared(&own->c, now.c);
        device::store_shared(&own->h, device::to_float(device::from_float<T>(now.h)));
      }
      if (begin + n < end) put(n + 1);
      if (length() >= 0 && (active() || rows.padded()))
        ForwardResults<ComputeType>(pass, device::anew(direction))
            .store(row(), lane.unit(), active(), now, device::from_float<T>(now.h));
    }

    if (length() < 0) return;
    device::store(static_cast<T*>(pass.h_out) + state(),
                  device::from_float<T>(device::load_shared(&own_state()->h)));
    store_cell<T>(pass.c_out, pass.c_out_float, state(), device::load_shared(&own_state()->c));
  }
};

}  // namespace cnnlstm
