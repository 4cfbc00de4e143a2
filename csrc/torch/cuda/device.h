// What the operators need to know of the device of their tensors: device.cpp implements it for a GPU,
// ../emulator/ops.cpp for the CPU that runs the same kernels in tests.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/plan.h"

namespace cnnlstm {

CnnlstmPlan plan_on(at::Device device, bool backward, int compute_type, int64_t H, int64_t B, int64_t D);

void* current_stream(at::Device device);

// Whether a product of float32 in the recurrence is one of TF32.
bool wants_tf32();

// Bytes of gate inputs that exist at once, unless one step has more. Each chunk of them costs a launch that
// loads the weights again.
int64_t most_gate_inputs();

}  // namespace cnnlstm
