#include "torch/cpu/gemm.h"

#include <ATen/Context.h>
#include <ATen/Functions.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>

// PyTorch's product by oneDNN. It has no header outside of PyTorch's own sources, and another version may
// lack it.
namespace at::native {
__attribute__((weak)) void mkldnn_matmul(const Tensor& mat1, const Tensor& mat2, const Tensor& result,
                                         float beta, float alpha);
}

namespace cnnlstm {

namespace {

// oneDNN takes 30 us before it begins.
constexpr double kMinOperations = 1 << 23;

enum class Library { automatic, mkl, onednn };
std::atomic<Library> wanted{Library::automatic};

bool has_onednn() { return at::native::mkldnn_matmul != nullptr && at::globalContext().userEnabledMkldnn(); }

// Whether a lies in memory column by column.
bool is_transposed(const at::Tensor& a) { return a.stride(0) == 1 && a.stride(1) > 1; }

// to = beta to + a b
void onednn_product(at::Tensor& to, const at::Tensor& a, const at::Tensor& b, float beta) {
  at::native::mkldnn_matmul(a, b, to, beta, 1.0f);
}

// MKL is preferred where both are alike, so that every process on a machine makes the same choice and
// gets the same bits.
constexpr double kMinGain = 1.25;

bool measure(bool transposed) {
  if (!has_onednn()) return false;
  constexpr int64_t M = 256, K = 512, N = 512;
  const at::Tensor a = transposed ? at::ones({K, M}).t() : at::ones({M, K}), b = at::ones({K, N});
  at::Tensor to = at::empty({M, N});
  const auto seconds = [](auto run) {
    const auto start = std::chrono::steady_clock::now();
    run();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  constexpr int kPairs = 5;
  std::array<double, kPairs> ratios;
  for (int i = -1; i < kPairs; ++i) {  // the first pair warms up
    const double mkl = seconds([&] { at::mm_out(to, a, b); });
    const double onednn = seconds([&] { onednn_product(to, a, b, 0.0f); });
    if (i >= 0) ratios[i] = mkl / onednn;
  }
  std::sort(ratios.begin(), ratios.end());
  return ratios[kPairs / 2] > kMinGain;
}

bool prefers_onednn(bool transposed) {
  switch (wanted.load(std::memory_order_relaxed)) {
    case Library::mkl:
      return false;
    case Library::onednn:
      return has_onednn();
    default:
      static const std::array<bool, 2> faster{measure(false), measure(true)};
      return faster[transposed];
  }
}

bool uses_onednn(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == at::kFloat &&
         2.0 * double(a.size(0)) * double(a.size(1)) * double(b.size(1)) >= kMinOperations &&
         prefers_onednn(is_transposed(a));
}

}  // namespace

at::Tensor gemm(const at::Tensor& a, const at::Tensor& b) {
  if (!uses_onednn(a, b)) return at::mm(a, b);
  at::Tensor to = at::empty({a.size(0), b.size(1)}, a.options());
  onednn_product(to, a, b, 0.0f);
  return to;
}

void add_gemm(at::Tensor& to, const at::Tensor& a, const at::Tensor& b) {
  if (!uses_onednn(a, b)) {
    to.addmm_(a, b);
  } else {
    onednn_product(to, a, b, 1.0f);
  }
}

std::string gemm_library(bool transposed) { return prefers_onednn(transposed) ? "onednn" : "mkl"; }

void set_gemm_library(c10::string_view name) {
  TORCH_CHECK(name == "auto" || name == "mkl" || name == "onednn",
              "library: expected auto, mkl or onednn, got ", name, ".");
  wanted = name == "auto" ? Library::automatic : name == "mkl" ? Library::mkl : Library::onednn;
}

}  // namespace cnnlstm
