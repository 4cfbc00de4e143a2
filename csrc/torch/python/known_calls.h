// Calls of a layer that are known to run by a compiled CPU kernel, answered without any Python code. What is
// known is known for the process. Every function is called with the interpreter's lock held.
#pragma once

#include <Python.h>

#include <string>

namespace cnnlstm::known_calls {

// A call of functional.lstm with an input (T, B, I).
struct Stack {
  PyObject *backend, *weights, *input, *h0, *c0;  // h0: perhaps None, and then so is c0
  bool bidirectional;
};

// The result of layer(input, hx), a fast LSTM or a fast LSTMCell, as a new reference; null without an error
// where the call is not known, or is more than the operator on plain tensors without gradients. Throws what
// the operator throws.
PyObject* run(PyObject* layer, PyObject* input, PyObject* hx);

// From now on calls of the same kind and sizes are known to run by that backend. Ignores those that run()
// never answers. It forgets all others before they are too many.
void admit(PyObject* layer, PyObject* input, PyObject* hx, const std::string& backend);

// The same for a stack: its output, h_n and c_n.
PyObject* run(const Stack& stack);
void admit(const Stack& stack, const std::string& backend);

void forget();

}  // namespace cnnlstm::known_calls
