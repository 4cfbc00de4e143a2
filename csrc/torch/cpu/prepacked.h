// A cache of weights in the kernels' panel layout, kept between inference calls.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/kernels.h"

namespace cnnlstm {

// The panels of each of these matrices (4H, K), from its second use on; the result of the first use is an
// undefined tensor, since weights that every call creates anew are never reused. The cache key is the
// storage, the position in it and the contents: every edit, release or replacement of the matrix is detected,
// with or without autograd (`.data`, NumPy). Thread-safe.
std::vector<at::Tensor> prepacked(const std::vector<at::Tensor>& weights, const Kernels& kernel);

// The size of the cached panels of weights that still exist.
int64_t prepacked_bytes();

}  // namespace cnnlstm
