#pragma once

#include <ATen/core/Tensor.h>

#include "cpu/kernels.h"

namespace cnnlstm {

// ATen's BRGEMM micro-kernels where they run on AMX and the active kernels' panels have their layout, else
// nulls.
MatrixEngine matrix_engine(at::ScalarType dtype);

// The same for products of int8.
MatrixEngine int8_engine();

}  // namespace cnnlstm
