// Whether a call is one that an engine may take over.
#pragma once

#include <Python.h>

namespace cnnlstm {

// See their docstrings in guard.cpp.
bool is_plain_call(PyObject* args);
bool needs_grad(PyObject* args);

// The two parts of is_plain_call for a call with tensors alone.
bool is_plain_state();
bool is_plain_tensor(PyObject* object);

}  // namespace cnnlstm
