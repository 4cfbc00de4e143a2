// The parts of the module _C.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "cuda/plan.h"

void bind_plan(pybind11::module_& m);
pybind11::dict as_dict(const CnnlstmGpu& gpu);
int as_compute_type(const std::string& name);  // of CnnlstmComputeType
// Of cnnlstm_plan; `gpu`: of as_dict.
CnnlstmPlan plan_of(const pybind11::dict& gpu, bool backward, int compute_type, int64_t H, int64_t B, int D);
