// Whether a call is one that an engine may take over.
#pragma once

#include <Python.h>

namespace cnnlstm {

// See their docstrings in guard.cpp.
bool is_plain_call(PyObject* args);
bool needs_grad(PyObject* args);

}  // namespace cnnlstm
