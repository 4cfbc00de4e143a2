// What is made of weights once and kept between inference calls: panels in the kernels' layout, and copies in
// autocast's dtype.
//
// A cache key is the storage and the place in it, and an entry holds for the contents: every edit, release or
// replacement of a matrix is detected, with or without autograd (`.data`, NumPy). Thread-safe. A forked child
// starts with an empty cache, since another thread may have held the parent's mutex.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/kernels.h"

namespace cnnlstm {

// Of every call of the operator: every so often it frees what belongs to weights that no longer exist.
void count_call();

struct WantedPanels {
  at::Tensor weight;  // (4H, K); undefined where none are wanted
  bool pays;          // whether the call gains by panels that are checked against the weight in every call
};

// The panels of each matrix, undefined where the call is to do without: where it does not pay and the weight
// is not frozen, and at the first use, since weights that every call creates anew are never reused.
std::vector<at::Tensor> prepacked(const std::vector<WantedPanels>& wanted, const Kernels& kernel);

// Copies in another dtype, without gradient; of float32 weights kept from the second use on, and frozen.
std::vector<at::Tensor> cast_weights(at::TensorList weights, at::ScalarType dtype);

// The caller promises not to edit these weights other than through autograd, whose edits are detected at no
// cost: their contents are not checked any more, and are packed at their next use. thaw() takes that back.
void freeze(at::TensorList weights);
void thaw(at::TensorList weights);
bool is_frozen(const at::Tensor& weight);

// Bytes of all that is kept. Of weights that no longer exist until the 32nd call that follows, or
// clear_prepacked().
int64_t prepacked_bytes();

// Frees all of it; what is frozen stays frozen, and is packed again at its next use.
void clear_prepacked();

}  // namespace cnnlstm
