// What the driver asks of the device that its tensors are on: device.cpp answers for a GPU,
// ../emulator/ops.cpp for the CPU that runs the same kernels in tests.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/plan.h"

namespace cnnlstm {

CnnlstmPlan plan_on(at::Device device, bool backward, int number, int64_t H, int64_t B, int64_t D);

void* current_stream(at::Device device);

// Whether a product of float32 in the recurrence is one of TF32.
bool wants_tf32();

// Bytes of gate inputs that exist at once, unless one step has more. Each chunk of them costs a launch that
// loads the weights anew.
int64_t most_gate_inputs();

}  // namespace cnnlstm
