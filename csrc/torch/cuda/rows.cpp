#include "torch/cuda/rows.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>

namespace cnnlstm {

Rows::Rows(const Call& call, const OptionalTensor& lengths, const OptionalTensor& reset)
    : T(call.T), B(call.B), N(call.rows), device_(call.options.device()) {
  if (reset.has_value()) reset_ = reset->contiguous();
  if (lengths.has_value()) lengths_ = lengths->contiguous();
  if (!call.packed) return;
  // From pinned memory, which PyTorch keeps until the copy is done: the host does not wait for it.
  const auto options = at::TensorOptions().dtype(at::kLong).pinned_memory(device_.is_cuda());
  const at::Tensor both = at::empty({B + T}, options);
  int64_t* steps = both.mutable_data_ptr<int64_t>();
  std::fill(steps, steps + B, 0);
  starts_.assign(T + 1, 0);
  for (int64_t t = 0; t < T; ++t) {
    const int64_t going_on = t + 1 < T ? call.batch_sizes[t + 1] : 0;
    std::fill(steps + going_on, steps + call.batch_sizes[t], t + 1);
    starts_[t + 1] = starts_[t] + call.batch_sizes[t];
  }
  std::copy(starts_.begin(), starts_.end() - 1, steps + B);
  const at::Tensor there = both.to(device_, /*non_blocking=*/true);
  lengths_ = there.narrow(0, 0, B);
  offsets_ = there.narrow(0, B, T);
}

CnnlstmRows Rows::raw() const {
  const auto integers = [](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.const_data_ptr<int64_t>() : nullptr;
  };
  return {T,
          B,
          N,
          integers(lengths_),
          integers(offsets_),
          reset_.defined() ? static_cast<const uint8_t*>(reset_.const_data_ptr()) : nullptr};
}

int64_t Rows::start(int64_t time) const { return starts_.empty() ? time * B : starts_[time]; }

std::vector<Chunk> Rows::chunks(int64_t D, int64_t rows) const {
  const int64_t steps = std::max<int64_t>(1, rows / B);
  std::vector<Chunk> found;
  for (int64_t begin = 0; begin < T; begin += steps) {
    Chunk chunk{begin, std::min(begin + steps, T), {}, {}};
    for (int64_t d = 0; d < D; ++d) {
      const int64_t from = d == 0 ? chunk.begin : T - chunk.end, to = d == 0 ? chunk.end : T - chunk.begin;
      chunk.first[d] = start(from);
      chunk.count[d] = start(to) - start(from);
    }
    found.push_back(chunk);
  }
  return found;
}

at::Tensor Rows::indices() const {
  return at::arange(B, at::TensorOptions().dtype(at::kLong).device(device_));
}

at::Tensor Rows::first_time(int64_t direction) const {
  if (direction == 0) return at::zeros({B}, at::TensorOptions().dtype(at::kLong).device(device_));
  if (!lengths_.defined()) return at::full({B}, T - 1, at::TensorOptions().dtype(at::kLong).device(device_));
  return (lengths_ - 1).clamp_(0, T - 1);
}

at::Tensor Rows::first(int64_t direction) const {
  const at::Tensor time = first_time(direction);
  const at::Tensor start = offsets_.defined() ? offsets_.index_select(0, time) : time * B;
  return (start + indices()).clamp_(0, N - 1);
}

at::Tensor Rows::some() const { return lengths_.defined() ? (lengths_ > 0).unsqueeze(1) : at::Tensor(); }

at::Tensor Rows::entered(int64_t direction) const {
  if (!reset_.defined()) return some();
  const at::Tensor kept =
      reset_.gather(0, first_time(direction).unsqueeze(0)).logical_not_().squeeze(0).unsqueeze(1);
  return lengths_.defined() ? kept.logical_and(some()) : kept;
}

at::Tensor chosen(const at::Tensor& mask, const at::Tensor& a, const at::Tensor& b) {
  return mask.defined() ? at::where(mask, a, b) : a;
}

at::Tensor chosen_or_zero(const at::Tensor& mask, const at::Tensor& a) {
  return mask.defined() ? at::where(mask, a, at::zeros({}, a.options())) : a;
}

}  // namespace cnnlstm
