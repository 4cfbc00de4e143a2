#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>

#include <algorithm>

#include "torch/cpu/cpu_call.h"
#include "torch/cpu/gemm.h"
#include "torch/cpu/lstm.h"
#include "torch/cpu/microkernel.h"
#include "torch/cpu/prepacked.h"

namespace cnnlstm {

namespace {

// Fewer elements to quantize than this are not worth another thread.
constexpr int64_t kElementsPerThread = 1 << 16;

at::Tensor quantized_rows(const at::Tensor& x, int threads, const Kernels& kernel) {
  const at::Tensor rows = at::detail::empty_cpu({x.size(0), quantized_bytes(x.size(1))}, at::kByte);
  threads = int(std::clamp<int64_t>(x.numel() / kElementsPerThread, 1, threads));
  kernel.quantize_rows(rows.mutable_data_ptr<uint8_t>(), x.const_data_ptr(), x.size(0), x.size(1), threads);
  return rows;
}

// x (rows, I) as the kernels read it: dense, and for bf16 padded with zeros to pairs, or to whole tiles where
// the GEMM micro-kernel will be used; for int8 kernels quantized.
at::Tensor kernel_rows(const at::Tensor& x, const ForwardLayer& layer, const Kernels& kernel) {
  if (kernel.quantize_rows != nullptr) return quantized_rows(x.contiguous(), layer.threads, kernel);
  if (x.scalar_type() != at::kBFloat16) return x.contiguous();
  const bool use_microkernel = layer.microkernel.multiply != nullptr && should_pack_input(layer, x.size(0));
  const int64_t unit = use_microkernel ? kMicrokernelTile : 2;
  const int64_t padding = (unit - x.size(1) % unit) % unit;
  return padding == 0 ? x.contiguous() : at::constant_pad_nd(x, {0, padding});
}

const void* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

int64_t bytes_before(const at::Tensor& tensor, int64_t state) {
  return state * tensor.stride(0) * tensor.element_size();
}

// The first element of tensor[state] of a contiguous tensor, for reading or for writing.
const void* const_state_of(const at::Tensor& tensor, int64_t state) {
  return static_cast<const char*>(tensor.const_data_ptr()) + bytes_before(tensor, state);
}

void* state_of(const at::Tensor& tensor, int64_t state) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + bytes_before(tensor, state);
}

bool hoists_input(const CpuCall& call, const ForwardLayer& layer, const Kernels& kernel) {
  return call.options.dtype() == at::kFloat && kernel.quantize_rows == nullptr &&
         should_hoist_input(layer, call.valid_rows);
}

// Cached panels of w_ih and w_hh for each layer and direction in turn, undefined where the kernel gets none.
std::vector<at::Tensor> prepacked_panels(const CpuCall& call, ForwardLayer layer, const Kernels& kernel) {
  const bool always = kernel.quantize_rows != nullptr;
  std::vector<WantedPanels> wanted(2 * call.L * call.D);
  for (int64_t state = 0; state < call.L * call.D; ++state) {
    const int64_t l = state / call.D, d = state % call.D;
    layer.I = l == 0 ? call.I : call.D * call.P;
    if (!hoists_input(call, layer, kernel))
      wanted[2 * state] = {call.w_ih(l, d), always || should_pack_input(layer, call.T * call.B)};
    wanted[2 * state + 1] = {call.w_hh(l, d), always || should_pack_gates(layer)};
  }
  return prepacked(wanted, kernel);
}

void check_int8(const CpuCall& call, at::ScalarType dtype, bool for_backward) {
  TORCH_CHECK(!for_backward, "The int8 kernel has no gradient.");
  TORCH_CHECK(dtype == at::kFloat, "The int8 kernel takes float32 tensors, got ", dtype, ".");
  TORCH_CHECK(std::max({call.I, call.H, call.D * call.P}) <= kMaxQuantizedLength,
              "The int8 kernel adds up to ", kMaxQuantizedLength, " products, got input_size ", call.I,
              ", hidden_size ", call.H, ".");
}

}  // namespace

ForwardResult lstm_cpu(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                       at::TensorList weights, const OptionalTensor& batch_sizes,
                       const OptionalTensor& lengths, const OptionalTensor& reset,
                       const OptionalTensor& dropout_mask, bool bidirectional, bool for_backward,
                       bool all_cells, bool int8) {
  CpuCall call(input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, bidirectional);
  count_call();
  if (int8) check_int8(call, input.scalar_type(), for_backward);
  const Kernels& kernel = int8 ? kernels_int8() : kernels(input.scalar_type() == at::kBFloat16);
  const int64_t width = call.D * call.P;
  // Bypasses the dispatcher, which takes longer than a short step.
  const auto empty = [&](at::IntArrayRef sizes) {
    return at::Tensor(at::detail::empty_cpu(sizes, input.scalar_type()));
  };
  const auto optional = [&](bool wanted, int64_t leading, int64_t width) {
    return wanted ? empty(call.shape({leading}, width)) : empty({0});
  };
  const at::Tensor output = empty(call.shape({}, width));
  const at::Tensor h_n = empty({call.L * call.D, call.B, call.P});
  const at::Tensor c_n = empty({call.L * call.D, call.B, call.H});
  const at::Tensor cells = optional(for_backward || all_cells, call.L * call.D, call.H);
  const at::Tensor gates = optional(for_backward, call.L * call.D, 4 * call.H);
  const at::Tensor hidden = optional(for_backward, call.L - 1, width);
  const at::Tensor first_h = h0.contiguous(), first_c = c0.contiguous();
  const bool keeps_cells = cells.dim() > 1, keeps_gates = gates.dim() > 1;

  ForwardLayer layer{};
  layer.seq = call.seq;
  layer.H = call.H;
  layer.P = call.P;
  layer.D = int(call.D);
  layer.threads = call.threads;
  thread_local uint32_t calls = 0;
  layer.call = calls++;
  layer.keeps_panels = !for_backward;  // in training the weights change from call to call
  layer.microkernel = int8 ? int8_microkernel() : bf16_microkernel(input.scalar_type());
  std::vector<at::Tensor> panels(2 * call.L * call.D);
  if (layer.keeps_panels) panels = prepacked_panels(call, layer, kernel);
  layer.I = call.I;
  // The micro-kernel, a GEMM and quantized rows need evenly spaced rows, other products do not.
  const bool evenly_spaced =
      int8 || input.scalar_type() == at::kBFloat16 || hoists_input(call, layer, kernel);
  at::Tensor x =
      call.input_rows(input, evenly_spaced ? InputOrder::evenly_spaced : InputOrder::any, &layer.input_rows);
  for (int64_t l = 0; l < call.L; ++l) {
    const bool last = l == call.L - 1;
    const at::Tensor inner = last           ? output
                             : for_backward ? hidden.select(0, l)
                                            : empty({call.valid_rows, width});
    x = kernel_rows(x, layer, kernel);
    layer.input = x.const_data_ptr();
    layer.input_stride = x.stride(0);
    layer.I = l == 0 ? call.I : width;
    const bool hoists = hoists_input(call, layer, kernel);
    layer.input_product_has_h0 = hoists && call.T == 1 && !call.ragged && call.seq.reset == nullptr;
    at::Tensor w_ih[2], w_hh[2], b_ih[2], b_hh[2], w_hr[2], products[2];
    for (int64_t d = 0; d < call.D; ++d) {
      const int64_t state = l * call.D + d;
      w_ih[d] = call.w_ih(l, d).contiguous();
      w_hh[d] = call.w_hh(l, d);
      if (call.has_bias) b_ih[d] = call.b_ih(l, d), b_hh[d] = call.b_hh(l, d);
      if (call.has_projection) w_hr[d] = call.w_hr(l, d);
      ForwardDirection& to = layer.direction[d];
      to.reverse = d == 1;
      to.w_ih = w_ih[d].const_data_ptr();
      if (hoists) products[d] = gemm(x, w_ih[d].t());
      if (layer.input_product_has_h0) add_gemm(products[d], first_h.select(0, state), w_hh[d].t());
      to.input_product = hoists ? products[d].const_data_ptr<float>() : nullptr;
      to.b_ih = data_or_null(b_ih[d]);
      to.b_hh = data_or_null(b_hh[d]);
      to.w_hh = w_hh[d].const_data_ptr();
      to.w_hr = data_or_null(w_hr[d]);
      to.packed_w_ih = data_or_null(panels[2 * state]);
      to.packed_w_hh = data_or_null(panels[2 * state + 1]);
      to.h0 = const_state_of(first_h, state);
      to.c0 = const_state_of(first_c, state);
      to.h_n = state_of(h_n, state);
      to.c_n = state_of(c_n, state);
      to.output = static_cast<char*>(inner.mutable_data_ptr()) + d * call.P * inner.element_size();
      to.output_rows = last || for_backward ? call.seq.rows : call.seq.compact;
      to.output_stride = width;
      to.cells = keeps_cells ? state_of(cells, state) : nullptr;
      to.gates = keeps_gates ? state_of(gates, state) : nullptr;
    }
    const at::Tensor workspace = at::detail::empty_cpu({int64_t(kernel.forward_workspace(layer))}, at::kByte);
    layer.workspace = workspace.mutable_data_ptr();
    kernel.forward(layer);
    if (last) break;
    if (for_backward) {
      x = call.between_layers(inner, l);
    } else {
      const at::Tensor mask = call.compact_mask(l);
      x = mask.defined() ? inner.mul_(mask) : inner;
    }
    layer.input_rows = call.seq.compact;
  }
  for (const at::Tensor& padded : {output, cells, gates, hidden}) call.zero_padding(padded);
  return {output, h_n, c_n, cells, gates, hidden};
}

}  // namespace cnnlstm
