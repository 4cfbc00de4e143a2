// Weights in the kernels' own layout, kept from one inference to the next.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/kernels.h"

namespace cnnlstm {

// The panels of each of these matrices (4H, K), from its second use on: before it, and for weights that every
// call makes anew, they would not be used again, and the result is undefined. What is kept is known by its
// storage, its place in it and its contents: whatever edits, frees or replaces the matrix, in sight of
// autograd or not (`.data`, NumPy), is noticed. Safe to call from several threads.
std::vector<at::Tensor> prepacked(const std::vector<at::Tensor>& weights, const Kernels& kernel);

// What is kept for weights that still exist.
int64_t prepacked_bytes();

}  // namespace cnnlstm
