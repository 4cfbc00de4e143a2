// The kernels without a recurrence: one thread for each unit of a row.
//
// Step kernels are the cells of one step, where a library makes the recurrent product.
#pragma once

#include "cuda/backward.cuh"
#include "cuda/forward.cuh"

namespace cnnlstm {

constexpr int kElementwiseThreads = 256;

// Of a step kernel, whose blocks are (sequence, units, direction).
CNNLSTM_DEVICE int unit_of_thread() { return device::block_y() * device::threads() + device::thread(); }

template <class ComputeType_>
struct ForwardStep {
  using ComputeType = ComputeType_;
  using T = typename ComputeType::Stored;
  using Arguments = CnnlstmForwardStep;
  static constexpr int kThreads = kElementwiseThreads;
  static constexpr bool kCluster = false;

  template <class F>
  static void each_array(const Arguments& arguments, F f) {
    each_array_of<T>(arguments.pass, f);
    for (int d = 0; d < arguments.pass.D; ++d)
      f(arguments.recurrent[d], 4 * arguments.pass.rows.B * arguments.pass.H);
  }

  CNNLSTM_DEVICE static void run(const Arguments& arguments) {
    const CnnlstmForward& pass = arguments.pass;
    const int unit = unit_of_thread(), sequence = device::block_x(), direction = device::block_z();
    if (unit >= pass.H) return;
    const Rows rows(pass.rows, direction);
    const int s = static_cast<int>(pass.begin);
    const bool active = rows.active(s, rows.length(sequence)), kept = rows.kept(s, sequence, active);
    const int64_t row = int64_t{rows.first(s)} + sequence;
    const int64_t at = (int64_t{direction} * rows.B + sequence) * pass.H + unit;
    float c = load_cell<T>(pass.c_in, pass.c_in_float, at);
    T h = device::load(static_cast<const T*>(pass.h_in) + at);
    typename Cell<ComputeType>::State now = {};
    if (active) {
      const float4 b = load_bias<T>(pass, direction, unit);
      const float4 x = device::load(reinterpret_cast<const float4*>(
          pass.gate_inputs[direction] + (row - pass.first_row[direction]) * pass.gate_inputs_stride +
          4 * unit));
      float a[4] = {b.x + x.x, b.y + x.y, b.z + x.z, b.w + x.w};
      CNNLSTM_UNROLL
      for (int gate = 0; gate < 4; ++gate) {
        if (kept)
          a[gate] +=
              device::load(arguments.recurrent[direction] + (sequence * int64_t{4} + gate) * pass.H + unit);
      }
      now = Cell<ComputeType>::forward(a[0], a[1], a[2], a[3], kept ? c : 0);
      c = now.c;
      h = device::from_float<T>(now.h);
    }
    device::store(static_cast<T*>(pass.h_out) + at, h);
    store_cell<T>(pass.c_out, pass.c_out_float, at, c);
    if (active || rows.padded())
      ForwardResults<ComputeType>(pass, direction).store(row, unit, active, now, h);
  }
};

template <class ComputeType_>
struct BackwardStep {
  using ComputeType = ComputeType_;
  using T = typename ComputeType::Stored;
  using Arguments = CnnlstmBackwardStep;
  static constexpr int kThreads = kElementwiseThreads;
  static constexpr bool kCluster = false;

  template <class F>
  static void each_array(const Arguments& arguments, F f) {
    const CnnlstmBackward& pass = arguments.pass;
    each_array_of<T>(pass, f);
    const int64_t states = pass.D * pass.rows.B * pass.H;
    f(arguments.recurrent, states);
    f(arguments.grad_h, states);
    f(arguments.grad_c, states);
    f(static_cast<T*>(arguments.exchanged), 4 * states);
  }

  CNNLSTM_DEVICE static void run(const Arguments& arguments) {
    const CnnlstmBackward& pass = arguments.pass;
    const int unit = unit_of_thread(), sequence = device::block_x(), direction = device::block_z();
    if (unit >= pass.H) return;
    const Rows rows(pass.rows, direction);
    const BackwardRows<T> own(pass, direction, unit);
    const int64_t at = own.state(sequence);
    const int s = static_cast<int>(arguments.step), length = rows.length(sequence);
    float dh, dc;
    if (s == rows.T - 1) {
      dh = device::to_float(own.optional(pass.grad_h_n, at));
      dc = device::to_float(own.optional(pass.grad_c_n, at));
    } else {
      dh = device::load(arguments.grad_h + at);
      dc = device::load(arguments.grad_c + at);
      if (rows.active(s + 1, length))
        dh = rows.kept(s + 1, sequence, true) ? device::load(arguments.recurrent + at) : 0;
    }
    if (s < 0) {
      device::store(static_cast<T*>(pass.grad_h0) + at, device::from_float<T>(dh));
      device::store(static_cast<T*>(pass.grad_c0) + at, device::from_float<T>(dc));
      return;
    }
    const bool active = rows.active(s, length);
    const int64_t row = int64_t{rows.first(s)} + sequence;
    Quad<T> gradients = quad<T>(0, 0, 0, 0);
    if (active) {
      const int64_t row_prev = rows.active(s - 1, length) ? int64_t{rows.first(s - 1)} + sequence : -1;
      dc += own.of_cells(row);
      gradients =
          retreat<ComputeType>(own.load(row, row_prev, sequence), rows.kept(s, sequence, true), dh, dc);
    }
    device::store(arguments.grad_h + at, dh);
    device::store(arguments.grad_c + at, dc);
    CNNLSTM_UNROLL
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t lane = (int64_t{direction} * rows.B + sequence) * 4 + gate;
      device::store(static_cast<T*>(arguments.exchanged) + lane * pass.H + unit, gradients.value[gate]);
    }
    if (active || rows.padded()) own.store(row, gradients);
  }
};

template <class ComputeType_>
struct Entering {
  using ComputeType = ComputeType_;
  using T = typename ComputeType::Stored;
  using Arguments = CnnlstmEntering;
  static constexpr int kThreads = kElementwiseThreads;
  static constexpr bool kCluster = false;

  template <class F>
  static void each_array(const Arguments& arguments, F f) {
    each_array_of_rows(arguments.rows, f);
    const int64_t all = arguments.D * arguments.rows.N * arguments.H;
    f(static_cast<const T*>(arguments.output), all);
    f(static_cast<const T*>(arguments.h0), arguments.D * arguments.rows.B * arguments.H);
    f(static_cast<T*>(arguments.entering), all);
  }

  // Block (steps, sequences in strides, direction); threads and strides over units.
  CNNLSTM_DEVICE static void run(const Arguments& arguments) {
    const Rows rows(arguments.rows, device::block_z());
    const int direction = device::block_z(), s = device::block_x();
    const int64_t H = arguments.H;
    for (int b = device::block_y(); b < rows.B; b += device::blocks_y()) {
      const int length = rows.length(b);
      const bool active = rows.active(s, length), kept = rows.kept(s, b, active),
                 goes_back = rows.active(s - 1, length);
      if (!active && !rows.padded()) continue;
      const int64_t row = int64_t{rows.first(s)} + b, row_prev = int64_t{rows.first(s - 1)} + b;
      const T* const from =
          goes_back ? static_cast<const T*>(arguments.output) + (row_prev * arguments.D + direction) * H
                    : static_cast<const T*>(arguments.h0) + (int64_t{direction} * rows.B + b) * H;
      T* const to = static_cast<T*>(arguments.entering) + (direction * arguments.rows.N + row) * H;
      for (int64_t unit = device::thread(); unit < H; unit += device::threads())
        device::store(to + unit, kept ? device::load(from + unit) : device::from_float<T>(0));
    }
  }
};

template <class ComputeType_>
struct States {
  using ComputeType = ComputeType_;
  using T = typename ComputeType::Stored;
  using Arguments = CnnlstmStates;
  static constexpr int kThreads = kElementwiseThreads;
  static constexpr bool kCluster = false;

  template <class F>
  static void each_array(const Arguments& arguments, F f) {
    const int64_t all = arguments.D * arguments.N * arguments.H;
    f(static_cast<const T*>(arguments.gates), 4 * all);
    f(static_cast<const T*>(arguments.cells), all);
    f(static_cast<T*>(arguments.states), all);
  }

  // Block (row, 1, direction); threads and strides over units.
  CNNLSTM_DEVICE static void run(const Arguments& arguments) {
    const int64_t row = device::block_x(), direction = device::block_z(), H = arguments.H;
    for (int64_t unit = device::thread(); unit < H; unit += device::threads()) {
      const int64_t at = (direction * arguments.N + row) * H + unit;
      const Quad<T> gates = device::load(static_cast<const Quad<T>*>(arguments.gates) + at);
      const float c = device::to_float(device::load(static_cast<const T*>(arguments.cells) + at));
      const float h = Cell<ComputeType>::hidden(device::to_float(gates.value[3]), c);
      device::store(static_cast<T*>(arguments.states) + (row * arguments.D + direction) * H + unit,
                    device::from_float<T>(h));
    }
  }
};

}  // namespace cnnlstm
