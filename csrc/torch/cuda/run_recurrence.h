// The launches of cuda/recurrence.h on tensors: one layer's recurrence, both directions.
//
// T steps, B sequences, H hidden_size, D directions, N rows. All tensors are contiguous, gates interleaved:
// (..., H, 4).
#pragma once

#include <functional>

#include "torch/cuda/rows.h"

namespace cnnlstm {

// By direction.
struct Recurrent {
  at::Tensor w_hh[2];           // (4H, H)
  at::Tensor b_ih[2], b_hh[2];  // (4H), undefined where there are none
};

// W_ih x of a chunk's rows by direction, (count, 4H) float32; the rows of both directions lie equally far
// apart.
struct GateInputs {
  at::Tensor of[2];
};

// a b, accumulated and returned in float32.
at::Tensor product(const at::Tensor& a, const at::Tensor& b);

// Fills h_n and c_n (D, B, H) and output (N, D*H), and of cells (D, N, H) and gates (D, N, 4H) what is
// defined.
void run_forward(const std::function<GateInputs(const Chunk&)>& gate_inputs, const at::Tensor& h0,
                 const at::Tensor& c0, const Recurrent& weights, const Rows& rows, const at::Tensor& h_n,
                 const at::Tensor& c_n, const at::Tensor& output, const at::Tensor& cells,
                 const at::Tensor& gates);

// Gradients of a layer's results, undefined where there are none.
struct Gradients {
  at::Tensor output;    // (N, D*H)
  at::Tensor cells;     // (D, N, H)
  at::Tensor h_n, c_n;  // (D, B, H)
};

// Fills grad_h0 and grad_c0 (D, B, H); returns the gradients of the gates before their activation, (N, D*4H).
at::Tensor run_backward(const Gradients& of, const at::Tensor& cells, const at::Tensor& gates,
                        const at::Tensor& c0, const Recurrent& weights, const Rows& rows,
                        const at::Tensor& grad_h0, const at::Tensor& grad_c0);

// output (N, D*H), h0 (D, B, H) -> the hidden states that enter each step, (D, N, H).
at::Tensor entering_states(const at::Tensor& output, const at::Tensor& h0, const Rows& rows);

// cells (D, N, H), gates (D, N, 4H) -> the hidden states of all rows, (N, D*H).
at::Tensor hidden_states(const at::Tensor& cells, const at::Tensor& gates);

}  // namespace cnnlstm
