#include "torch/cuda/run_recurrence.h"

#include <ATen/Functions.h>

#include <array>

#include "cuda/recurrence.h"
#include "torch/cuda/device.h"

namespace cnnlstm {

namespace {

int compute_type_of(at::ScalarType dtype) {
  if (dtype == at::kBFloat16) return CNNLSTM_BFLOAT16;
  if (dtype == at::kHalf) return CNNLSTM_FLOAT16;
  return wants_tf32() ? CNNLSTM_TF32 : CNNLSTM_FLOAT32;
}

const void* read(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }
void* written(const at::Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

// Calls a function of cuda/recurrence.h; an error becomes an exception.
template <typename Launch, typename... Arguments>
void call(Launch launch, Arguments... arguments) {
  std::array<char, 512> message{};
  TORCH_CHECK(launch(arguments..., message.data(), message.size()) == 0, message.data());
}

at::Tensor exchange_of(const CnnlstmPlan& plan, const at::Tensor& like) {
  return at::empty({plan.exchange_bytes}, like.options().dtype(at::kByte));
}

void product(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  at::Tensor result = out;
  if (a.scalar_type() == at::kFloat) {
    at::mm_out(result, a, b);
  } else if (a.is_cuda()) {
    at::mm_out(result, a, b, at::kFloat);
  } else {
    at::mm_out(result, a.to(at::kFloat), b.to(at::kFloat));  // only CUDA has products of one dtype in another
  }
}

// What enters a launch and what leaves it: the caller's states at both ends, else two buffers in turn.
class Passing {
 public:
  Passing(const at::Tensor& h0, const at::Tensor& c0, const at::Tensor& h_n, const at::Tensor& c_n)
      : h_(h0), c_(c0), h_n_(h_n), c_n_(c_n) {}

  // The state that enters the next launch.
  const at::Tensor& h() const { return h_; }

  template <typename Launch>
  void through(CnnlstmForward& pass, int64_t begin, int64_t end, Launch launch) {
    const bool last = end == pass.rows.T;
    const int turn = static_cast<int>(launches_++ % 2);
    if (!last && !h_spare_[turn].defined()) {
      h_spare_[turn] = at::empty_like(h_n_);
      c_spare_[turn] = at::empty(c_n_.sizes(), c_n_.options().dtype(at::kFloat));
    }
    const at::Tensor &h_out = last ? h_n_ : h_spare_[turn], &c_out = last ? c_n_ : c_spare_[turn];
    pass.begin = begin;
    pass.end = end;
    pass.h_in = read(h_);
    pass.c_in = read(c_);
    pass.c_in_float = begin > 0;
    pass.h_out = written(h_out);
    pass.c_out = written(c_out);
    pass.c_out_float = !last;
    launch();
    h_ = h_out;
    c_ = c_out;
  }

 private:
  at::Tensor h_, c_, h_n_, c_n_, h_spare_[2], c_spare_[2];
  int64_t launches_ = 0;
};

}  // namespace

at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor out = at::empty({a.size(0), b.size(1)}, a.options().dtype(at::kFloat));
  product(out, a, b);
  return out;
}

void run_forward(const std::function<GateInputs(const Chunk&)>& gate_inputs, const at::Tensor& h0,
                 const at::Tensor& c0, const Recurrent& weights, const Rows& rows, const at::Tensor& h_n,
                 const at::Tensor& c_n, const at::Tensor& output, const at::Tensor& cells,
                 const at::Tensor& gates) {
  const int64_t D = c0.size(0), B = c0.size(1), H = c0.size(2);
  CnnlstmForward pass{};
  pass.compute_type = compute_type_of(c0.scalar_type());
  pass.D = static_cast<int>(D);
  pass.H = H;
  pass.rows = rows.raw();
  for (int64_t d = 0; d < D; ++d) {
    pass.weight_hh[d] = read(weights.w_hh[d]);
    pass.bias_ih[d] = read(weights.b_ih[d]);
    pass.bias_hh[d] = read(weights.b_hh[d]);
  }
  pass.output = written(output);
  pass.cells = written(cells);
  pass.gates = written(gates);
  const CnnlstmPlan plan = plan_on(c0.device(), false, pass.compute_type, H, B, D);
  void* stream = current_stream(c0.device());
  const at::Tensor exchange = exchange_of(plan, c0);
  Passing states(h0, c0, h_n, c_n);
  for (const Chunk& chunk : rows.chunks(D, most_gate_inputs() / (16 * H * D))) {
    const GateInputs inputs = gate_inputs(chunk);
    for (int64_t d = 0; d < D; ++d) {
      pass.gate_inputs[d] = inputs.of[d].const_data_ptr<float>();
      pass.first_row[d] = chunk.first[d];
      pass.gate_inputs_rows[d] = chunk.count[d];
    }
    pass.gate_inputs_stride = inputs.of[0].stride(0);
    if (plan.algorithm != CNNLSTM_PER_STEP) {
      states.through(pass, chunk.begin, chunk.end,
                     [&] { call(cnnlstm_forward, &pass, &plan, written(exchange), stream); });
      continue;
    }
    for (int64_t step = chunk.begin; step < chunk.end; ++step) {
      at::Tensor recurrent[2];
      for (int64_t d = 0; d < D; ++d) recurrent[d] = product(states.h()[d], weights.w_hh[d].t());
      states.through(pass, step, step + 1, [&] {
        CnnlstmForwardStep one{pass, {}};
        for (int64_t d = 0; d < D; ++d) one.recurrent[d] = recurrent[d].const_data_ptr<float>();
        call(cnnlstm_forward_step, &one, stream);
      });
    }
  }
}

at::Tensor run_backward(const Gradients& of, const at::Tensor& cells, const at::Tensor& gates,
                        const at::Tensor& c0, const Recurrent& weights, const Rows& rows,
                        const at::Tensor& grad_h0, const at::Tensor& grad_c0) {
  const int64_t D = c0.size(0), B = c0.size(1), H = c0.size(2);
  const at::Tensor found = at::empty({rows.N, D * 4 * H}, c0.options());
  CnnlstmBackward pass{};
  pass.compute_type = compute_type_of(c0.scalar_type());
  pass.D = static_cast<int>(D);
  pass.H = H;
  pass.rows = rows.raw();
  for (int64_t d = 0; d < D; ++d) pass.weight_hh[d] = read(weights.w_hh[d]);
  pass.gates = read(gates);
  pass.cells = read(cells);
  pass.c0 = read(c0);
  pass.grad_output = read(of.output);
  pass.grad_cells = read(of.cells);
  pass.grad_h_n = read(of.h_n);
  pass.grad_c_n = read(of.c_n);
  pass.grad_h0 = written(grad_h0);
  pass.grad_c0 = written(grad_c0);
  pass.gate_gradients = written(found);
  const CnnlstmPlan plan = plan_on(c0.device(), true, pass.compute_type, H, B, D);
  void* stream = current_stream(c0.device());
  if (plan.algorithm != CNNLSTM_PER_STEP) {
    const at::Tensor exchange = exchange_of(plan, c0);
    call(cnnlstm_backward, &pass, &plan, written(exchange), stream);
    return found;
  }
  const at::Tensor sums = at::empty({3, D, B, H}, c0.options().dtype(at::kFloat));
  const at::Tensor recurrent = sums[0], grad_h = sums[1], grad_c = sums[2];
  const at::Tensor exchanged = at::empty({D, B, 4 * H}, c0.options());
  CnnlstmBackwardStep one{pass,
                          0,
                          recurrent.const_data_ptr<float>(),
                          grad_h.mutable_data_ptr<float>(),
                          grad_c.mutable_data_ptr<float>(),
                          written(exchanged)};
  for (one.step = rows.T - 1; one.step >= -1; --one.step) {
    for (int64_t d = 0; d < D && one.step + 1 < rows.T; ++d)
      product(recurrent[d], exchanged[d], weights.w_hh[d]);
    call(cnnlstm_backward_step, &one, stream);
  }
  return found;
}

at::Tensor entering_states(const at::Tensor& output, const at::Tensor& h0, const Rows& rows) {
  const int64_t D = h0.size(0), H = h0.size(2);
  const at::Tensor found = at::empty({D, rows.N, H}, output.options());
  const CnnlstmEntering arguments{compute_type_of(h0.scalar_type()),
                                  static_cast<int>(D),
                                  H,
                                  rows.raw(),
                                  read(output),
                                  read(h0),
                                  written(found)};
  call(cnnlstm_entering, &arguments, current_stream(h0.device()));
  return found;
}

at::Tensor hidden_states(const at::Tensor& cells, const at::Tensor& gates) {
  const int64_t D = cells.size(0), N = cells.size(1), H = cells.size(2);
  const at::Tensor found = at::empty({N, D * H}, cells.options());
  const CnnlstmStates arguments{compute_type_of(cells.scalar_type()),
                                static_cast<int>(D),
                                H,
                                N,
                                read(gates),
                                read(cells),
                                written(found)};
  call(cnnlstm_states, &arguments, current_stream(cells.device()));
  return found;
}

}  // namespace cnnlstm
