// The operators of torch/cuda on CPU tensors, with kernels compiled for the CPU: cnnlstm_emulator::lstm and
// lstm_backward, with the schemas of the package. For tests only.
#include <torch/library.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "operators_schema.h"
#include "torch/cuda/device.h"
#include "torch/cuda/lstm.h"
#include "torch/dispatch_guard.h"

namespace cnnlstm {

namespace {

// What the tests set.
struct Settings {
  int algorithm = -1;  // of CnnlstmAlgorithm; -1: the planner's choice
  int64_t nth = 0;
  bool tf32 = false;
  int64_t most_gate_inputs = int64_t{256} << 20;
};
Settings settings;

// A GPU that supports every algorithm, with so few multiprocessors that a CPU can hold all resident threads.
CnnlstmGpu emulated_gpu() {
  CnnlstmGpu gpu{};
  gpu.sm = 90;
  gpu.multiprocessors = 16;
  gpu.shared_bytes = 227 << 10;
  gpu.largest_cluster = 16;
  gpu.l2_bytes = int64_t{50} << 20;
  cnnlstm_costs("", gpu.sm, &gpu.costs);
  return gpu;
}

// From now on every pass takes the nth plan of an algorithm (modulo the number of its plans), or for "" the
// planner's choice; products of float32 are computed in TF32 or exactly; at most so many bytes of gate inputs
// exist at once.
void configure(c10::string_view algorithm, int64_t nth, bool tf32, int64_t most_gate_inputs) {
  const auto first = std::begin(kCnnlstmAlgorithmNames), last = std::end(kCnnlstmAlgorithmNames);
  const auto found = std::find(first, last, algorithm);
  TORCH_CHECK(algorithm.empty() || found != last, "There is no algorithm ", algorithm, ".");
  TORCH_CHECK(nth >= 0, "nth must not be negative, got ", nth, ".");
  settings = {algorithm.empty() ? -1 : static_cast<int>(found - first), nth, tf32, most_gate_inputs};
}

ForwardResult lstm(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                   at::TensorList weights, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                   const OptionalTensor& reset, const OptionalTensor& dropout_mask, bool bidirectional,
                   bool for_backward, bool all_cells, c10::string_view) {
  const DispatchGuard guard;
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
  const DispatchGuard guard;
  return lstm_backward_cuda(grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights, batch_sizes,
                            lengths, reset, dropout_mask, output, cells, gates, hidden, bidirectional,
                            input_needs_grad, weights_need_grad);
}

}  // namespace

CnnlstmPlan plan_on(at::Device, bool backward, int compute_type, int64_t H, int64_t B, int64_t D) {
  const CnnlstmGpu gpu = emulated_gpu();
  CnnlstmPlan chosen;
  if (settings.algorithm < 0) {
    TORCH_CHECK(cnnlstm_plan(&gpu, backward, compute_type, H, B, static_cast<int>(D), &chosen) == 0,
                "There is no plan for hidden_size ", H, " and ", B, " sequences.");
    return chosen;
  }
  std::vector<CnnlstmPlan> plans(256);
  const int count = cnnlstm_plans(&gpu, backward, compute_type, H, B, static_cast<int>(D), plans.data(), 256);
  plans.resize(std::clamp(count, 0, 256));
  std::erase_if(plans, [](const CnnlstmPlan& plan) { return plan.algorithm != settings.algorithm; });
  TORCH_CHECK(!plans.empty(), "There is no plan of the algorithm ",
              kCnnlstmAlgorithmNames[settings.algorithm], " for hidden_size ", H, ".");
  return plans[settings.nth % plans.size()];
}

void* current_stream(at::Device) { return nullptr; }
bool wants_tf32() { return settings.tf32; }
int64_t most_gate_inputs() { return settings.most_gate_inputs; }

// The package's own schemas: their argument `backend` is ignored here.
TORCH_LIBRARY(cnnlstm_emulator, m) {
  for (const char* schema : kOperatorSchemas) m.def(schema);
  m.def("configure(str algorithm, int nth, bool tf32, int most_gate_inputs) -> ()", &configure);
}

TORCH_LIBRARY_IMPL(cnnlstm_emulator, CPU, m) {
  m.impl("lstm", &lstm);
  m.impl("lstm_backward", &lstm_backward);
}

}  // namespace cnnlstm
