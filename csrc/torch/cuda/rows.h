// A padded or packed batch as one description: which sequences are at each time, and where their rows lie.
#pragma once

#include <vector>

#include "cuda/arguments.h"
#include "torch/call.h"

namespace cnnlstm {

// Steps from begin to end in the order of each direction, and the rows that they are there.
struct Chunk {
  int64_t begin, end;
  int64_t first[2], count[2];
};

class Rows {
 public:
  Rows(const Call& call, const OptionalTensor& lengths, const OptionalTensor& reset);

  const int64_t T, B, N;  // padded rows lie at t * B + b

  // Pointers into tensors that live as long as this.
  CnnlstmRows raw() const;

  // All steps in runs of at most so many rows, but of at least one step.
  std::vector<Chunk> chunks(int64_t D, int64_t rows) const;

  // (B) int64: the row of the step with which each sequence starts in a direction; any row for one of no
  // steps.
  at::Tensor first(int64_t direction) const;

  // (B, 1) bool, undefined where all are true: whether each sequence has any steps; whether the first of them
  // in a direction is entered by the given state.
  at::Tensor some() const;
  at::Tensor entered(int64_t direction) const;

 private:
  int64_t start(int64_t time) const;
  at::Tensor first_time(int64_t direction) const;
  at::Tensor indices() const;  // 0 to B - 1

  at::Device device_;
  at::Tensor lengths_;           // (B) int64, undefined: all T
  at::Tensor offsets_;           // (T) int64: first row of each time of a packed sequence
  at::Tensor reset_;             // (T, B) bool
  std::vector<int64_t> starts_;  // the same as offsets_ on the host, and N as the last
};

// `a` where the mask is true, else `b`; an undefined mask is true everywhere.
at::Tensor chosen(const at::Tensor& mask, const at::Tensor& a, const at::Tensor& b);
at::Tensor chosen_or_zero(const at::Tensor& mask, const at::Tensor& a);

}  // namespace cnnlstm
