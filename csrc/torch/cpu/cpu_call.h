// One call of the operator on CPU tensors, checked, with its rows in the kernels' order.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/kernels.h"
#include "torch/call.h"

namespace cnnlstm {

// The rows of an input: in compact order; only valid ones, evenly spaced within a step; or any order that
// needs no copy.
enum class InputOrder { compact, evenly_spaced, any };

struct CpuCall : Call {
  // Throws like Call, and where lengths do not lie between 0 and T.
  CpuCall(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0, at::TensorList weights,
          const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset,
          const OptionalTensor& dropout_mask, bool bidirectional);

  bool ragged;         // padded, but not every sequence has T steps
  int64_t valid_rows;  // rows of steps that exist: the number of rows of compact matrices

  Sequences seq;      // points into the members below
  at::Tensor gather;  // ragged only: (valid_rows) int64, the caller's row of each compact row
  int threads;        // for one layer

  // Of layer l, direction d. All but w_ih are contiguous.
  at::Tensor w_ih(int64_t l, int64_t d) const { return weight(l, d, 0); }
  at::Tensor w_hh(int64_t l, int64_t d) const { return weight(l, d, 1).contiguous(); }
  at::Tensor w_hr(int64_t l, int64_t d) const { return weight(l, d, weights_per_direction - 1).contiguous(); }
  at::Tensor b_ih(int64_t l, int64_t d) const { return weight(l, d, 2).contiguous(); }
  at::Tensor b_hh(int64_t l, int64_t d) const { return weight(l, d, 3).contiguous(); }

  // The input as a matrix of rows. Sets `map` to their positions, valid as long as this object.
  at::Tensor input_rows(const at::Tensor& input, InputOrder order, RowMap* map);

  // The input of layer l + 1, compact: layer l's output (`inner`, in the caller's rows) times its mask.
  at::Tensor between_layers(const at::Tensor& inner, int64_t l) const;
  at::Tensor compact_mask(int64_t l) const;  // undefined without dropout

  // Zeroes the rows of steps that do not exist, of a tensor that shape() describes.
  void zero_padding(const at::Tensor& tensor) const;

 private:
  void read_lengths(const OptionalTensor& lengths);
  void index_rows();

  at::Tensor reset_, mask_;
  std::vector<int64_t> active_, batch_, rows_step_, rows_row_, compact_step_, compact_row_, input_step_,
      input_row_;
};

}  // namespace cnnlstm
