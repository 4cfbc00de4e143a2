#include "torch/cpu/cpu_call.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cpu/threads.h"

namespace cnnlstm {

namespace {

// The number of threads for one layer: more would cost more in barriers than they save.
int choose_threads(const CpuCall& call) {
  if (is_forked_child()) return 1;
  // Approximate nanoseconds of one step of one direction on one thread, weights in L2 at a batch of 1.
  const double features = call.P + double(call.I + (call.L - 1) * call.D * call.P) / call.L;
  const double step =
      double(call.valid_rows) / std::max<int64_t>(call.T, 1) * (0.12 * call.H * features + 4.0 * call.H);
  // Directions run concurrently without barriers; more threads than directions need one after every step.
  const double by_step = call.D * std::max(1.0, step / 700.0);
  const double most = std::min(step * call.D * call.T / 3500.0, by_step);
  return int(std::clamp<double>(most, 1.0, at::get_num_threads()));
}

// input (T, B, I) as rows (T * B, I). ATen is slow at copying inputs whose time dimension is contiguous, such
// as the feature maps of a CNN along their width.
at::Tensor flat_rows(const at::Tensor& input) {
  const int64_t T = input.size(0), B = input.size(1), I = input.size(2);
  if (input.is_contiguous() || input.stride(0) != 1) return input.reshape({T * B, I});
  const at::Tensor rows = at::empty({T * B, I}, input.options());
  const Kernels& kernel = kernels(input.scalar_type() == at::kBFloat16);
  const int64_t bytes = input.element_size(), part = 64, parts = (I + part - 1) / part;
  at::parallel_for(0, B * parts, 1 + (1 << 14) / (part * T), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t b = k / parts, i = k % parts * part;
      kernel.transpose(static_cast<char*>(rows.mutable_data_ptr()) + (b * I + i) * bytes, B * I,
                       static_cast<const char*>(input.const_data_ptr()) +
                           (b * input.stride(1) + i * input.stride(2)) * bytes,
                       input.stride(2), std::min(part, I - i), T);
    }
  });
  return rows;
}

}  // namespace

CpuCall::CpuCall(const at::Tensor& input, const at::Tensor& h0, const at::Tensor& c0, at::TensorList weights,
                 const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                 const OptionalTensor& reset, const OptionalTensor& dropout_mask, bool bidirectional)
    : Call(input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, bidirectional) {
  TORCH_CHECK(options.device().is_cpu(), "input must be on the CPU, got ", options.device(), ".");
  TORCH_CHECK(dtype() == at::kFloat || dtype() == at::kBFloat16, "input must be float32 or bfloat16, got ",
              dtype(), ".");
  batch_.resize(B);
  std::iota(batch_.begin(), batch_.end(), 0);
  ragged = false;
  if (packed) {
    active_ = this->batch_sizes;
  } else {
    read_lengths(lengths);
  }
  valid_rows = std::accumulate(active_.begin(), active_.end(), int64_t(0));
  active_.push_back(0);
  index_rows();
  if (reset.has_value()) {
    reset_ = reset->contiguous();
    seq.reset = static_cast<const uint8_t*>(reset_.const_data_ptr());
  }
  if (dropout_mask.has_value()) mask_ = dropout_mask->contiguous();
  threads = choose_threads(*this);
}

void CpuCall::read_lengths(const OptionalTensor& lengths) {
  active_.assign(T, B);
  if (!lengths.has_value()) return;
  const at::Tensor contiguous = lengths->contiguous();
  const int64_t* steps = contiguous.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < B; ++b) {
    TORCH_CHECK(steps[b] >= 0 && steps[b] <= T, "lengths must lie between 0 and ", T, ", got ", steps[b],
                ".");
    ragged |= steps[b] != T;
  }
  if (!ragged) return;
  std::stable_sort(batch_.begin(), batch_.end(), [&](int64_t a, int64_t b) { return steps[a] > steps[b]; });
  int64_t n = B;
  for (int64_t t = 0; t < T; ++t) {
    while (n > 0 && steps[batch_[n - 1]] <= t) --n;
    active_[t] = n;
  }
}

void CpuCall::index_rows() {
  compact_row_.resize(B);
  std::iota(compact_row_.begin(), compact_row_.end(), 0);
  compact_step_.resize(T);
  rows_step_.resize(T);
  for (int64_t t = 0, before = 0; t < T; before += active_[t++]) {
    compact_step_[t] = before;
    rows_step_[t] = packed ? before : t * B;
  }
  rows_row_ = batch_;
  seq = {T,
         B,
         active_.data(),
         batch_.data(),
         {rows_step_.data(), rows_row_.data()},
         {compact_step_.data(), compact_row_.data()},
         nullptr};
  if (!ragged) return;
  gather = at::empty({valid_rows}, at::kLong);
  int64_t* index = gather.mutable_data_ptr<int64_t>();
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t r = 0; r < active_[t]; ++r) *index++ = t * B + batch_[r];
  }
}

at::Tensor CpuCall::input_rows(const at::Tensor& input, InputOrder order, RowMap* map) {
  *map = seq.compact;
  if (packed) return input;
  const bool batch_first = !input.is_contiguous() && input.transpose(0, 1).is_contiguous();
  if (ragged && order != InputOrder::any) {
    if (!batch_first) return flat_rows(input).index_select(0, gather);
    at::Tensor index = at::empty_like(gather);
    int64_t* at = index.mutable_data_ptr<int64_t>();
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t r = 0; r < active_[t]; ++r) *at++ = batch_[r] * T + t;
    }
    return input.transpose(0, 1).reshape({rows, I}).index_select(0, index);
  }
  if (!batch_first || order == InputOrder::compact) {
    if (ragged) *map = seq.rows;
    return flat_rows(input);
  }
  input_step_.resize(T);
  std::iota(input_step_.begin(), input_step_.end(), 0);
  input_row_.resize(B);
  for (int64_t r = 0; r < B; ++r) input_row_[r] = batch_[r] * T;
  *map = {input_step_.data(), input_row_.data()};
  return input.transpose(0, 1).reshape({rows, I});
}

at::Tensor CpuCall::compact_mask(int64_t l) const {
  if (!mask_.defined()) return mask_;
  const at::Tensor mask = mask_.select(0, l).view({rows, D * P});
  return ragged ? mask.index_select(0, gather) : mask;
}

at::Tensor CpuCall::between_layers(const at::Tensor& inner, int64_t l) const {
  const at::Tensor x = ragged ? inner.view({rows, D * P}).index_select(0, gather) : inner.view({rows, D * P});
  const at::Tensor mask = compact_mask(l);
  return mask.defined() ? x.mul(mask) : x;
}

void CpuCall::zero_padding(const at::Tensor& tensor) const {
  if (!ragged || tensor.numel() == 0) return;
  const int64_t bytes = tensor.size(-1) * tensor.element_size();
  const int64_t blocks = tensor.numel() / (rows * tensor.size(-1));
  char* data = static_cast<char*>(tensor.mutable_data_ptr());
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t r = active_[t]; r < B; ++r)
        std::memset(data + (block * rows + t * B + batch_[r]) * bytes, 0, bytes);
    }
  }
}

}  // namespace cnnlstm
