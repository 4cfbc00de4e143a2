// The parts of the module _C.
#pragma once

#include <pybind11/pybind11.h>

#include "cuda/plan.h"

void bind_plan(pybind11::module_& m);
pybind11::dict as_dict(const CnnlstmGpu& gpu);
