#include "torch/call.h"

#include <numeric>

namespace cnnlstm {

namespace {

void check_place(const char* name, const at::Tensor& tensor, at::Device device) {
  TORCH_CHECK(tensor.defined() && tensor.device() == device && tensor.layout() == at::kStrided, name,
              " must be a dense tensor on ", device, ", got ",
              tensor.defined() ? c10::str(tensor.layout(), " on ", tensor.device()) : "an undefined one",
              ".");
}

void check_tensor(const char* name, const at::Tensor& tensor, at::Device device, at::ScalarType dtype,
                  at::IntArrayRef shape) {
  check_place(name, tensor, device);
  TORCH_CHECK(tensor.scalar_type() == dtype && tensor.sizes() == shape, name, " must be ", dtype,
              " of shape ", shape, ", got ", tensor.scalar_type(), " of shape ", tensor.sizes(), ".");
}

}  // namespace

Call::Call(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0, at::TensorList weights,
           const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset,
           const OptionalTensor& dropout_mask, bool bidirectional)
    : packed(batch_sizes.has_value()), weights_(weights) {
  TORCH_CHECK(input.defined(), "input must be a dense tensor, got an undefined one.");
  const at::Device device = input.device();
  check_place("input", input, device);
  options = at::TensorOptions().dtype(input.scalar_type()).device(device);
  TORCH_CHECK(input.dim() == (packed ? 2 : 3), "input must have ", packed ? 2 : 3, " dimensions, got shape ",
              input.sizes(), ".");
  TORCH_CHECK(h0.dim() == 3 && c0.dim() == 3, "h0 and c0 must have 3 dimensions, got shapes ", h0.sizes(),
              " and ", c0.sizes(), ".");
  D = bidirectional ? 2 : 1;
  L = h0.size(0) / D;
  P = h0.size(2);
  H = c0.size(2);
  B = h0.size(1);
  I = input.size(-1);
  T = packed ? batch_sizes->numel() : input.size(0);
  rows = packed ? input.size(0) : T * B;
  TORCH_CHECK(L >= 1 && P >= 1 && H >= 1 && h0.size(0) == L * D, "h0 must be (layers * ", D,
              ", batch, width), got ", h0.sizes(), ".");
  check("h0", h0, {L * D, B, P});
  check("c0", c0, {L * D, B, H});
  if (!packed) check("input", input, {T, B, I});
  check_weights();
  if (packed) {
    TORCH_CHECK(!lengths.has_value() && !reset.has_value(),
                "lengths and reset must be None with batch_sizes.");
    read_batch_sizes(*batch_sizes);
  }
  if (lengths.has_value()) check_tensor("lengths", *lengths, device, at::kLong, {B});
  if (reset.has_value()) check_tensor("reset", *reset, device, at::kBool, {T, B});
  if (dropout_mask.has_value()) check("dropout_mask", *dropout_mask, shape({L - 1}, D * P));
}

void Call::check_weights() {
  const int64_t count = weights_.size();
  weights_per_direction = count / (L * D);
  TORCH_CHECK(
      count == weights_per_direction * L * D && weights_per_direction >= 2 && weights_per_direction <= 5,
      "weights must hold 2 to 5 tensors for each of ", L * D, " layers and directions, got ", count, ".");
  has_bias = weights_per_direction >= 4;
  has_projection = weights_per_direction % 2 == 1;
  TORCH_CHECK(has_projection || P == H, "h0 must be as wide as c0 where weights hold no projection, got ", P,
              " and ", H, ".");
  for (int64_t l = 0; l < L; ++l) {
    for (int64_t d = 0; d < D; ++d) {
      check("weights (w_ih)", weight(l, d, 0), {4 * H, l == 0 ? I : D * P});
      check("weights (w_hh)", weight(l, d, 1), {4 * H, P});
      if (has_bias) {
        check("weights (b_ih)", weight(l, d, 2), {4 * H});
        check("weights (b_hh)", weight(l, d, 3), {4 * H});
      }
      if (has_projection) check("weights (w_hr)", weight(l, d, weights_per_direction - 1), {P, H});
    }
  }
}

void Call::read_batch_sizes(const at::Tensor& given) {
  check_tensor("batch_sizes", given, at::kCPU, at::kLong, {T});
  const at::Tensor sizes = given.contiguous();
  batch_sizes.assign(sizes.const_data_ptr<int64_t>(), sizes.const_data_ptr<int64_t>() + T);
  int64_t before = B;
  for (int64_t n : batch_sizes) {
    TORCH_CHECK(n >= 0 && n <= before, "batch_sizes must never increase, from at most ", before, ", got ", n,
                ".");
    before = n;
  }
  const int64_t sum = std::accumulate(batch_sizes.begin(), batch_sizes.end(), int64_t(0));
  TORCH_CHECK(sum == rows, "batch_sizes must sum to the ", rows, " rows of input, got ", sum, ".");
}

std::vector<int64_t> Call::shape(std::vector<int64_t> leading, int64_t width) const {
  if (packed) {
    leading.push_back(rows);
  } else {
    leading.push_back(T);
    leading.push_back(B);
  }
  leading.push_back(width);
  return leading;
}

void Call::check(const char* name, const at::Tensor& tensor, at::IntArrayRef shape) const {
  check_tensor(name, tensor, options.device(), dtype(), shape);
}

at::Tensor Call::gradient(const char* name, const OptionalTensor& gradient, at::IntArrayRef shape) const {
  if (!gradient.has_value() || !gradient->defined()) return {};
  check(name, *gradient, shape);
  return gradient->contiguous();
}

}  // namespace cnnlstm
