// One call of the operator on any device, its arguments checked against each other.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace cnnlstm {

using OptionalTensor = std::optional<at::Tensor>;

// output, h_n, c_n, cells, gates, hidden.
using ForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// grad_input, grad_h0, grad_c0, grad_weights.
using BackwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>>;

struct Call {
  // Throws c10::Error with one sentence on the first argument that does not fit the others. The values of
  // `lengths` are not checked: reading them may require a synchronization with the device.
  Call(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0, at::TensorList weights,
       const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset,
       const OptionalTensor& dropout_mask, bool bidirectional);

  int64_t T, B, I, H, P, L, D;
  bool packed;   // input is (N, I), not (T, B, I)
  int64_t rows;  // number of rows of the caller's tensors: N or T * B
  bool has_bias, has_projection;
  int64_t weights_per_direction;
  at::TensorOptions options;         // dtype and device of all tensors but batch_sizes, lengths and reset
  std::vector<int64_t> batch_sizes;  // (T) of a packed call, else empty

  at::ScalarType dtype() const { return options.dtype().toScalarType(); }

  // The k-th weight of layer l, direction d, as the caller gave it.
  at::Tensor weight(int64_t l, int64_t d, int64_t k) const {
    return weights_[(l * D + d) * weights_per_direction + k];
  }

  // (leading..., T, B, width) or (leading..., N, width).
  std::vector<int64_t> shape(std::vector<int64_t> leading, int64_t width) const;

  // Checks that the tensor is strided, on the call's device, of its dtype and of that shape.
  void check(const char* name, const at::Tensor& tensor, at::IntArrayRef shape) const;
  // A gradient that may be absent, checked and contiguous.
  at::Tensor gradient(const char* name, const OptionalTensor& gradient, at::IntArrayRef shape) const;

 private:
  void check_weights();
  void read_batch_sizes(const at::Tensor& given);

  at::TensorList weights_;
};

}  // namespace cnnlstm
