// What the 32 lanes of a warp compute together, as the PTX ISA describes mma.sync and ldmatrix. It shares no
// code with fragments.h, which the kernels use: each is a check of the other.
#pragma once

#include <stdint.h>

namespace cnnlstm::emulator {

constexpr int kLanes = 32;

enum class Factors { kBf16, kFp16, kTf32 };

// The operands of a lane in a product, d += a b.
struct ProductLane {
  Factors factors;
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};
void multiply(void* const* product_lanes);

// 16 bytes of shared memory that a lane addresses, and its four registers.
struct MatricesLane {
  const char* row;
  uint32_t* registers;
};
void read_matrices(void* const* matrices_lanes);

// In: the value of a lane; out: its result.
struct ShuffleLane {
  float value;
  int mask;
};
void exchange(void* const* shuffle_lanes);

}  // namespace cnnlstm::emulator
