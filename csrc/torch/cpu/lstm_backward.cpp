#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <cstring>

#include "torch/cpu/cpu_call.h"
#include "torch/cpu/gemm.h"
#include "torch/cpu/lstm.h"
#include "torch/cpu/microkernel.h"

namespace cnnlstm {

namespace {

// Writes the h before each step of layer l, direction d, to `previous`, a (valid_rows, P) slice of a wider
// matrix, in compact rows. `inner` is that layer's output, in the caller's rows; `h0` is (L * D, B, P).
void previous_hidden(const CpuCall& call, const at::Tensor& inner, const at::Tensor& h0, int64_t l, int64_t d,
                     const at::Tensor& previous) {
  const Sequences& seq = call.seq;
  const int64_t bytes = call.P * previous.element_size(),
                stride = previous.stride(0) * previous.element_size();
  char* to = static_cast<char*>(previous.mutable_data_ptr());
  const char* from = static_cast<const char*>(inner.const_data_ptr()) + d * bytes;
  const char* first = static_cast<const char*>(h0.const_data_ptr()) + (l * call.D + d) * call.B * bytes;
  const auto row_of = [](const RowMap& map, int64_t t, int64_t r) { return map.step[t] + map.row[r]; };
  const int64_t grain = 1 + (1 << 16) / (1 + call.B * call.P);
  at::parallel_for(0, call.T, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t r = 0; r < seq.active[t]; ++r) {
        char* row = to + row_of(seq.compact, t, r) * stride;
        const bool starts = d == 1 ? r >= seq.active[t + 1] : t == 0;
        if (seq.reset != nullptr && seq.reset[row_of(seq.rows, t, r)] != 0) {
          std::memset(row, 0, bytes);
        } else if (starts) {
          std::memcpy(row, first + seq.batch[r] * bytes, bytes);
        } else {
          std::memcpy(row, from + row_of(seq.rows, d == 1 ? t + 1 : t - 1, r) * call.D * bytes, bytes);
        }
      }
    }
  });
}

const void* state_of(const at::Tensor& tensor, int64_t index) {
  return tensor.defined() ? tensor.select(0, index).const_data_ptr() : nullptr;
}

}  // namespace

BackwardResult lstm_backward_cpu(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                 const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                                 const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                                 at::TensorList weights, const OptionalTensor& batch_sizes,
                                 const OptionalTensor& lengths, const OptionalTensor& reset,
                                 const OptionalTensor& dropout_mask, const at::Tensor& output,
                                 const at::Tensor& cells, const at::Tensor& gates, const at::Tensor& hidden,
                                 bool bidirectional, bool input_needs_grad, bool weights_need_grad) {
  CpuCall call(input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, bidirectional);
  const at::ScalarType dtype = input.scalar_type();
  const Kernels& kernel = kernels(dtype == at::kBFloat16);
  const int64_t width = call.D * call.P, states = call.L * call.D;
  call.check("output", output, call.shape({}, width));
  call.check("cells", cells, call.shape({states}, call.H));
  call.check("gates", gates, call.shape({states}, 4 * call.H));
  call.check("hidden", hidden, call.shape({call.L - 1}, width));
  const at::Tensor all_output = output.contiguous(), all_cells = cells.contiguous(),
                   all_gates = gates.contiguous(), all_hidden = hidden.contiguous(),
                   first_h = h0.contiguous(), first_c = c0.contiguous();
  const at::Tensor last_grad_output = call.gradient("grad_output", grad_output, call.shape({}, width));
  const at::Tensor last_grad_h = call.gradient("grad_h_n", grad_h_n, {states, call.B, call.P});
  const at::Tensor last_grad_c = call.gradient("grad_c_n", grad_c_n, {states, call.B, call.H});
  const at::Tensor all_grad_cells = call.gradient("grad_cells", grad_cells, call.shape({states}, call.H));

  const at::Tensor grad_h0 = at::empty({states, call.B, call.P}, call.options);
  const at::Tensor grad_c0 = at::empty({states, call.B, call.H}, call.options);
  std::vector<at::Tensor> grad_weights(weights.size());
  if (!weights_need_grad) {
    for (at::Tensor& gradient : grad_weights) gradient = at::empty({0}, call.options);
  }

  BackwardLayer layer{};
  layer.seq = call.seq;
  layer.H = call.H;
  layer.P = call.P;
  layer.D = int(call.D);
  layer.threads = call.threads;
  layer.microkernel = bf16_microkernel(dtype);
  at::Tensor grad_inner = last_grad_output;  // of layer l's output, in rows grad_rows
  RowMap grad_rows = call.seq.rows;
  at::Tensor grad_x;  // of the input of layer l, in compact rows
  for (int64_t l = call.L - 1; l >= 0; --l) {
    at::Tensor grad_gates[2], grad_projected[2], unprojected[2], w_hh[2], w_hr[2];
    for (int64_t d = 0; d < call.D; ++d) {
      const int64_t state = l * call.D + d;
      // A row stride of a power of two maps the rows to few cache sets, which costs 10 % of the time of the
      // products below. No padding for bf16: there torch 2.13 multiplies what follows a row by zero, and that
      // may be NaN.
      const int64_t gap = dtype == at::kFloat ? 16 : 0;
      grad_gates[d] = at::empty({call.valid_rows, 4 * call.H + gap}, call.options).narrow(1, 0, 4 * call.H);
      w_hh[d] = call.w_hh(l, d);
      BackwardDirection& to = layer.direction[d];
      to.reverse = d == 1;
      to.w_hh = w_hh[d].const_data_ptr();
      to.w_hr = nullptr;
      if (call.has_projection) {
        grad_projected[d] = at::empty({call.valid_rows, call.P}, call.options);
        unprojected[d] = at::empty({call.valid_rows, call.H}, call.options);
        w_hr[d] = call.w_hr(l, d);
        to.w_hr = w_hr[d].const_data_ptr();
        to.grad_projected = grad_projected[d].mutable_data_ptr();
        to.unprojected = unprojected[d].mutable_data_ptr();
      }
      to.c0 = state_of(first_c, state);
      to.cells = state_of(all_cells, state);
      to.gates = state_of(all_gates, state);
      to.grad_output = nullptr;
      if (grad_inner.defined()) {
        to.grad_output =
            static_cast<const char*>(grad_inner.const_data_ptr()) + d * call.P * grad_inner.element_size();
      }
      to.grad_output_rows = grad_rows;
      to.grad_output_stride = width;
      to.grad_cells = state_of(all_grad_cells, state);
      to.grad_h_n = state_of(last_grad_h, state);
      to.grad_c_n = state_of(last_grad_c, state);
      to.grad_gates = grad_gates[d].mutable_data_ptr();
      to.grad_gates_stride = grad_gates[d].stride(0);
      to.grad_h0 = grad_h0.select(0, state).mutable_data_ptr();
      to.grad_c0 = grad_c0.select(0, state).mutable_data_ptr();
    }
    const at::Tensor workspace = at::empty({int64_t(kernel.backward_workspace(layer))}, at::kByte);
    layer.workspace = workspace.mutable_data_ptr();
    kernel.backward(layer);

    if (weights_need_grad) {
      RowMap unused;
      const at::Tensor x = l == 0 ? call.input_rows(input, InputOrder::compact, &unused)
                                  : call.between_layers(all_hidden.select(0, l - 1), l - 1);
      const at::Tensor inner = l == call.L - 1 ? all_output : all_hidden.select(0, l);
      // [previous h, forward | x | previous h, reverse]: one product per direction gives the gradients of
      // w_ih and w_hh.
      const int64_t I = x.size(1);
      const at::Tensor factors = at::empty({call.valid_rows, I + width}, call.options);
      factors.narrow(1, call.P, I).copy_(x);
      for (int64_t d = 0; d < call.D; ++d) {
        previous_hidden(call, inner, first_h, l, d, factors.narrow(1, d * (call.P + I), call.P));
        at::Tensor* to = &grad_weights[(l * call.D + d) * call.weights_per_direction];
        const at::Tensor both = gemm(grad_gates[d].t(), factors.narrow(1, d * call.P, call.P + I));
        *to++ = both.narrow(1, d == 0 ? call.P : 0, I).contiguous();
        *to++ = both.narrow(1, d == 0 ? 0 : I, call.P).contiguous();
        if (call.has_bias) {
          const at::Tensor sum = grad_gates[d].sum(0);
          *to++ = sum;
          *to++ = sum.clone();
        }
        if (call.has_projection) *to++ = gemm(grad_projected[d].t(), unprojected[d]);
      }
    }
    if (l == 0 && !input_needs_grad) break;
    grad_x = gemm(grad_gates[0], call.w_ih(l, 0));
    if (call.D == 2) add_gemm(grad_x, grad_gates[1], call.w_ih(l, 1));
    if (l == 0) break;
    const at::Tensor mask = call.compact_mask(l - 1);
    grad_inner = mask.defined() ? grad_x.mul_(mask) : grad_x;
    grad_rows = call.seq.compact;
  }
  at::Tensor grad_input = at::empty({0}, call.options);
  if (input_needs_grad) {
    grad_input = grad_x;
    if (call.ragged)
      grad_input = at::zeros({call.rows, call.I}, call.options).index_copy_(0, call.gather, grad_x);
    grad_input = grad_input.view(input.sizes());
  }
  return {grad_input, grad_h0, grad_c0, grad_weights};
}

}  // namespace cnnlstm
