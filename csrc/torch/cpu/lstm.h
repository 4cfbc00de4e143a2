// The operators cnnlstm_fast::lstm and cnnlstm_fast::lstm_backward on CPU tensors; see operators.schema.
// Every argument is checked: no call can read or write out of bounds.
#pragma once

#include "torch/call.h"

namespace cnnlstm {

// int8: products of quantized weights and activations; float32 tensors, and for_backward must be false.
ForwardResult lstm_cpu(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                       at::TensorList weights, const OptionalTensor& batch_sizes,
                       const OptionalTensor& lengths, const OptionalTensor& reset,
                       const OptionalTensor& dropout_mask, bool bidirectional, bool for_backward,
                       bool all_cells, bool int8);

BackwardResult lstm_backward_cpu(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                 const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                                 const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                                 at::TensorList weights, const OptionalTensor& batch_sizes,
                                 const OptionalTensor& lengths, const OptionalTensor& reset,
                                 const OptionalTensor& dropout_mask, const at::Tensor& output,
                                 const at::Tensor& cells, const at::Tensor& gates, const at::Tensor& hidden,
                                 bool bidirectional, bool input_needs_grad, bool weights_need_grad);

}  // namespace cnnlstm
