#pragma once

#include <ATen/core/Tensor.h>

#include "cpu/kernels.h"

namespace cnnlstm {

// ATen's BRGEMM micro-kernel for bf16, if it runs on AMX and reads the panel layout of the active kernels;
// else null pointers.
GemmMicrokernel bf16_microkernel(at::ScalarType dtype);

// The same for int8.
GemmMicrokernel int8_microkernel();

// How often either has been released by a thread that had multiplied with it.
int64_t microkernel_uses();

}  // namespace cnnlstm
