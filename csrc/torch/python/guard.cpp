// cnnlstm_fast._guard: whether a captured region may run. Plain methods of Python's C interface: they are
// called before every call of a region, and pybind11's own would take a large part of the time.
#include <pybind11/pybind11.h>

#include <exception>
#include <memory>

#include "torch/python/call_state.h"
#include "torch/python/idle_team.h"
#include "torch/python/snapshot.h"

namespace py = pybind11;

namespace {

template <typename Body>
PyObject* with_python_errors(Body body) {
  try {
    return body();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

struct SnapshotObject {
  PyObject_HEAD cnnlstm::Snapshot* snapshot;
};

cnnlstm::Snapshot& snapshot_of(PyObject* self) { return *reinterpret_cast<SnapshotObject*>(self)->snapshot; }

PyObject* snapshot_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"module", "ignored", "module_class", "globals", nullptr};
  PyObject *module, *ignored, *module_class, *globals;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!O!O!:Snapshot", const_cast<char**>(names), &module,
                                   &PyFrozenSet_Type, &ignored, &PyType_Type, &module_class, &PyTuple_Type,
                                   &globals))
    return nullptr;
  return with_python_errors([&]() -> PyObject* {
    if (!PyObject_TypeCheck(module, reinterpret_cast<PyTypeObject*>(module_class)))
      throw py::type_error("module must be an nn.Module");
    // Before the object, which the collector can visit from its first moment on.
    auto snapshot = std::make_unique<cnnlstm::Snapshot>(
        module, ignored, reinterpret_cast<PyTypeObject*>(module_class), globals);
    PyObject* self = type->tp_alloc(type, 0);
    if (self != nullptr) reinterpret_cast<SnapshotObject*>(self)->snapshot = snapshot.release();
    return self;
  });
}

int snapshot_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const auto* snapshot = reinterpret_cast<SnapshotObject*>(self)->snapshot;
  return snapshot == nullptr ? 0 : snapshot->traverse(visit, arg);
}

int snapshot_clear(PyObject* self) {
  snapshot_of(self).clear();
  return 0;
}

void snapshot_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  delete reinterpret_cast<SnapshotObject*>(self)->snapshot;
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* snapshot_check(PyObject* self, PyObject*) {
  return with_python_errors([&] { return PyLong_FromLong(static_cast<long>(snapshot_of(self).check())); });
}

PyObject* snapshot_requires_grad(PyObject* self, void*) {
  return PyBool_FromLong(snapshot_of(self).requires_grad());
}

PyMethodDef snapshot_methods[] = {
    {"check", snapshot_check, METH_NOARGS, "0: unchanged, 1: only weights changed, 2: changed."}, {}};
PyGetSetDef snapshot_properties[] = {
    {"requires_grad", snapshot_requires_grad, nullptr, "Whether one of the tensors did.", nullptr}, {}};
PyType_Slot snapshot_slots[] = {{Py_tp_doc, const_cast<char*>("What a module and its submodules were.")},
                                {Py_tp_new, reinterpret_cast<void*>(snapshot_new)},
                                {Py_tp_dealloc, reinterpret_cast<void*>(snapshot_dealloc)},
                                {Py_tp_traverse, reinterpret_cast<void*>(snapshot_traverse)},
                                {Py_tp_clear, reinterpret_cast<void*>(snapshot_clear)},
                                {Py_tp_methods, snapshot_methods},
                                {Py_tp_getset, snapshot_properties},
                                {}};
PyType_Spec snapshot_spec = {"cnnlstm_fast._guard.Snapshot", sizeof(SnapshotObject), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, snapshot_slots};

PyObject* plain_call(PyObject*, PyObject* args) {
  return with_python_errors([&] { return PyBool_FromLong(cnnlstm::is_plain_call(args)); });
}

PyObject* needs_grad(PyObject*, PyObject* args) {
  return with_python_errors([&] { return PyBool_FromLong(cnnlstm::needs_grad(args)); });
}

PyMethodDef functions[] = {
    {"plain_call", plain_call, METH_O,
     "plain_call(args, /)\n--\n\n"
     "Whether nothing but the operators themselves takes part in a call with these arguments, a tuple.\n\n"
     "False under a mode of __torch_function__ (a default device is one) or __torch_dispatch__, a transform "
     "of\n"
     "torch.func, torch.jit.trace, make_fx, torch.export, autocast (of any device), or a level of "
     "forward-mode\n"
     "differentiation (in any thread); for a tensor of a subclass, a wrapper, a sparse layout, or with a "
     "lazy\n"
     "conjugation or negation; for an object that is no tensor, number, string or None, nor a list, tuple or "
     "dict\n"
     "of them (at most 16 deep). Dynamo cannot trace it: ask torch.compiler.is_compiling() first.\n"
     "Runs no Python code."},
    {"needs_grad", needs_grad, METH_O,
     "needs_grad(args, /)\n--\n\n"
     "Whether gradients are recorded and a tensor among the arguments, also in lists, tuples and dicts, "
     "requires\n"
     "one. Runs no Python code."},
    {}};

}  // namespace

PYBIND11_MODULE(_guard, m) {
  m.doc() = "What a call of a captured region needs of Python and PyTorch.";
  py::class_<cnnlstm::IdleTeam>(
      m, "IdleTeam",
      "While one exists, the threads of GNU's OpenMP (PyTorch's on Linux) sleep microseconds after a "
      "parallel region, not\n"
      "milliseconds, and so leave their cores to an engine with threads of its own.")
      .def(py::init<>());
  m.add_object("Snapshot", py::reinterpret_steal<py::object>(PyType_FromSpec(&snapshot_spec)));
  if (PyModule_AddFunctions(m.ptr(), functions) != 0) throw py::error_already_set();
}
