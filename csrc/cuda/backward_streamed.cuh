// The recurrence of one layer, backward, where every step reads W_hh again (streamed.cuh):
// the mirror image of forward_streamed.cuh.
#pragma once

#include "cuda/backward.cuh"
#include "cuda/cell.cuh"
#include "cuda/streamed.cuh"

namespace cnnlstm {

template <class ComputeType_>
struct BackwardStreamed {
  using ComputeType = ComputeType_;
  using T = typename ComputeType::Stored;
  using Arguments = BackwardArguments;
  static constexpr int kThreads = most_threads(ComputeType::kComputeType);
  static constexpr bool kCluster = false;

  template <class F>
  static void each_array(const Arguments& arguments, F f) {
    each_array_of<T>(arguments.pass, f);
    each_array_of_launch(arguments, f);
  }

  CNNLSTM_DEVICE static void run(const Arguments& arguments) {
    const CnnlstmBackward& pass = arguments.pass;
    const Layout& layout = arguments.layout;
    const int direction = device::block_z();
    const Rows rows(pass.rows, direction);
    const StreamedLane lane(layout, arguments.tiles);
    const auto own = [&] { return BackwardRows<T>(pass, device::anew(direction), lane.unit()); };

    const StreamedProduct<ComputeType, true> product(layout, arguments.tiles, arguments.packed, rows.B);
    product.start();

    const bool exists = lane.owner() && lane.unit() < pass.H && lane.sequence() < rows.B;
    const int length = exists ? rows.length(lane.sequence()) : -1;
    // Gradients of the states; where `takes`, dh comes out of the next product.
    float dh = exists ? device::to_float(own().optional(pass.grad_h_n, own().state(lane.sequence()))) : 0;
    float dc = exists ? device::to_float(own().optional(pass.grad_c_n, own().state(lane.sequence()))) : 0;
    bool takes = false;
    // Tile n holds the gate gradients of the step that comes before the n-th here; h0 comes after the last.
    CNNLSTM_NO_UNROLL
    for (int n = 0; n <= rows.T; ++n) {
      const int s = rows.T - 1 - n;
      const auto row = [&] { return int64_t{rows.first(s)} + lane.sequence(); };
      StepBack<T> step = {};
      if (rows.active(s, length))  // in flight during the product
        step =
            own().load(row(), rows.active(s - 1, length) ? int64_t{rows.first(s - 1)} + lane.sequence() : -1,
                       lane.sequence());
      if (n > 0) product.multiply(n);
      if (takes) dh = product.sum(lane.cell(), 0);
      if (s < 0 || !lane.owner()) continue;
      const bool active = rows.active(s, length), kept = rows.kept(s, lane.sequence(), active);
      Quad<T> gradients = quad<T>(0, 0, 0, 0);
      if (active) {
        if (pass.grad_cells != nullptr) dc += own().of_cells(row());
        gradients = retreat<ComputeType>(step, kept, dh, dc);
        dh = 0;
      }
      takes = kept;
      Quad<T> factors;
      CNNLSTM_UNROLL
      for (int gate = 0; gate < 4; ++gate) factors.value[gate] = ComputeType::factor(gradients.value[gate]);
      product.put(n + 1, lane, factors);
      if (active || (rows.padded() && length >= 0)) own().store(row(), gradients);
    }

    if (length < 0) return;
    device::store(static_cast<T*>(pass.grad_h0) + own().state(lane.sequence()), device::from_float<T>(dh));
    device::store(static_cast<T*>(pass.grad_c0) + own().state(lane.sequence()), device::from_float<T>(dc));
  }
};

}  // namespace cnnlstm
