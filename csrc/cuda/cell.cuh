// The cell: activations and cell equation, forward and backward. The only place to change an activation.
//
//     c = f * c_prev + i * g,    h = o * tanh(c),    i, f, o = sigmoid(.), g = tanh(.)
//
// kernels/README.md derives the backward pass. All of it is float32.
#pragma once

#include "cuda/compute_types.cuh"

namespace cnnlstm {

template <class ComputeType>
struct Cell {
  static constexpr float kLog2e = 1.44269504f;

  CNNLSTM_DEVICE static float sigmoid(float x) {
    if constexpr (ComputeType::kFastTanh) return 0.5f * device::tanh_fast(0.5f * x) + 0.5f;
    return device::reciprocal_fast(1.0f + device::exp2_fast(-kLog2e * x));  // 1 / inf is the limit
  }

  CNNLSTM_DEVICE static float tanh(float x) {
    if constexpr (ComputeType::kFastTanh) return device::tanh_fast(x);
    // 1 and -1 where the power is inf and 0
    const float y = 1.0f - 2.0f * device::reciprocal_fast(1.0f + device::exp2_fast(2.0f * kLog2e * x));
    // the difference loses digits near zero; there the Taylor series up to x^9, whose next term is below 1e-8
    // of the sum
    const float q = x * x;
    const float series =
        x * (1.0f + q * (-1.0f / 3 + q * (2.0f / 15 + q * (-17.0f / 315 + q * (62.0f / 2835)))));
    return q < 0.0625f ? series : y;
  }

  struct State {
    float i, f, g, o, c, h;
  };

  // Gates before their activation, and the c that enters.
  CNNLSTM_DEVICE static State forward(float a_i, float a_f, float a_g, float a_o, float c_prev) {
    State now;
    now.i = sigmoid(a_i), now.f = sigmoid(a_f), now.g = tanh(a_g), now.o = sigmoid(a_o);
    now.c = now.f * c_prev + now.i * now.g;
    now.h = hidden(now.o, now.c);
    return now;
  }

  CNNLSTM_DEVICE static float hidden(float o, float c) { return o * tanh(c); }

  struct Gradients {
    float i, f, g, o, c_prev;
  };

  // Activated gates, c, the c that entered, and the gradients of h and c.
  CNNLSTM_DEVICE static Gradients backward(float i, float f, float g, float o, float c, float c_prev,
                                           float dh, float dc) {
    const float tanh_c = tanh(c);
    dc += dh * o * (1.0f - tanh_c * tanh_c);
    return {dc * g * i * (1.0f - i), dc * c_prev * f * (1.0f - f), dc * i * (1.0f - g * g),
            dh * tanh_c * o * (1.0f - o), dc * f};
  }
};

}  // namespace cnnlstm
