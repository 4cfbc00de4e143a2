// Weights in the kernels' own layout, kept from one inference to the next.
#pragma once

#include <ATen/core/Tensor.h>

#include "cpu/kernels.h"

namespace cnnlstm {

// The panels of a weight matrix (4H, K) that the kernels are handed, from its second use on: before it, and for
// weights that every call makes anew, packing would cost more than it gains, and the result is undefined. What is
// kept is known by its storage, its place in it and its contents: whatever edits, frees or replaces the matrix, in
// sight of autograd or not (`.data`, NumPy), is noticed. Safe to call from several threads.
at::Tensor prepacked(const at::Tensor& weight, const Kernels& kernel, int threads);

// What is kept for weights that still exist.
int64_t prepacked_bytes();

}  // namespace cnnlstm
