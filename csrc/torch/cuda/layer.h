// One layer, both directions: the recurrence, and the products around it.
//
// T steps, B sequences, I input_size, H hidden_size, P proj_size or H, D directions, N rows.
#pragma once

#include "torch/cuda/run_recurrence.h"

namespace cnnlstm {

struct Layer {
  Layer(const Call& call, int64_t l);

  int64_t D, H, P;
  bool has_bias, has_projection;
  at::Tensor w_ih[2];  // (4H, I), any strides
  Recurrent given;     // its w_hh (4H, P)
  at::Tensor w_hr[2];  // (P, H), with a projection
};

// x (N, I), h0 (D, B, P), c0 (D, B, H). Fills h_n and c_n like them and output (N, D*P), and of cells (D, N,
// H) and gates (D, N, 4H) what is defined.
void layer_forward(const Layer& layer, const Rows& rows, const at::Tensor& x, const at::Tensor& h0,
                   const at::Tensor& c0, const at::Tensor& h_n, const at::Tensor& c_n,
                   const at::Tensor& output, const at::Tensor& cells, const at::Tensor& gates);

// Inputs and results of the forward pass.
struct LayerPast {
  at::Tensor x, h0, c0, output, cells, gates;
};

// `of`: its output (N, D*P) and h_n (D, B, P). Fills grad_h0 (D, B, P) and grad_c0 (D, B, H), and where
// `grad_weights` is not null the gradients of the layer's weights, in the order of the operator. Returns the
// gradients of the gates before their activation, (N, D*4H).
at::Tensor layer_backward(const Layer& layer, const Rows& rows, const LayerPast& past, const Gradients& of,
                          const at::Tensor& grad_h0, const at::Tensor& grad_c0, at::Tensor* grad_weights);

// The gradient of x (N, I) out of them.
at::Tensor input_gradient(const Layer& layer, const at::Tensor& gate_gradients);

}  // namespace cnnlstm
