// Whether a call is one that an engine may take over.
#pragma once

#include <Python.h>

namespace cnnlstm {

// See plain_call and needs_grad in cnnlstm_fast/encoder/guard.py. Both run no Python code.
bool is_plain_call(PyObject* args);
bool needs_grad(PyObject* args);

}  // namespace cnnlstm
