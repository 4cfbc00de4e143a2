// The compute types of the kernels: what is stored, how products and activations are computed.
#pragma once

#include "cuda/arguments.h"
#include "cuda/device.cuh"

namespace cnnlstm {

// float32 with exact products.
struct Exact {
  using Stored = float;
  static constexpr int kComputeType = CNNLSTM_FLOAT32;
  static constexpr bool kTensorCores = false;
  static constexpr bool kFastTanh = false;
  CNNLSTM_DEVICE static float factor(float x) { return x; }
};

// float32 with TF32 products.
struct Tf32 {
  using Stored = float;
  static constexpr int kComputeType = CNNLSTM_TF32;
  static constexpr bool kTensorCores = true;
  static constexpr bool kFastTanh = false;
  CNNLSTM_DEVICE static float factor(float x) { return device::round_tf32(x); }
};

struct Bf16 {
  using Stored = bf16;
  static constexpr int kComputeType = CNNLSTM_BFLOAT16;
  static constexpr bool kTensorCores = true;
  static constexpr bool kFastTanh = true;  // its error is a quarter of the rounding to bfloat16
  CNNLSTM_DEVICE static bf16 factor(bf16 x) { return x; }
};

struct Fp16 {
  using Stored = fp16;
  static constexpr int kComputeType = CNNLSTM_FLOAT16;
  static constexpr bool kTensorCores = true;
  static constexpr bool kFastTanh = false;
  CNNLSTM_DEVICE static fp16 factor(fp16 x) { return x; }
};

// The four gates of a unit, which lie beside each other and are loaded and stored together.
template <typename T>
struct alignas(4 * sizeof(T)) Quad {
  T value[4];
};

template <typename T>
CNNLSTM_DEVICE Quad<T> quad(float i, float f, float g, float o) {
  return {{device::from_float<T>(i), device::from_float<T>(f), device::from_float<T>(g),
           device::from_float<T>(o)}};
}

}  // namespace cnnlstm
