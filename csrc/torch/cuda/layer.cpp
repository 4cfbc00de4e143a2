#include "torch/cuda/layer.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

namespace cnnlstm {

namespace {

// (4H, K) in nn.LSTM's order -> (4H, K), (H, 4, K); and back, in storage of its own.
at::Tensor interleaved(const at::Tensor& rows, int64_t H) {
  return rows.reshape({4, H, rows.size(1)}).transpose(0, 1).reshape(rows.sizes());
}
at::Tensor separated(const at::Tensor& rows, int64_t H) {
  return rows.view({H, 4, rows.size(1)})
      .transpose(0, 1)
      .clone(at::MemoryFormat::Contiguous)
      .view({4 * H, rows.size(1)});
}

// w_ih of both directions in the order of the gates in all other arrays, (D*4H, I): (D, H, 4, I).
at::Tensor input_weights(const Layer& layer) {
  const int64_t D = layer.D, H = layer.H, I = layer.w_ih[0].size(1);
  const at::Tensor found = at::empty({D * 4 * H, I}, layer.w_ih[0].options());
  for (int64_t d = 0; d < D; ++d)
    found.view({D, H, 4, I})[d].copy_(layer.w_ih[d].view({4, H, I}).transpose(0, 1));
  return found;
}

at::Tensor columns(const at::Tensor& matrix, int64_t direction, int64_t width) {
  return matrix.narrow(1, direction * width, width);
}

// `weights`: input_weights().
GateInputs gate_inputs(const Layer& layer, const at::Tensor& weights, const at::Tensor& x,
                       const Chunk& chunk) {
  const int64_t width = 4 * layer.H, N = x.size(0);
  GateInputs found;
  if (chunk.count[0] == N && chunk.count[layer.D - 1] == N) {  // all rows in every direction: one product
    const at::Tensor all = product(x, weights.t());
    for (int64_t d = 0; d < layer.D; ++d) found.of[d] = columns(all, d, width);
    return found;
  }
  for (int64_t d = 0; d < layer.D; ++d)
    found.of[d] =
        product(x.narrow(0, chunk.first[d], chunk.count[d]), weights.narrow(0, d * width, width).t());
  return found;
}

// Of both biases, which is the same, by direction: (D, 4H).
at::Tensor bias_gradients(const Layer& layer, const at::Tensor& gate_gradients) {
  return gate_gradients.sum(0, /*keepdim=*/false, at::kFloat)
      .view({layer.D, layer.H, 4})
      .transpose(1, 2)
      .to(gate_gradients.scalar_type())
      .reshape({layer.D, 4 * layer.H});
}

// The gradients of the weights in the order of the operator; those of w_hh and w_hr are given by direction.
void collect(const Layer& layer, const at::Tensor& x, const at::Tensor& gate_gradients,
             const at::Tensor* w_hh, const at::Tensor* w_hr, at::Tensor* to) {
  const at::Tensor w_ih = at::mm(gate_gradients.t(), x);
  const at::Tensor biases = layer.has_bias ? bias_gradients(layer, gate_gradients) : at::Tensor();
  for (int64_t d = 0; d < layer.D; ++d) {
    *to++ = separated(w_ih.narrow(0, d * 4 * layer.H, 4 * layer.H), layer.H);
    *to++ = w_hh[d];
    if (layer.has_bias) {
      *to++ = biases[d].clone();
      *to++ = biases[d].clone();
    }
    if (layer.has_projection) *to++ = w_hr[d];
  }
}

void plain_forward(const Layer& layer, const Rows& rows, const at::Tensor& x, const at::Tensor& h0,
                   const at::Tensor& c0, const at::Tensor& h_n, const at::Tensor& c_n,
                   const at::Tensor& output, const at::Tensor& cells, const at::Tensor& gates) {
  const auto inputs = [&, weights = input_weights(layer)](const Chunk& chunk) {
    return gate_inputs(layer, weights, x, chunk);
  };
  run_forward(inputs, h0, c0, layer.given, rows, h_n, c_n, output, cells, gates);
}

at::Tensor plain_backward(const Layer& layer, const Rows& rows, const LayerPast& past, const Gradients& of,
                          const at::Tensor& grad_h0, const at::Tensor& grad_c0, at::Tensor* grad_weights) {
  const at::Tensor found =
      run_backward(of, past.cells, past.gates, past.c0, layer.given, rows, grad_h0, grad_c0);
  if (grad_weights == nullptr) return found;
  const at::Tensor entering = entering_states(past.output, past.h0, rows);
  at::Tensor w_hh[2];
  for (int64_t d = 0; d < layer.D; ++d)
    w_hh[d] = separated(at::mm(columns(found, d, 4 * layer.H).t(), entering[d]), layer.H);
  collect(layer, past.x, found, w_hh, nullptr, grad_weights);
  return found;
}

// A layer with a projection, h = W_hr m, run as one without: from a sequence's second step on W_hh h is (W_hh
// W_hr) m of the step before. The kernels run on m with the product of the two matrices, and h is one product
// over all steps. W_hh h0 is added to the gate inputs of each sequence's first step.
Recurrent joined(const Layer& layer) {
  Recurrent weights = layer.given;
  for (int64_t d = 0; d < layer.D; ++d) {
    const at::Tensor& w_hh = layer.given.w_hh[d];
    weights.w_hh[d] = product(w_hh, layer.w_hr[d]).to(w_hh.scalar_type());
  }
  return weights;
}

void projected_forward(const Layer& layer, const Rows& rows, const at::Tensor& x, const at::Tensor& h0,
                       const at::Tensor& c0, const at::Tensor& h_n, const at::Tensor& c_n,
                       const at::Tensor& output, const at::Tensor& cells, const at::Tensor& gates) {
  const int64_t D = layer.D, H = layer.H, P = layer.P;
  at::Tensor first[2], entering[2];
  for (int64_t d = 0; d < D; ++d) {
    first[d] = rows.first(d);
    const at::Tensor of_h0 = product(h0[d], interleaved(layer.given.w_hh[d], H).t());
    entering[d] = chosen_or_zero(rows.entered(d), of_h0);
  }
  const auto inputs = [&, weights = input_weights(layer)](const Chunk& chunk) {
    const GateInputs found = gate_inputs(layer, weights, x, chunk);
    for (int64_t d = 0; d < D; ++d) {
      if (chunk.count[d] == 0) continue;
      const at::Tensor place = first[d] - chunk.first[d];
      const at::Tensor inside = place.ge(0).logical_and_(place.lt(chunk.count[d])).unsqueeze(1);
      found.of[d].index_add_(0, place.clamp(0, chunk.count[d] - 1), chosen_or_zero(inside, entering[d]));
    }
    return found;
  };
  const at::Tensor m = at::empty({rows.N, D * H}, output.options()), m_n = at::empty_like(c0);
  run_forward(inputs, at::zeros_like(c0), c0, joined(layer), rows, m_n, c_n, m, cells, gates);
  for (int64_t d = 0; d < D; ++d) {
    columns(output, d, P).copy_(product(columns(m, d, H), layer.w_hr[d].t()));
    h_n[d].copy_(chosen(rows.some(), product(m_n[d], layer.w_hr[d].t()), h0[d]));
  }
}

at::Tensor projected_backward(const Layer& layer, const Rows& rows, const LayerPast& past,
                              const Gradients& of, const at::Tensor& grad_h0, const at::Tensor& grad_c0,
                              at::Tensor* grad_weights) {
  const int64_t D = layer.D, H = layer.H, P = layer.P;
  const at::Tensor some = rows.some();
  // a sequence's final h is that of its last step, which is where the other direction starts
  const at::Tensor grad_steps = of.output.defined() ? of.output.clone() : at::zeros_like(past.output);
  Gradients of_m{at::empty({rows.N, D * H}, past.output.options()), of.cells, {}, of.c_n};
  for (int64_t d = 0; d < D; ++d) {
    const at::Tensor part = columns(grad_steps, d, P);
    if (of.h_n.defined()) part.index_add_(0, rows.first(1 - d), chosen_or_zero(some, of.h_n[d]));
    columns(of_m.output, d, H).copy_(product(part, layer.w_hr[d]));
  }
  const at::Tensor found = run_backward(of_m, past.cells, past.gates, past.c0, joined(layer), rows,
                                        at::empty_like(past.c0), grad_c0);
  at::Tensor entered[2];  // gradients of the gates that h0 entered, (B, 4H)
  for (int64_t d = 0; d < D; ++d) {
    const at::Tensor steps = columns(found, d, 4 * H).index_select(0, rows.first(d));
    entered[d] = chosen_or_zero(rows.entered(d), steps);
    const at::Tensor through = product(entered[d], interleaved(layer.given.w_hh[d], H));
    const at::Tensor past_by = of.h_n.defined() ? of.h_n[d] : at::zeros_like(grad_h0[d]);
    grad_h0[d].copy_(chosen(some, through, past_by));
  }
  if (grad_weights == nullptr) return found;

  const at::Tensor m = hidden_states(past.cells, past.gates);
  const at::Tensor entering = entering_states(m, at::zeros_like(past.c0), rows);
  at::Tensor w_hh[2], w_hr[2];
  for (int64_t d = 0; d < D; ++d) {
    const at::Tensor given = layer.given.w_hh[d].to(at::kFloat), projection = layer.w_hr[d].to(at::kFloat);
    const at::Tensor of_joined = product(columns(found, d, 4 * H).t(), entering[d]);
    w_hh[d] = at::mm(of_joined, projection.t()) + product(entered[d].t(), past.h0[d]);
    w_hh[d] = separated(w_hh[d], H).to(past.x.scalar_type());
    w_hr[d] =
        at::mm(given.t(), separated(of_joined, H)) + product(columns(grad_steps, d, P).t(), columns(m, d, H));
    w_hr[d] = w_hr[d].to(past.x.scalar_type());
  }
  collect(layer, past.x, found, w_hh, w_hr, grad_weights);
  return found;
}

}  // namespace

Layer::Layer(const Call& call, int64_t l)
    : D(call.D), H(call.H), P(call.P), has_bias(call.has_bias), has_projection(call.has_projection) {
  for (int64_t d = 0; d < D; ++d) {
    w_ih[d] = call.weight(l, d, 0);
    given.w_hh[d] = call.weight(l, d, 1).contiguous();
    if (has_bias) {
      given.b_ih[d] = call.weight(l, d, 2).contiguous();
      given.b_hh[d] = call.weight(l, d, 3).contiguous();
    }
    if (has_projection) w_hr[d] = call.weight(l, d, call.weights_per_direction - 1).contiguous();
  }
}

void layer_forward(const Layer& layer, const Rows& rows, const at::Tensor& x, const at::Tensor& h0,
                   const at::Tensor& c0, const at::Tensor& h_n, const at::Tensor& c_n,
                   const at::Tensor& output, const at::Tensor& cells, const at::Tensor& gates) {
  const auto forward = layer.has_projection ? projected_forward : plain_forward;
  forward(layer, rows, x, h0, c0, h_n, c_n, output, cells, gates);
}

at::Tensor layer_backward(const Layer& layer, const Rows& rows, const LayerPast& past, const Gradients& of,
                          const at::Tensor& grad_h0, const at::Tensor& grad_c0, at::Tensor* grad_weights) {
  const auto backward = layer.has_projection ? projected_backward : plain_backward;
  return backward(layer, rows, past, of, grad_h0, grad_c0, grad_weights);
}

at::Tensor input_gradient(const Layer& layer, const at::Tensor& gate_gradients) {
  return at::mm(gate_gradients, input_weights(layer));
}

}  // namespace cnnlstm
