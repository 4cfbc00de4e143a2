// Backward recurrence of one layer: one pass against the direction's order of time that yields the gradients
// of the gates. The caller computes the gradients of weights and inputs from them, with GEMMs.
#pragma once

#include <algorithm>

#include "cpu/thread_partition.h"

namespace cnnlstm {
namespace {

template <class T>
struct BackwardScratch {
  float* gate_panels;    // blocks of 4W outputs of W_hh^T, reduction over 4H
  float* output_panels;  // blocks of 4W outputs of W_hr^T, reduction over P; projection only
  float* grad_c;         // (B, ldh): gradient of c from the later step
  float* products;       // of the GEMM micro-kernel: (threads, B, 4W), or null
  T* grad_projected;     // (B, ldp): gradient of h at this step, zero beyond P; projection only
  int64_t ldp, ldh;
  int64_t gate_blocks, gate_panel;  // how many, and floats in one
  int64_t output_blocks, output_panel;

  BackwardScratch(Arena& arena, const BackwardLayer& layer, const BackwardDirection& d) {
    const int64_t B = layer.seq.B;
    ldp = ceil_div(layer.P, 4 * W) * 4 * W;
    ldh = ceil_div(layer.H, W) * W;
    gate_blocks = ceil_div(layer.P, 4 * W);
    gate_panel = words<T>(4 * layer.H) * 4 * W;
    output_blocks = d.w_hr == nullptr ? 0 : ceil_div(layer.H, 4 * W);
    output_panel = words<T>(layer.P) * 4 * W;
    gate_panels = arena.take<float>(gate_blocks * gate_panel);
    output_panels = arena.take<float>(output_blocks * output_panel);
    grad_c = arena.take<float>(B * ldh);
    products = layer.microkernel.multiply == nullptr ? nullptr : arena.take<float>(layer.threads * B * 4 * W);
    grad_projected = d.w_hr == nullptr ? nullptr : arena.take<T>(B * ldp);
  }
};

// One step of one direction.
template <class T>
struct BackwardStep {
  const BackwardLayer& layer;
  const BackwardDirection& d;
  const BackwardScratch<T>& scratch;
  int64_t t;
  float* products;  // (B, 4W): the micro-kernel's result for the current block, or null

  // The same as recurrent() for sequences [begin, end), all of which have a next step.
  void multiply_with_microkernel(int64_t b, int64_t begin, int64_t end) const {
    const int64_t next = d.reverse ? t - 1 : t + 1;
    float* to = products + begin * 4 * W;
    std::fill(to, products + end * 4 * W, 0.0f);
    layer.microkernel.multiply(
        end - begin, 4 * W, 4 * layer.H, d.grad_gates_stride, 4 * W, 4 * W,
        row<const T>(d.grad_gates, at(layer.seq.compact, next, begin), d.grad_gates_stride),
        scratch.gate_panels + b * scratch.gate_panel, to);
  }

  // acc = the gradient of h before step t: the gradient of the gates of step t times W_hh.
  template <int M>
  CNNLSTM_INLINE void recurrent(vf (&acc)[M][4], int64_t b, int64_t r, int64_t t) const {
    multiply<M>(acc, scratch.gate_panels + b * scratch.gate_panel,
                row<const T>(d.grad_gates, at(layer.seq.compact, t, r), d.grad_gates_stride),
                d.grad_gates_stride, words<T>(4 * layer.H));
  }

  // Gradient of h, units [b * 4W, b * 4W + 4W), sequences [r, r + M), which all have a next step or all end.
  template <int M>
  CNNLSTM_INLINE void hidden_tile(vf (&acc)[M][4], int64_t b, int64_t r) const {
    const Sequences& seq = layer.seq;
    const int64_t P = layer.P, next = d.reverse ? t - 1 : t + 1;
    const bool ends = !has_next(seq, d.reverse, t, r);
    if (!ends && products != nullptr) {
      load_tile<M>(acc, products + r * 4 * W, 4 * W);
    } else if (!ends) {
      recurrent<M>(acc, b, r, next);
    }
    for (int m = 0; m < M; ++m) {
      const bool reset = !ends && is_reset(seq, next, r + m);
      for (int v = 0; v < 4; ++v) {
        const int64_t u = (b * 4 + v) * W;
        if (reset) acc[m][v] = zero();
        if (ends && d.grad_h_n != nullptr)
          acc[m][v] += load(row<T>(d.grad_h_n, seq.batch[r + m], P) + u, P - u);
        if (d.grad_output != nullptr) {
          acc[m][v] +=
              load(row<T>(d.grad_output, at(d.grad_output_rows, t, r + m), d.grad_output_stride) + u, P - u);
        }
      }
    }
  }

  // The cell: from the gradient of o tanh(c) those of the gates and of the previous c, W lanes from unit u
  // on.
  CNNLSTM_INLINE void cell(int64_t r, int64_t u, vf grad_h) const {
    const Sequences& seq = layer.seq;
    const int64_t H = layer.H, n = H - u;
    if (n <= 0) return;
    const T* gates = row<T>(d.gates, at(seq.rows, t, r), 4 * H) + u;
    const vf i = load(gates, n), f = load(gates + H, n), g = load(gates + 2 * H, n),
             o = load(gates + 3 * H, n);
    const vf c = tanh(load(row<T>(d.cells, at(seq.rows, t, r), H) + u, n));
    const bool reset = is_reset(seq, t, r);
    vf previous_c = zero();
    if (!reset) {
      const bool first = d.reverse ? r >= seq.active[t + 1] : t == 0;
      previous_c = first ? load(row<T>(d.c0, seq.batch[r], H) + u, n)
                         : load(row<T>(d.cells, at(seq.rows, d.reverse ? t + 1 : t - 1, r), H) + u, n);
    }
    float* carry = scratch.grad_c + r * scratch.ldh + u;
    vf grad_c = fma(grad_h * o, 1.0f - c * c, load(carry));
    if (d.grad_cells != nullptr) grad_c += load(row<T>(d.grad_cells, at(seq.rows, t, r), H) + u, n);
    store(carry, reset ? zero() : grad_c * f);
    T* out = row<T>(d.grad_gates, at(seq.compact, t, r), d.grad_gates_stride) + u;
    store(out, n, grad_c * g * i * (1.0f - i));
    store(out + H, n, grad_c * previous_c * f * (1.0f - f));
    store(out + 2 * H, n, grad_c * i * (1.0f - g * g));
    store(out + 3 * H, n, grad_h * c * o * (1.0f - o));
    if (d.w_hr != nullptr) store(row<T>(d.unprojected, at(seq.compact, t, r), H) + u, n, o * c);
  }

  template <int M>
  void gate_tile(int64_t b, int64_t r) const {
    vf acc[M][4] = {};
    hidden_tile<M>(acc, b, r);
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < 4; ++v) cell(r + m, (b * 4 + v) * W, acc[m][v]);
    }
  }

  // With a projection, in two parts: first the gradient of its output, ...
  template <int M>
  void projected_tile(int64_t b, int64_t r) const {
    vf acc[M][4] = {};
    hidden_tile<M>(acc, b, r);
    for (int m = 0; m < M; ++m) {
      T* kept = row<T>(d.grad_projected, at(layer.seq.compact, t, r + m), layer.P);
      for (int v = 0; v < 4; ++v) {
        const int64_t u = (b * 4 + v) * W;
        store(scratch.grad_projected + (r + m) * scratch.ldp + u, acc[m][v]);
        store(kept + u, layer.P - u, acc[m][v]);
      }
    }
  }

  // ... then the gradients of its input and of the cell.
  template <int M>
  void unprojected_tile(int64_t b, int64_t r) const {
    vf acc[M][4] = {};
    multiply<M>(acc, scratch.output_panels + b * scratch.output_panel,
                scratch.grad_projected + r * scratch.ldp, scratch.ldp, words<T>(layer.P));
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < 4; ++v) cell(r + m, (b * 4 + v) * W, acc[m][v]);
    }
  }

  // Gradient of h0 for sequences [r, r + M), whose first step is t.
  template <int M>
  void start_tile(int64_t b, int64_t r) const {
    vf acc[M][4] = {};
    recurrent<M>(acc, b, r, t);
    for (int m = 0; m < M; ++m) {
      const bool reset = is_reset(layer.seq, t, r + m);
      for (int v = 0; v < 4; ++v) {
        const int64_t u = (b * 4 + v) * W;
        store(row<T>(d.grad_h0, layer.seq.batch[r + m], layer.P) + u, layer.P - u,
              reset ? zero() : acc[m][v]);
      }
    }
  }
};

// n values of gradient, zero where it is absent.
template <class T>
void copy_gradient(T* to, const T* from, int64_t n) {
  if (from == nullptr) {
    std::memset(to, 0, n * sizeof(T));
  } else {
    std::memcpy(to, from, n * sizeof(T));
  }
}

template <class T>
void backward_direction(const BackwardLayer& layer, const BackwardDirection& d,
                        const BackwardScratch<T>& scratch, const ThreadPartition& partition) {
  const Sequences& seq = layer.seq;
  const int64_t H = layer.H, P = layer.P;
  for (int64_t b = partition.begin(scratch.gate_blocks); b < partition.end(scratch.gate_blocks); ++b) {
    pack_columns(scratch.gate_panels + b * scratch.gate_panel, static_cast<const T*>(d.w_hh), 4 * H, P,
                 b * 4 * W);
  }
  for (int64_t b = partition.begin(scratch.output_blocks); b < partition.end(scratch.output_blocks); ++b) {
    pack_columns(scratch.output_panels + b * scratch.output_panel, static_cast<const T*>(d.w_hr), P, H,
                 b * 4 * W);
  }
  for (int64_t r = partition.begin(seq.B); r < partition.end(seq.B); ++r) {
    for (int64_t u = 0; u < scratch.ldh; u += W) {
      store(scratch.grad_c + r * scratch.ldh + u,
            d.grad_c_n == nullptr ? zero() : load(row<T>(d.grad_c_n, seq.batch[r], H) + u, H - u));
    }
  }
  partition.wait();

  const auto of_thread = [&](int64_t r) { return std::clamp(r, partition.row_begin, partition.row_end); };
  const auto blocks = [&](int64_t count, auto body) {
    for (int64_t b = partition.panel_begin(count); b < partition.panel_end(count); ++b) body(b);
  };
  for (int64_t step = seq.T - 1; step >= 0; --step) {
    const int64_t t = d.reverse ? seq.T - 1 - step : step;
    // A tile must not contain both sequences that continue after t and sequences that end there.
    const int64_t first = partition.row_begin, end = of_thread(seq.active[t]);
    const int64_t ending = of_thread(d.reverse ? (t == 0 ? 0 : seq.active[t]) : seq.active[t + 1]);
    const bool use_microkernel = layer.microkernel.multiply != nullptr && 4 * H % kMicrokernelTile == 0 &&
                                 ending - first >= kMicrokernelMinRows;
    const BackwardStep<T> now{layer, d, scratch, t,
                              use_microkernel ? scratch.products + partition.rank * seq.B * 4 * W : nullptr};
    blocks(scratch.gate_blocks, [&](int64_t b) {
      if (use_microkernel) now.multiply_with_microkernel(b, first, ending);
      const auto tile = [&](auto m, int64_t r) {
        if (d.w_hr == nullptr) {
          now.template gate_tile<m.value>(b, r);
        } else {
          now.template projected_tile<m.value>(b, r);
        }
      };
      for_row_tiles(first, ending, tile);
      for_row_tiles(ending, end, tile);
    });
    if (d.w_hr != nullptr) {
      partition.wait_step();
      blocks(scratch.output_blocks, [&](int64_t b) {
        for_row_tiles(first, end, [&](auto m, int64_t r) { now.template unprojected_tile<m.value>(b, r); });
      });
    }
    partition.wait_step();
  }
  if (layer.microkernel.multiply != nullptr) layer.microkernel.release();

  for (int64_t t = 0; t < (d.reverse ? seq.T : seq.T > 0); ++t) {
    const BackwardStep<T> now{layer, d, scratch, t, nullptr};
    const int64_t starting = of_thread(d.reverse ? seq.active[t + 1] : 0), end = of_thread(seq.active[t]);
    blocks(scratch.gate_blocks, [&](int64_t b) {
      for_row_tiles(starting, end, [&](auto m, int64_t r) { now.template start_tile<m.value>(b, r); });
    });
  }
  partition.wait();
  for (int64_t r = partition.begin(seq.B); r < partition.end(seq.B); ++r) {
    T* grad_c0 = row<T>(d.grad_c0, seq.batch[r], H);
    if (seq.T > 0 && r < seq.active[0]) {
      for (int64_t u = 0; u < H; u += W)
        store(grad_c0 + u, H - u, load(scratch.grad_c + r * scratch.ldh + u));
    } else {
      const int64_t batch = seq.batch[r];
      copy_gradient(row<T>(d.grad_h0, batch, P), d.grad_h_n ? row<const T>(d.grad_h_n, batch, P) : nullptr,
                    P);
      copy_gradient(grad_c0, d.grad_c_n ? row<const T>(d.grad_c_n, batch, H) : nullptr, H);
    }
  }
}

template <class T>
size_t backward_workspace(const BackwardLayer& layer) {
  Arena arena(nullptr);
  for (int d = 0; d < layer.D; ++d) BackwardScratch<T>(arena, layer, layer.direction[d]);
  return arena.used();
}

template <class T>
void backward(const BackwardLayer& layer) {
  run_partitioned(layer, ceil_div(layer.H, 4 * W), 4 * layer.H * layer.P * int64_t(sizeof(T)),
                  [](const BackwardLayer& layer, int direction, const ThreadPartition& partition) {
                    Arena arena(layer.workspace);
                    const BackwardScratch<T> first(arena, layer, layer.direction[0]);
                    if (direction == 0)
                      return backward_direction(layer, layer.direction[0], first, partition);
                    const BackwardScratch<T> second(arena, layer, layer.direction[1]);
                    backward_direction(layer, layer.direction[1], second, partition);
                  });
}

}  // namespace
}  // namespace cnnlstm
