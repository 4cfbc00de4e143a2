// The CUDA driver on CPU tensors, its kernels compiled for the CPU: cnnlstm_emulator::lstm and lstm_backward,
// with the schemas of the package. For tests alone.
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "operators_schema.h"
#include "torch/below.h"
#include "torch/cuda/device.h"
#include "torch/cuda/lstm.h"

namespace cnnlstm {

namespace {

// What the tests set.
struct Pretence {
  int way = -1;  // of CnnlstmWay; -1: the planner's choice
  int64_t nth = 0;
  bool tf32 = false;
  int64_t most_gate_inputs = int64_t{256} << 20;
};
Pretence pretence;

// A GPU that has every way, and so few multiprocessors that a CPU can hold the threads that run at once.
CnnlstmGpu pretended_gpu() {
  CnnlstmGpu gpu{};
  gpu.sm = 90;
  gpu.multiprocessors = 16;
  gpu.shared_bytes = 227 << 10;
  gpu.largest_cluster = 16;
  gpu.l2_bytes = int64_t{50} << 20;
  cnnlstm_costs("", gpu.sm, &gpu.costs);
  return gpu;
}

// From now on every pass takes the nth plan of a way ("block", "cluster", "grid", "stream" or "step";
// counted again from the first where there are not so many), or for "" the planner's choice; products of
// float32 are of TF32 or exact; and so many bytes of gate inputs exist at once.
void pretend(c10::string_view way, int64_t nth, bool tf32, int64_t most_gate_inputs) {
  const std::vector<c10::string_view> names{"block", "cluster", "grid", "stream", "step"};
  const auto found = std::find(names.begin(), names.end(), way);
  TORCH_CHECK(way.empty() || found != names.end(), "There is no way ", way, ".");
  TORCH_CHECK(nth >= 0, "nth must not be negative, got ", nth, ".");
  pretence = {way.empty() ? -1 : static_cast<int>(found - names.begin()), nth, tf32, most_gate_inputs};
}

ForwardResult lstm(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                   at::TensorList weights, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                   const OptionalTensor& reset, const OptionalTensor& dropout_mask, bool bidirectional,
                   bool for_backward, bool all_cells, c10::string_view) {
  const BelowAutogradAndAutocast guard;
  return lstm_cuda(input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, bidirectional,
                   for_backward, all_cells);
}

BackwardResult lstm_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                             const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                             const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                             at::TensorList weights, const OptionalTensor& batch_sizes,
                             const OptionalTensor& lengths, const OptionalTensor& reset,
                             const OptionalTensor& dropout_mask, const at::Tensor& output,
                             const at::Tensor& cells, const at::Tensor& gates, const at::Tensor& hidden,
                             bool bidirectional, bool input_needs_grad, bool weights_need_grad,
                             c10::string_view) {
  const BelowAutogradAndAutocast guard;
  return lstm_backward_cuda(grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights, batch_sizes,
                            lengths, reset, dropout_mask, output, cells, gates, hidden, bidirectional,
                            input_needs_grad, weights_need_grad);
}

}  // namespace

CnnlstmPlan plan_on(at::Device, bool backward, int number, int64_t H, int64_t B, int64_t D) {
  const CnnlstmGpu gpu = pretended_gpu();
  CnnlstmPlan chosen;
  if (pretence.way < 0) {
    TORCH_CHECK(cnnlstm_plan(&gpu, backward, number, H, B, static_cast<int>(D), &chosen) == 0,
                "There is no plan for hidden_size ", H, " and ", B, " sequences.");
    return chosen;
  }
  std::vector<CnnlstmPlan> plans(256);
  const int count = cnnlstm_plans(&gpu, backward, number, H, B, static_cast<int>(D), plans.data(), 256);
  plans.resize(std::clamp(count, 0, 256));
  std::erase_if(plans, [](const CnnlstmPlan& plan) { return plan.way != pretence.way; });
  TORCH_CHECK(!plans.empty(), "There is no plan of the way ", pretence.way, " for hidden_size ", H, ".");
  return plans[pretence.nth % plans.size()];
}

void* current_stream(at::Device) { return nullptr; }
bool wants_tf32() { return pretence.tf32; }
int64_t most_gate_inputs() { return pretence.most_gate_inputs; }

// The package's own schemas: the name of the backend, which only the package reads, has no meaning here.
TORCH_LIBRARY(cnnlstm_emulator, m) {
  for (const char* schema : kOperatorSchemas) m.def(schema);
  m.def("pretend(str way, int nth, bool tf32, int most_gate_inputs) -> ()", &pretend);
}

TORCH_LIBRARY_IMPL(cnnlstm_emulator, CPU, m) {
  m.impl("lstm", &lstm);
  m.impl("lstm_backward", &lstm_backward);
}

}  // namespace cnnlstm
