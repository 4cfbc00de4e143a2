#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>

#include <algorithm>

#include "torch/cpu/engine.h"
#include "torch/cpu/lstm.h"
#include "torch/cpu/prepacked.h"
#include "torch/cpu/problem.h"

namespace cnnlstm {

namespace {

// What a thread must have to quantize before it is worth waking.
constexpr int64_t kElementsPerThread = 1 << 16;

at::Tensor quantized_rows(const at::Tensor& x, int threads, const Kernels& kernel) {
  const at::Tensor rows = at::detail::empty_cpu({x.size(0), quantized_bytes(x.size(1))}, at::kByte);
  threads = int(std::clamp<int64_t>(x.numel() / kElementsPerThread, 1, threads));
  kernel.quantize_rows(rows.mutable_data_ptr<uint8_t>(), x.const_data_ptr(), x.size(0), x.size(1), threads);
  return rows;
}

// x (rows, I) as the kernels read it: dense, and in bf16 with zeros appended up to a whole word of two, or up
// to a whole tile of the matrix engine where it will be used; or quantized.
at::Tensor kernel_rows(const at::Tensor& x, const ForwardLayer& layer, const Kernels& kernel) {
  if (kernel.quantize_rows != nullptr) return quantized_rows(x.contiguous(), layer.threads, kernel);
  if (x.scalar_type() != at::kBFloat16) return x.contiguous();
  const bool engine = layer.engine.multiply != nullptr && pays_to_pack_input(layer, x.size(0));
  const int64_t unit = engine ? kEngineTile : 2;
  const int64_t missing = (unit - x.size(1) % unit) % unit;
  return missing == 0 ? x.contiguous() : at::constant_pad_nd(x, {0, missing});
}

const void* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

int64_t bytes_before(const at::Tensor& tensor, int64_t state) {
  return state * tensor.stride(0) * tensor.element_size();
}

// The first element of tensor[state], of a contiguous tensor: to read, or to write.
const void* given_state(const at::Tensor& tensor, int64_t state) {
  return static_cast<const char*>(tensor.const_data_ptr()) + bytes_before(tensor, state);
}

void* state_of(const at::Tensor& tensor, int64_t state) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + bytes_before(tensor, state);
}

bool hoists_input(const Problem& p, const ForwardLayer& layer, const Kernels& kernel) {
  return p.options.dtype() == at::kFloat && kernel.quantize_rows == nullptr &&
         pays_to_hoist_input(layer, p.valid_rows);
}

// Panels of w_ih and w_hh of each layer and direction in turn, undefined where there are none to hand on.
std::vector<at::Tensor> kept_panels(const Problem& p, ForwardLayer layer, const Kernels& kernel) {
  std::vector<at::Tensor> panels(2 * p.L * p.D), weights;
  std::vector<int64_t> places;
  for (int64_t state = 0; state < p.L * p.D; ++state) {
    layer.I = state < p.D ? p.I : p.D * p.P;
    const bool always = kernel.quantize_rows != nullptr;
    if (always || (!hoists_input(p, layer, kernel) && pays_to_pack_input(layer, p.T * p.B)))
      places.push_back(2 * state);
    if (always || pays_to_pack_gates(layer)) places.push_back(2 * state + 1);
  }
  for (int64_t place : places) {
    const int64_t l = place / 2 / p.D, d = place / 2 % p.D;
    weights.push_back(place % 2 == 0 ? p.w_ih(l, d) : p.w_hh(l, d));
  }
  std::vector<at::Tensor> found = prepacked(weights, kernel);
  for (size_t i = 0; i < places.size(); ++i) panels[places[i]] = std::move(found[i]);
  return panels;
}

void check_int8(const Problem& p, at::ScalarType dtype, bool for_backward) {
  TORCH_CHECK(!for_backward, "The int8 kernel has no gradient.");
  TORCH_CHECK(dtype == at::kFloat, "The int8 kernel takes float32 tensors, got ", dtype, ".");
  TORCH_CHECK(std::max({p.I, p.H, p.D * p.P}) <= kMostQuantized, "The int8 kernel adds up to ",
              kMostQuantized, " products, got input_size ", p.I, ", hidden_size ", p.H, ".");
}

}  // namespace

ForwardResult lstm_cpu(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                       at::TensorList weights, const OptionalTensor& batch_sizes,
                       const OptionalTensor& lengths, const OptionalTensor& reset,
                       const OptionalTensor& dropout_mask, bool bidirectional, bool for_backward,
                       bool all_cells, bool int8) {
  Problem p(input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, bidirectional);
  if (int8) check_int8(p, input.scalar_type(), for_backward);
  const Kernels& kernel = int8 ? kernels_int8() : kernels(input.scalar_type() == at::kBFloat16);
  const int64_t width = p.D * p.P;
  // Past the dispatcher, which takes longer than a short step.
  const auto empty = [&](at::IntArrayRef sizes) {
    return at::Tensor(at::detail::empty_cpu(sizes, input.scalar_type()));
  };
  const auto optional = [&](bool wanted, int64_t leading, int64_t width) {
    return wanted ? empty(p.shape({leading}, width)) : empty({0});
  };
  const at::Tensor output = empty(p.shape({}, width));
  const at::Tensor h_n = empty({p.L * p.D, p.B, p.P});
  const at::Tensor c_n = empty({p.L * p.D, p.B, p.H});
  const at::Tensor cells = optional(for_backward || all_cells, p.L * p.D, p.H);
  const at::Tensor gates = optional(for_backward, p.L * p.D, 4 * p.H);
  const at::Tensor hidden = optional(for_backward, p.L - 1, width);
  const at::Tensor first_h = h0.contiguous(), first_c = c0.contiguous();
  const bool keeps_cells = cells.dim() > 1, keeps_gates = gates.dim() > 1;

  ForwardLayer layer{};
  layer.seq = p.seq;
  layer.H = p.H;
  layer.P = p.P;
  layer.D = int(p.D);
  layer.threads = p.threads;
  layer.engine = int8 ? int8_engine() : matrix_engine(input.scalar_type());
  std::vector<at::Tensor> panels(2 * p.L * p.D);
  // In training the weights change from call to call.
  if (!for_backward) panels = kept_panels(p, layer, kernel);
  layer.I = p.I;
  // The matrix engine, a GEMM and quantized rows need even distances, the kernel takes rows one by one.
  const bool even = int8 || input.scalar_type() == at::kBFloat16 || hoists_input(p, layer, kernel);
  at::Tensor x = p.input_rows(input, even ? InputOrder::even : InputOrder::any, &layer.input_rows);
  for (int64_t l = 0; l < p.L; ++l) {
    const bool last = l == p.L - 1;
    const at::Tensor inner = last           ? output
                             : for_backward ? hidden.select(0, l)
                                            : empty({p.valid_rows, width});
    x = kernel_rows(x, layer, kernel);
    layer.input = x.const_data_ptr();
    layer.input_stride = x.stride(0);
    layer.I = l == 0 ? p.I : width;
    const bool hoists = hoists_input(p, layer, kernel);
    layer.products_have_h0 = hoists && p.T == 1 && !p.ragged && p.seq.reset == nullptr;
    at::Tensor w_ih[2], w_hh[2], b_ih[2], b_hh[2], w_hr[2], product[2];
    for (int64_t d = 0; d < p.D; ++d) {
      const int64_t state = l * p.D + d;
      w_ih[d] = p.w_ih(l, d).contiguous();
      w_hh[d] = p.w_hh(l, d);
      if (p.has_bias) b_ih[d] = p.b_ih(l, d), b_hh[d] = p.b_hh(l, d);
      if (p.has_projection) w_hr[d] = p.w_hr(l, d);
      ForwardDirection& to = layer.direction[d];
      to.reverse = d == 1;
      to.w_ih = w_ih[d].const_data_ptr();
      if (hoists) product[d] = at::mm(x, w_ih[d].t());
      if (layer.products_have_h0) product[d].addmm_(first_h.select(0, state), w_hh[d].t());
      to.product = hoists ? product[d].const_data_ptr<float>() : nullptr;
      to.b_ih = data_or_null(b_ih[d]);
      to.b_hh = data_or_null(b_hh[d]);
      to.w_hh = w_hh[d].const_data_ptr();
      to.w_hr = data_or_null(w_hr[d]);
      to.packed_w_ih = data_or_null(panels[2 * state]);
      to.packed_w_hh = data_or_null(panels[2 * state + 1]);
      to.h0 = given_state(first_h, state);
      to.c0 = given_state(first_c, state);
      to.h_n = state_of(h_n, state);
      to.c_n = state_of(c_n, state);
      to.output = static_cast<char*>(inner.mutable_data_ptr()) + d * p.P * inner.element_size();
      to.output_rows = last || for_backward ? p.seq.rows : p.seq.compact;
      to.output_stride = width;
      to.cells = keeps_cells ? state_of(cells, state) : nullptr;
      to.gates = keeps_gates ? state_of(gates, state) : nullptr;
    }
    const at::Tensor workspace = at::detail::empty_cpu({int64_t(kernel.forward_workspace(layer))}, at::kByte);
    layer.workspace = workspace.mutable_data_ptr();
    kernel.forward(layer);
    if (last) break;
    if (for_backward) {
      x = p.between_layers(inner, l);
    } else {
      const at::Tensor mask = p.compact_mask(l);
      x = mask.defined() ? inner.mul_(mask) : inner;
    }
    layer.input_rows = p.seq.compact;
  }
  for (const at::Tensor& padded : {output, cells, gates, hidden}) p.zero_padding(padded);
  return {output, h_n, c_n, cells, gates, hidden};
}

}  // namespace cnnlstm
