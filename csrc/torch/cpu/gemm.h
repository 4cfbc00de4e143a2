// Matrix products outside of the recurrence, by the faster of PyTorch's libraries.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace cnnlstm {

// a (M, K) times b (K, N), of float32 or bf16 and any strides. For float32 PyTorch itself always calls MKL,
// which reaches less than half of oneDNN's rate on AMD's processors; which one is faster here is measured at
// the first large product.
at::Tensor gemm(const at::Tensor& a, const at::Tensor& b);

// to += a b
void add_gemm(at::Tensor& to, const at::Tensor& a, const at::Tensor& b);

// The library of large float32 products, "mkl" or "onednn"; `transposed`: of those whose a lies in memory
// column by column. Measures where nothing was measured.
std::string gemm_library(bool transposed);

// Which library from now on: "auto" is the faster one. For tests of the one that is not chosen here.
void set_gemm_library(c10::string_view name);

}  // namespace cnnlstm
