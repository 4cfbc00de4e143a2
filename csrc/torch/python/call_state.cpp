#include "torch/python/call_state.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>

namespace cnnlstm {

namespace {

constexpr int kMaxDepth = 16;

// What every thread starts with, and what inference mode changes of it. Everything that takes part in the
// calls of operators has a key of its own here: dispatch modes, functorch's transforms, the tracer, autocast.
bool nothing_takes_part() {
  const c10::impl::LocalDispatchKeySet keys = c10::impl::tls_local_dispatch_key_set();
  return (keys.included_ - c10::default_included_set).empty() &&
         (c10::default_excluded_set - keys.excluded_).empty();
}

// Strided memory and autograd's bookkeeping: no wrapper, no lazy conjugation or negation, no sparse layout.
constexpr c10::DispatchKeySet kPlainKeys =
    c10::DispatchKeySet(c10::DispatchKeySet::RAW, c10::full_backend_mask) |
    c10::DispatchKeySet({c10::DispatchKey::Dense, c10::DispatchKey::AutogradFunctionality,
                         c10::DispatchKey::ADInplaceOrView}) |
    c10::autocast_dispatch_keyset;

bool is_plain(PyObject* value, int depth) {
  if (THPVariable_CheckExact(value))
    return (THPVariable_Unpack(value).key_set().raw_repr() & ~kPlainKeys.raw_repr()) == 0;
  if (value == Py_None || PyLong_Check(value) || PyFloat_Check(value) || PyUnicode_Check(value)) return true;
  if (depth == kMaxDepth) return false;
  if (PyTuple_Check(value) || PyList_Check(value)) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(value); ++i)
      if (!is_plain(PySequence_Fast_GET_ITEM(value, i), depth + 1)) return false;
    return true;
  }
  if (!PyDict_Check(value)) return false;
  Py_ssize_t position = 0;
  for (PyObject* item; PyDict_Next(value, &position, nullptr, &item);)
    if (!is_plain(item, depth + 1)) return false;
  return true;
}

bool requires_grad(PyObject* value, int depth) {
  if (PyObject_TypeCheck(value, reinterpret_cast<PyTypeObject*>(THPVariableClass)))
    return THPVariable_Unpack(value).requires_grad();
  if (depth == kMaxDepth) return true;
  if (PyTuple_Check(value) || PyList_Check(value)) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(value); ++i)
      if (requires_grad(PySequence_Fast_GET_ITEM(value, i), depth + 1)) return true;
  } else if (PyDict_Check(value)) {
    Py_ssize_t position = 0;
    for (PyObject* item; PyDict_Next(value, &position, nullptr, &item);)
      if (requires_grad(item, depth + 1)) return true;
  }
  return false;
}

}  // namespace

bool is_plain_state() {
  // Forward-mode derivatives exist only within a level, and levels are numbered from 0.
  return nothing_takes_part() && !at::impl::torch_function_mode_enabled() &&
         torch::autograd::ForwardADLevel::try_get_by_idx(0) == nullptr;
}

bool is_plain_call(PyObject* args) { return is_plain_state() && is_plain(args, 0); }

bool is_plain_tensor(PyObject* object) { return THPVariable_CheckExact(object) && is_plain(object, 0); }

bool needs_grad(PyObject* args) { return c10::GradMode::is_enabled() && requires_grad(args, 0); }

}  // namespace cnnlstm
