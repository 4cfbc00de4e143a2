#include "torch/cuda/lstm.h"

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/DeviceGuard.h>

#include <optional>

#include "torch/cuda/device.h"
#include "torch/cuda/layer.h"

namespace cnnlstm {

namespace {

// Where exact products are requested, those around the recurrence are exact, too, whatever their own setting.
class ExactProducts {
 public:
  ExactProducts() {
    if (!wants_tf32()) guard_.emplace();
  }

 private:
  std::optional<at::NoTF32Guard> guard_;
};

void check_dtype(const Call& call) {
  const at::ScalarType dtype = call.dtype();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
              "input must be float32, bfloat16 or float16, got ", dtype, ".");
}

// tensor (L * D, ...) -> layer l's part as (D, N, width); undefined where the tensor was not asked for.
at::Tensor part(const at::Tensor& tensor, const Call& call, int64_t l, int64_t width) {
  if (tensor.dim() == 1) return {};
  return tensor.narrow(0, l * call.D, call.D).view({call.D, call.rows, width});
}

// States (L * D, B, width), or their gradients if they are there.
at::Tensor states(const at::Tensor& tensor, const Call& call, int64_t l) {
  return tensor.defined() ? tensor.narrow(0, l * call.D, call.D) : tensor;
}

// Rows (N, D*P) between layer l and the next.
at::Tensor dropped(const at::Tensor& rows, const OptionalTensor& dropout_mask, int64_t l) {
  return dropout_mask.has_value() ? rows * (*dropout_mask)[l].reshape(rows.sizes()) : rows;
}

at::Tensor gradient_of_nothing(const at::Tensor& gradient, const at::Tensor& like) {
  return gradient.defined() ? gradient.clone() : at::zeros(like.sizes(), like.options());
}

}  // namespace

ForwardResult lstm_cuda(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                        at::TensorList weights, const OptionalTensor& batch_sizes,
                        const OptionalTensor& lengths, const OptionalTensor& reset,
                        const OptionalTensor& dropout_mask, bool bidirectional, bool for_backward,
                        bool all_cells) {
  const Call call(input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, bidirectional);
  check_dtype(call);
  const c10::DeviceGuard guard(input.device());
  const ExactProducts exact;
  const int64_t L = call.L, D = call.D, H = call.H, N = call.rows, width = D * call.P;
  const auto empty = [&](at::IntArrayRef shape) { return at::empty(shape, call.options); };
  const at::Tensor output = empty(call.shape({}, width));
  const at::Tensor cells =
      empty(for_backward || all_cells ? call.shape({L * D}, H) : std::vector<int64_t>{0});
  const at::Tensor gates = empty(for_backward ? call.shape({L * D}, 4 * H) : std::vector<int64_t>{0});
  const at::Tensor hidden = empty(for_backward ? call.shape({L - 1}, width) : std::vector<int64_t>{0});
  if (N == 0) {
    const auto copied = [](const at::Tensor& state) { return state.clone(at::MemoryFormat::Contiguous); };
    return {output, copied(h0), copied(c0), cells, gates, hidden};
  }
  const at::Tensor first_h = h0.contiguous(), first_c = c0.contiguous();
  const at::Tensor h_n = empty(h0.sizes()), c_n = empty(c0.sizes());
  const Rows rows(call, lengths, reset);
  at::Tensor x = input.reshape({N, call.I});
  for (int64_t l = 0; l < L; ++l) {
    const bool last = l == L - 1;
    const at::Tensor out = last           ? output.view({N, width})
                           : for_backward ? hidden[l].view({N, width})
                                          : empty({N, width});
    layer_forward(Layer(call, l), rows, x, states(first_h, call, l), states(first_c, call, l),
                  states(h_n, call, l), states(c_n, call, l), out, part(cells, call, l, H),
                  part(gates, call, l, 4 * H));
    if (!last) x = dropped(out, dropout_mask, l);
  }
  return {output, h_n, c_n, cells, gates, hidden};
}

BackwardResult lstm_backward_cuda(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                  const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                                  const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                                  at::TensorList weights, const OptionalTensor& batch_sizes,
                                  const OptionalTensor& lengths, const OptionalTensor& reset,
                                  const OptionalTensor& dropout_mask, const at::Tensor& output,
                                  const at::Tensor& cells, const at::Tensor& gates, const at::Tensor& hidden,
                                  bool bidirectional, bool input_needs_grad, bool weights_need_grad) {
  const Call call(input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, bidirectional);
  check_dtype(call);
  const c10::DeviceGuard guard(input.device());
  const ExactProducts exact;
  const int64_t L = call.L, D = call.D, H = call.H, N = call.rows, width = D * call.P;
  call.check("output", output, call.shape({}, width));
  call.check("cells", cells, call.shape({L * D}, H));
  call.check("gates", gates, call.shape({L * D}, 4 * H));
  call.check("hidden", hidden, call.shape({L - 1}, width));
  // The kernels read the four gates of a unit at once; the forward pass's own tensor is aligned.
  TORCH_CHECK(reinterpret_cast<uintptr_t>(gates.const_data_ptr()) % 16 == 0,
              "gates must begin at a multiple of 16 bytes, as the forward pass leaves it.");
  const at::Tensor last_h = call.gradient("grad_h_n", grad_h_n, h0.sizes());
  const at::Tensor last_c = call.gradient("grad_c_n", grad_c_n, c0.sizes());
  const at::Tensor of_cells = call.gradient("grad_cells", grad_cells, cells.sizes());
  at::Tensor of_rows = call.gradient("grad_output", grad_output, output.sizes());  // of layer l's output

  at::Tensor grad_input = at::empty({0}, call.options);
  std::vector<at::Tensor> grad_weights(weights.size());
  if (!weights_need_grad) {
    for (at::Tensor& gradient : grad_weights) gradient = at::empty({0}, call.options);
  }
  if (N == 0) {
    if (input_needs_grad) grad_input = at::zeros(input.sizes(), call.options);
    if (weights_need_grad) {
      for (size_t k = 0; k < grad_weights.size(); ++k)
        grad_weights[k] = at::zeros(weights[k].sizes(), call.options);
    }
    return {grad_input, gradient_of_nothing(last_h, h0), gradient_of_nothing(last_c, c0), grad_weights};
  }
  const at::Tensor first_h = h0.contiguous(), first_c = c0.contiguous(), all_cells = cells.contiguous(),
                   all_gates = gates.contiguous(), inner = hidden.contiguous();
  const at::Tensor grad_h0 = at::empty(h0.sizes(), call.options),
                   grad_c0 = at::empty(c0.sizes(), call.options);
  const Rows rows(call, lengths, reset);
  if (of_rows.defined()) of_rows = of_rows.view({N, width});
  for (int64_t l = L - 1; l >= 0; --l) {
    const Layer layer(call, l);
    const LayerPast past{
        l == 0 ? input.reshape({N, call.I}) : dropped(inner[l - 1].view({N, width}), dropout_mask, l - 1),
        states(first_h, call, l),
        states(first_c, call, l),
        (l == L - 1 ? output.contiguous() : inner[l]).view({N, width}),
        part(all_cells, call, l, H),
        part(all_gates, call, l, 4 * H)};
    const Gradients of{of_rows, of_cells.defined() ? part(of_cells, call, l, H) : of_cells,
                       states(last_h, call, l), states(last_c, call, l)};
    at::Tensor* of_weights = weights_need_grad ? &grad_weights[l * D * call.weights_per_direction] : nullptr;
    const at::Tensor gate_gradients =
        layer_backward(layer, rows, past, of, states(grad_h0, call, l), states(grad_c0, call, l), of_weights);
    if (l > 0) {
      of_rows = dropped(input_gradient(layer, gate_gradients), dropout_mask, l - 1);
    } else if (input_needs_grad) {
      grad_input = input_gradient(layer, gate_gradients).view(input.sizes());
    }
  }
  return {grad_input, grad_h0, grad_c0, grad_weights};
}

}  // namespace cnnlstm
