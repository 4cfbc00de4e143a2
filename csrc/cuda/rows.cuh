// The rows of a call: which sequence has a step at which time, and where it lies. Steps are numbered in a
// direction's own order. Rows have 32-bit indices, which the launches ensure; elements need 64.
#pragma once

#include "cuda/arguments.h"
#include "cuda/device.cuh"

namespace cnnlstm {

class Rows {
 public:
  CNNLSTM_DEVICE Rows(const CnnlstmRows& rows, int direction)
      : T(static_cast<int>(rows.T)), B(static_cast<int>(rows.B)), rows_(rows), direction_(direction) {}

  const int T, B;

  CNNLSTM_DEVICE int time(int s) const { return direction_ == 0 ? s : T - 1 - s; }

  // First row of step s, or of the nearest that exists.
  CNNLSTM_DEVICE int first(int s) const {
    const int t = time(s < 0 ? 0 : s < T ? s : T - 1);
    return rows_.offsets == nullptr ? t * B : static_cast<int>(device::load(rows_.offsets + t));
  }

  // Steps of sequence b. A length out of range is clamped to the nearest valid one.
  CNNLSTM_DEVICE int length(int b) const {
    if (rows_.lengths == nullptr) return T;
    const int64_t length = device::load(rows_.lengths + b);
    return length < 0 ? 0 : length < T ? static_cast<int>(length) : T;
  }

  // Whether a sequence of that length has a step s, which may lie outside of 0..T-1.
  CNNLSTM_DEVICE bool active(int s, int length) const { return s >= 0 && s < T && time(s) < length; }

  // Whether the state that enters an active step is kept, not reset.
  CNNLSTM_DEVICE bool kept(int s, int b, bool active) const {
    return active && (rows_.reset == nullptr || device::load(rows_.reset + int64_t{time(s)} * B + b) == 0);
  }

  // Whether a row exists for a sequence in every step: not so in a packed sequence.
  CNNLSTM_DEVICE bool padded() const { return rows_.offsets == nullptr; }

 private:
  const CnnlstmRows& rows_;
  const int direction_;
};

template <class F>
void each_array_of_rows(const CnnlstmRows& rows, F f) {
  f(rows.lengths, rows.B);
  f(rows.offsets, rows.T);
  f(rows.reset, rows.T * rows.B);
}

}  // namespace cnnlstm
