#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <cstring>

#include "torch/cpu/engine.h"
#include "torch/cpu/lstm.h"
#include "torch/cpu/problem.h"

namespace cnnlstm {

namespace {

// Writes the h that entered each compact row of layer l, direction d, to `previous`, a (valid_rows, P) slice
// of a wider matrix. `inner` is that layer's output, in the caller's rows; `h0` is (L * D, B, P).
void previous_hidden(const Problem& p, const at::Tensor& inner, const at::Tensor& h0, int64_t l, int64_t d,
                     const at::Tensor& previous) {
  const Sequences& seq = p.seq;
  const int64_t bytes = p.P * previous.element_size(), stride = previous.stride(0) * previous.element_size();
  char* to = static_cast<char*>(previous.mutable_data_ptr());
  const char* from = static_cast<const char*>(inner.const_data_ptr()) + d * bytes;
  const char* first = static_cast<const char*>(h0.const_data_ptr()) + (l * p.D + d) * p.B * bytes;
  const auto row_of = [](const RowMap& map, int64_t t, int64_t r) { return map.step[t] + map.row[r]; };
  const int64_t grain = 1 + (1 << 16) / (1 + p.B * p.P);
  at::parallel_for(0, p.T, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t r = 0; r < seq.active[t]; ++r) {
        char* row = to + row_of(seq.compact, t, r) * stride;
        const bool starts = d == 1 ? r >= seq.active[t + 1] : t == 0;
        if (seq.reset != nullptr && seq.reset[row_of(seq.rows, t, r)] != 0) {
          std::memset(row, 0, bytes);
        } else if (starts) {
          std::memcpy(row, first + seq.batch[r] * bytes, bytes);
        } else {
          std::memcpy(row, from + row_of(seq.rows, d == 1 ? t + 1 : t - 1, r) * p.D * bytes, bytes);
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
  Problem p(input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, bidirectional);
  const at::ScalarType dtype = input.scalar_type();
  const Kernels& kernel = kernels(dtype == at::kBFloat16);
  const int64_t width = p.D * p.P, states = p.L * p.D;
  p.check("output", output, p.shape({}, width));
  p.check("cells", cells, p.shape({states}, p.H));
  p.check("gates", gates, p.shape({states}, 4 * p.H));
  p.check("hidden", hidden, p.shape({p.L - 1}, width));
  const at::Tensor all_output = output.contiguous(), all_cells = cells.contiguous(),
                   all_gates = gates.contiguous(), all_hidden = hidden.contiguous(),
                   first_h = h0.contiguous(), first_c = c0.contiguous();
  const at::Tensor last_grad_output = p.gradient("grad_output", grad_output, p.shape({}, width));
  const at::Tensor last_grad_h = p.gradient("grad_h_n", grad_h_n, {states, p.B, p.P});
  const at::Tensor last_grad_c = p.gradient("grad_c_n", grad_c_n, {states, p.B, p.H});
  const at::Tensor all_grad_cells = p.gradient("grad_cells", grad_cells, p.shape({states}, p.H));

  const at::Tensor grad_h0 = at::empty({states, p.B, p.P}, p.options);
  const at::Tensor grad_c0 = at::empty({states, p.B, p.H}, p.options);
  std::vector<at::Tensor> grad_weights(weights.size());
  if (!weights_need_grad) {
    for (at::Tensor& gradient : grad_weights) gradient = at::empty({0}, p.options);
  }

  BackwardLayer layer{};
  layer.seq = p.seq;
  layer.H = p.H;
  layer.P = p.P;
  layer.D = int(p.D);
  layer.threads = p.threads;
  layer.engine = matrix_engine(dtype);
  at::Tensor grad_inner = last_grad_output;  // of layer l's output, at grad_rows
  RowMap grad_rows = p.seq.rows;
  at::Tensor grad_x;  // of what layer l reads, compact
  for (int64_t l = p.L - 1; l >= 0; --l) {
    at::Tensor grad_gates[2], grad_projected[2], unprojected[2], w_hh[2], w_hr[2];
    for (int64_t d = 0; d < p.D; ++d) {
      const int64_t state = l * p.D + d;
      // Rows a power of two apart share a few cache sets in the products below: 10 % of their time. Not for
      // bf16: torch 2.13 multiplies what lies behind a row by zero there, and that may be NaN.
      const int64_t gap = dtype == at::kFloat ? 16 : 0;
      grad_gates[d] = at::empty({p.valid_rows, 4 * p.H + gap}, p.options).narrow(1, 0, 4 * p.H);
      w_hh[d] = p.w_hh(l, d);
      BackwardDirection& to = layer.direction[d];
      to.reverse = d == 1;
      to.w_hh = w_hh[d].const_data_ptr();
      to.w_hr = nullptr;
      if (p.has_projection) {
        grad_projected[d] = at::empty({p.valid_rows, p.P}, p.options);
        unprojected[d] = at::empty({p.valid_rows, p.H}, p.options);
        w_hr[d] = p.w_hr(l, d);
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
            static_cast<const char*>(grad_inner.const_data_ptr()) + d * p.P * grad_inner.element_size();
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
      const at::Tensor x = l == 0 ? p.input_rows(input, InputOrder::compact, &unused)
                                  : p.between_layers(all_hidden.select(0, l - 1), l - 1);
      const at::Tensor inner = l == p.L - 1 ? all_output : all_hidden.select(0, l);
      // [h before, forward | x | h before, reverse]: one product a direction gives the gradients of w_ih and
      // w_hh.
      const int64_t I = x.size(1);
      const at::Tensor factors = at::empty({p.valid_rows, I + width}, p.options);
      factors.narrow(1, p.P, I).copy_(x);
      for (int64_t d = 0; d < p.D; ++d) {
        previous_hidden(p, inner, first_h, l, d, factors.narrow(1, d * (p.P + I), p.P));
        at::Tensor* to = &grad_weights[(l * p.D + d) * p.weights_per_direction];
        const at::Tensor both = at::mm(grad_gates[d].t(), factors.narrow(1, d * p.P, p.P + I));
        *to++ = both.narrow(1, d == 0 ? p.P : 0, I).contiguous();
        *to++ = both.narrow(1, d == 0 ? 0 : I, p.P).contiguous();
        if (p.has_bias) {
          const at::Tensor sum = grad_gates[d].sum(0);
          *to++ = sum;
          *to++ = sum.clone();
        }
        if (p.has_projection) *to++ = at::mm(grad_projected[d].t(), unprojected[d]);
      }
    }
    if (l == 0 && !input_needs_grad) break;
    grad_x = at::mm(grad_gates[0], p.w_ih(l, 0));
    if (p.D == 2) grad_x.addmm_(grad_gates[1], p.w_ih(l, 1));
    if (l == 0) break;
    const at::Tensor mask = p.compact_mask(l - 1);
    grad_inner = mask.defined() ? grad_x.mul_(mask) : grad_x;
    grad_rows = p.seq.compact;
  }
  at::Tensor grad_input = at::empty({0}, p.options);
  if (input_needs_grad) {
    grad_input = grad_x;
    if (p.ragged) grad_input = at::zeros({p.rows, p.I}, p.options).index_copy_(0, p.gather, grad_x);
    grad_input = grad_input.view(input.sizes());
  }
  return {grad_input, grad_h0, grad_c0, grad_weights};
}

}  // namespace cnnlstm
