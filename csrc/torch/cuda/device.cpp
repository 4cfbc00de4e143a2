#include "torch/cuda/device.h"

#include <ATen/Context.h>
#include <dlfcn.h>
#include <torch/library.h>

#include <array>
#include <mutex>

#include "cuda/facts.h"

namespace cnnlstm {

namespace {

constexpr int kMostGpus = 64;

const CnnlstmGpu& gpu(at::Device device) {
  static std::array<std::once_flag, kMostGpus> once;
  static std::array<CnnlstmGpu, kMostGpus> gpus;
  TORCH_CHECK(device.is_cuda() && device.index() >= 0 && device.index() < kMostGpus,
              "The CUDA kernels take tensors on one of the first ", kMostGpus, " GPUs, got ", device, ".");
  CnnlstmGpu& found = gpus[device.index()];
  std::call_once(once[device.index()], [&] {
    std::array<char, 512> message{};
    TORCH_CHECK(cnnlstm_cuda_gpu(device.index(), &found, message.data(), message.size()) == 0,
                message.data());
  });
  return found;
}

// PyTorch's function for it. It is looked up at run time, since a PyTorch without CUDA, which this library
// may be built beside, has none.
using CurrentStream = int32_t (*)(int32_t device, void** stream);

CurrentStream find_current_stream() {
  const char* name = "aoti_torch_get_current_cuda_stream";
  void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  TORCH_CHECK(library != nullptr, "libtorch_cuda.so is not loaded: this PyTorch has no CUDA.");
  void* found = dlsym(library, name);
  TORCH_CHECK(found != nullptr, "libtorch_cuda.so has no function ", name, ".");
  return reinterpret_cast<CurrentStream>(found);
}

}  // namespace

CnnlstmPlan plan_on(at::Device device, bool backward, int compute_type, int64_t H, int64_t B, int64_t D) {
  CnnlstmPlan plan;
  TORCH_CHECK(cnnlstm_plan(&gpu(device), backward, compute_type, H, B, static_cast<int>(D), &plan) == 0,
              "There is no plan for hidden_size ", H, " and ", B, " sequences.");
  return plan;
}

void* current_stream(at::Device device) {
  static const CurrentStream find = find_current_stream();
  void* stream = nullptr;
  TORCH_CHECK(find(device.index(), &stream) == 0, "PyTorch does not report the current stream of ", device,
              ".");
  return stream;
}

// The setting that nn.LSTM follows on a GPU, as cnnlstm_fast/recurrent/precision.py reads it, too.
bool wants_tf32() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::RNN) ==
         at::Float32Precision::TF32;
}

int64_t most_gate_inputs() { return int64_t{256} << 20; }

// For the test that both readings agree.
TORCH_LIBRARY_FRAGMENT(cnnlstm_fast, m) { m.def("cuda_wants_tf32() -> bool", &wants_tf32); }

}  // namespace cnnlstm
