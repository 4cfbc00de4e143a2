// The operators cnnlstm_fast::lstm and lstm_backward for torch's dispatcher: native kernels for the backends
// "cpu" and "cpu-int8", and for "cuda" on a GPU; the operators of the same schema implemented in Python for
// every other.
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <mutex>
#include <string>

#include "cpu/threads.h"
#include "operators_schema.h"
#include "torch/cpu/gemm.h"
#include "torch/cpu/lstm.h"
#include "torch/cpu/microkernel.h"
#include "torch/cpu/prepacked.h"
#include "torch/dispatch_guard.h"
#ifdef CNNLSTM_CUDA
#include "torch/cuda/lstm.h"
#endif

namespace cnnlstm {

namespace {

// PyTorch gives a Python thread its number of threads at the first use there, which must not come between
// OversubscriptionGuard's reading of that number and its restoring. In a forked child ATen's own matrix
// products would wait for worker threads that only the parent process has (DataLoader workers use one thread
// for the same reason).
void settle_threads() {
  at::internal::lazy_init_num_threads();
  if (!is_forked_child()) return;
  static std::once_flag once;
  std::call_once(once, [] { at::set_num_threads(1); });
}

ForwardResult lstm(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                   at::TensorList weights, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                   const OptionalTensor& reset, const OptionalTensor& dropout_mask, bool bidirectional,
                   bool for_backward, bool all_cells, c10::string_view backend) {
  if (backend == "cpu" || backend == "cpu-int8") {
    const DispatchGuard guard;
    settle_threads();
    const OversubscriptionGuard thread_guard;
    return lstm_cpu(input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, bidirectional,
                    for_backward, all_cells, backend == "cpu-int8");
  }
#ifdef CNNLSTM_CUDA
  if (backend == "cuda" && input.is_cuda()) {
    const DispatchGuard guard;
    return lstm_cuda(input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, bidirectional,
                     for_backward, all_cells);
  }
#endif
  static const auto python =
      c10::Dispatcher::singleton().findSchemaOrThrow("cnnlstm_fast::lstm_python", "").typed<decltype(lstm)>();
  return python.call(input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, bidirectional,
                     for_backward, all_cells, backend);
}

BackwardResult lstm_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                             const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                             const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0,
                             at::TensorList weights, const OptionalTensor& batch_sizes,
                             const OptionalTensor& lengths, const OptionalTensor& reset,
                             const OptionalTensor& dropout_mask, const at::Tensor& output,
                             const at::Tensor& cells, const at::Tensor& gates, const at::Tensor& hidden,
                             bool bidirectional, bool input_needs_grad, bool weights_need_grad,
                             c10::string_view backend) {
  TORCH_CHECK(backend != "cpu-int8", "The int8 kernel has no gradient.");
  if (backend == "cpu") {
    const DispatchGuard guard;
    settle_threads();
    const OversubscriptionGuard thread_guard;
    return lstm_backward_cpu(grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights, batch_sizes,
                             lengths, reset, dropout_mask, output, cells, gates, hidden, bidirectional,
                             input_needs_grad, weights_need_grad);
  }
#ifdef CNNLSTM_CUDA
  if (backend == "cuda" && input.is_cuda()) {
    const DispatchGuard guard;
    return lstm_backward_cuda(grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights,
                              batch_sizes, lengths, reset, dropout_mask, output, cells, gates, hidden,
                              bidirectional, input_needs_grad, weights_need_grad);
  }
#endif
  static const auto python = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("cnnlstm_fast::lstm_backward_python", "")
                                 .typed<decltype(lstm_backward)>();
  return python.call(grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights, batch_sizes,
                     lengths, reset, dropout_mask, output, cells, gates, hidden, bidirectional,
                     input_needs_grad, weights_need_grad, backend);
}

}  // namespace

TORCH_LIBRARY(cnnlstm_fast, m) {
  for (std::string schema : kOperatorSchemas) {
    m.def(schema.c_str());
    m.def(schema.insert(schema.find('('), "_python").c_str());
  }
  m.def("prepacked_bytes() -> int", &prepacked_bytes);
  m.def("clear_prepacked() -> ()", &clear_prepacked);
  m.def("freeze(Tensor[] weights) -> ()", &freeze);
  m.def("thaw(Tensor[] weights) -> ()", &thaw);
  m.def("is_frozen(Tensor weight) -> bool", &is_frozen);
  m.def("cast_weights(Tensor[] weights, ScalarType dtype) -> Tensor[]", &cast_weights);
  m.def("microkernel_uses() -> int", &microkernel_uses);
  m.def("is_forked_child() -> bool", &is_forked_child);
  m.def("gemm_library(bool transposed) -> str", [](bool transposed) {
    settle_threads();  // it may multiply, to measure
    return gemm_library(transposed);
  });
  m.def("set_gemm_library(str name) -> ()", &set_gemm_library);
}

TORCH_LIBRARY_IMPL(cnnlstm_fast, CPU, m) {
  m.impl("lstm", &lstm);
  m.impl("lstm_backward", &lstm_backward);
}

#ifdef CNNLSTM_CUDA
TORCH_LIBRARY_IMPL(cnnlstm_fast, CUDA, m) {
  m.impl("lstm", &lstm);
  m.impl("lstm_backward", &lstm_backward);
}
#endif

}  // namespace cnnlstm
