// cnnlstm_fast._guard: whether a captured region may run. Plain methods of Python's C interface: they are
// called before every call of a region, and pybind11's own would take a large part of the time.
#include <pybind11/pybind11.h>
#include <structmember.h>
#include <torch/csrc/Dtype.h>

#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <span>

#include "torch/python/call_state.h"
#include "torch/python/gate.h"
#include "torch/python/idle_team.h"
#include "torch/python/known_calls.h"
#include "torch/python/pattern.h"
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
  } catch (const c10::Error& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what_without_backtrace());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyTypeObject* snapshot_type = nullptr;  // made with the module

struct SnapshotObject {
  PyObject_HEAD cnnlstm::Snapshot* snapshot;
};

cnnlstm::Snapshot& snapshot_of(PyObject* self) { return *reinterpret_cast<SnapshotObject*>(self)->snapshot; }

PyObject* snapshot_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"module", "ignored", "unread", "module_class", "globals", nullptr};
  PyObject *module, *ignored, *unread, *module_class, *globals;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!O!O!O!:Snapshot", const_cast<char**>(names), &module,
                                   &PyFrozenSet_Type, &ignored, &PyFrozenSet_Type, &unread, &PyType_Type,
                                   &module_class, &PyTuple_Type, &globals))
    return nullptr;
  return with_python_errors([&]() -> PyObject* {
    if (!PyObject_TypeCheck(module, reinterpret_cast<PyTypeObject*>(module_class)))
      throw py::type_error("module must be an nn.Module");
    // Before the object, which the collector can visit from its first moment on.
    auto snapshot = std::make_unique<cnnlstm::Snapshot>(
        module, ignored, unread, reinterpret_cast<PyTypeObject*>(module_class), globals);
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

PyMethodDef snapshot_methods[] = {
    {"check", snapshot_check, METH_NOARGS, "0: unchanged, 1: only weights changed, 2: changed."}, {}};
PyType_Slot snapshot_slots[] = {{Py_tp_doc, const_cast<char*>("What a module and its submodules were.")},
                                {Py_tp_new, reinterpret_cast<void*>(snapshot_new)},
                                {Py_tp_dealloc, reinterpret_cast<void*>(snapshot_dealloc)},
                                {Py_tp_traverse, reinterpret_cast<void*>(snapshot_traverse)},
                                {Py_tp_clear, reinterpret_cast<void*>(snapshot_clear)},
                                {Py_tp_methods, snapshot_methods},
                                {}};
PyType_Spec snapshot_spec = {"cnnlstm_fast._guard.Snapshot", sizeof(SnapshotObject), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, snapshot_slots};

// Of a snapshot and functions, which it keeps alive.
struct GateObject {
  PyObject_HEAD PyObject *snapshot, *forward;
  cnnlstm::Gate* gate;
  cnnlstm::Pattern *arguments, *results;
};

GateObject& gate_of(PyObject* self) { return *reinterpret_cast<GateObject*>(self); }

PyObject* gate_new(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject *module, *snapshot, *kinds, *forward, *arguments, *results, *marker;
  int threads;
  if (!PyArg_ParseTuple(args, "OO!O!iOOOO:Gate", &module, snapshot_type, &snapshot, &PyTuple_Type, &kinds,
                        &threads, &forward, &arguments, &results, &marker))
    return nullptr;
  return with_python_errors([&]() -> PyObject* {
    std::vector<cnnlstm::Gate::Argument> tensors;
    for (const py::handle kind : py::reinterpret_borrow<py::tuple>(kinds)) {
      const auto [dtype, rank] = kind.cast<std::pair<py::object, int64_t>>();
      if (!THPDtype_Check(dtype.ptr())) throw py::type_error("kinds must be pairs of a dtype and a rank");
      tensors.push_back({reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type, rank});
    }
    const auto pattern = [&](PyObject* example) {
      return std::make_unique<cnnlstm::Pattern>(py::reinterpret_borrow<py::object>(example),
                                                py::reinterpret_borrow<py::object>(marker));
    };
    auto given = pattern(arguments), found = pattern(results);
    auto gate = std::make_unique<cnnlstm::Gate>(module, snapshot_of(snapshot), std::move(tensors), threads);
    PyObject* self = type->tp_alloc(type, 0);
    if (self == nullptr) return nullptr;
    gate_of(self).snapshot = Py_NewRef(snapshot);
    gate_of(self).forward = Py_NewRef(forward);
    gate_of(self).gate = gate.release();
    gate_of(self).arguments = given.release();
    gate_of(self).results = found.release();
    return self;
  });
}

int gate_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(gate_of(self).snapshot);
  Py_VISIT(gate_of(self).forward);
  return 0;
}

// Without its function it answers no call, and so breaks the cycle of a function that holds the module.
int gate_clear(PyObject* self) {
  Py_CLEAR(gate_of(self).forward);
  return 0;
}

void gate_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  delete gate_of(self).gate;
  delete gate_of(self).arguments;
  delete gate_of(self).results;
  Py_XDECREF(gate_of(self).snapshot);
  Py_XDECREF(gate_of(self).forward);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

std::span<PyObject* const> items_of(PyObject* tuple) {
  return {PySequence_Fast_ITEMS(tuple), static_cast<size_t>(PyTuple_GET_SIZE(tuple))};
}

// Whether there are two arguments, of which number `tuple` is one.
bool two_arguments(PyObject* const* args, Py_ssize_t count, int tuple) {
  if (count == 2 && PyTuple_CheckExact(args[tuple])) return true;
  PyErr_SetString(PyExc_TypeError, "expected two arguments, one of them a tuple of tensors");
  return false;
}

PyObject* gate_enter(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (!two_arguments(args, count, 1)) return nullptr;
  return with_python_errors([&] {
    return PyLong_FromLong(static_cast<long>(gate_of(self).gate->enter(args[0], items_of(args[1]))));
  });
}

PyObject* gate_run(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 3 || !PyTuple_CheckExact(args[1]) || !PyDict_CheckExact(args[2])) {
    PyErr_SetString(PyExc_TypeError, "expected a module, a tuple and a dict");
    return nullptr;
  }
  return with_python_errors([&]() -> PyObject* {
    GateObject& gate = gate_of(self);
    std::vector<PyObject*> tensors;
    const auto call = py::reinterpret_steal<py::object>(PyTuple_Pack(2, args[1], args[2]));
    if (gate.forward == nullptr || !call || !gate.arguments->match(call.ptr(), tensors) ||
        gate.gate->enter(args[0], tensors) != cnnlstm::Entry::kRun)
      Py_RETURN_NONE;
    const auto forward = py::reinterpret_borrow<py::object>(gate.forward);
    const auto found = py::reinterpret_steal<py::object>(
        PyObject_Vectorcall(forward.ptr(), tensors.data(), tensors.size(), nullptr));
    if (!found) return nullptr;
    if (!PyTuple_CheckExact(found.ptr())) throw py::type_error("forward must return a tuple");
    return gate.results->fill(found.ptr()).release().ptr();
  });
}

PyObject* gate_remember(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (!two_arguments(args, count, 0)) return nullptr;
  return with_python_errors([&] {
    gate_of(self).gate->remember(items_of(args[0]), PyObject_IsTrue(args[1]) == 1);
    return Py_NewRef(Py_None);
  });
}

PyMethodDef gate_methods[] = {
    {"enter", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(gate_enter)), METH_FASTCALL,
     "enter(module, tensors, /)\n--\n\nWhat becomes of a call: RUN, EAGER, SETTLE or ADMIT of guard.py."},
    {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(gate_run)), METH_FASTCALL,
     "run(module, args, kwargs, /)\n--\n\nThe result of the call by forward, if its arguments are those of "
     "the "
     "captured call and enter() says RUN; else None."},
    {"remember", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(gate_remember)), METH_FASTCALL,
     "remember(tensors, runs, /)\n--\n\nWhether calls with these shapes run from now on."},
    {}};
PyMemberDef gate_members[] = {
    {"forward", T_OBJECT_EX, offsetof(GateObject, forward), 0, "What a call that runs is answered by."}, {}};
PyType_Slot gate_slots[] = {
    {Py_tp_doc, const_cast<char*>(
                    "Gate(module, snapshot, kinds, threads, forward, arguments, results, marker)\n--\n\n"
                    "All that is asked before a call runs by engines, at once.\n\n"
                    "kinds: the dtype and the rank of each tensor of the captured call; forward: takes them "
                    "and returns a tuple of the result's; arguments: (args, kwargs) of the captured call and "
                    "results its result, nested tuples, lists and dicts with the marker for each tensor.")},
    {Py_tp_new, reinterpret_cast<void*>(gate_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(gate_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(gate_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(gate_clear)},
    {Py_tp_methods, gate_methods},
    {Py_tp_members, gate_members},
    {}};
PyType_Spec gate_spec = {"cnnlstm_fast._guard.Gate", sizeof(GateObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, gate_slots};

PyObject* plain_call(PyObject*, PyObject* args) {
  return with_python_errors([&] { return PyBool_FromLong(cnnlstm::is_plain_call(args)); });
}

PyObject* needs_grad(PyObject*, PyObject* args) {
  return with_python_errors([&] { return PyBool_FromLong(cnnlstm::needs_grad(args)); });
}

PyObject* use_idle_team(PyObject*, PyObject*) {
  try {
    cnnlstm::idle_team::use();
  } catch (const std::exception& error) {  // such as too many threads; the call is right without it
    PyErr_SetString(PyExc_RuntimeError, error.what());
    PyErr_WriteUnraisable(nullptr);
  }
  Py_RETURN_NONE;
}

PyObject* end_idle_team(PyObject*, PyObject*) {
  cnnlstm::idle_team::end();
  Py_RETURN_NONE;
}

PyObject* run_known(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return with_python_errors([&]() -> PyObject* {
    if (count != 3) throw py::type_error("run_known takes a layer, its input and hx");
    PyObject* result = cnnlstm::known_calls::run(args[0], args[1], args[2]);
    return result == nullptr && !PyErr_Occurred() ? Py_NewRef(Py_None) : result;
  });
}

PyObject* admit_known(PyObject*, PyObject* args) {
  PyObject *layer, *input, *hx;
  const char* backend;
  if (!PyArg_ParseTuple(args, "OOOs:admit_known", &layer, &input, &hx, &backend)) return nullptr;
  return with_python_errors([&] {
    cnnlstm::known_calls::admit(layer, input, hx, backend);
    return Py_NewRef(Py_None);
  });
}

std::optional<cnnlstm::known_calls::Stack> stack_of(PyObject* const* args, Py_ssize_t count) {
  if (count < 6 || !PyBool_Check(args[5])) return std::nullopt;
  return cnnlstm::known_calls::Stack{args[0], args[1], args[2], args[3], args[4], args[5] == Py_True};
}

PyObject* run_known_stack(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return with_python_errors([&]() -> PyObject* {
    const auto stack = stack_of(args, count);
    if (!stack || count != 6) throw py::type_error("run_known_stack takes six arguments, see its docstring");
    PyObject* result = cnnlstm::known_calls::run(*stack);
    return result == nullptr && !PyErr_Occurred() ? Py_NewRef(Py_None) : result;
  });
}

PyObject* admit_known_stack(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return with_python_errors([&] {
    const auto stack = stack_of(args, count);
    if (!stack || count != 7) throw py::type_error("admit_known_stack takes seven arguments");
    cnnlstm::known_calls::admit(*stack, py::handle(args[6]).cast<std::string>());
    return Py_NewRef(Py_None);
  });
}

PyObject* forget_known(PyObject*, PyObject*) {
  cnnlstm::known_calls::forget();
  Py_RETURN_NONE;
}

PyMethodDef functions[] = {
    {"run_known", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(run_known)), METH_FASTCALL,
     "run_known(layer, input, hx, /)\n--\n\n"
     "The result of layer(input, hx), a fast LSTM or a fast LSTMCell, if a call of its kind and sizes was "
     "admitted\n"
     "and nothing but the operator itself takes part in it; else None. Runs no Python code."},
    {"admit_known", admit_known, METH_VARARGS,
     "admit_known(layer, input, hx, backend, /)\n--\n\n"
     "From now on run_known answers calls like this one by a compiled CPU backend, where it can."},
    {"run_known_stack", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(run_known_stack)),
     METH_FASTCALL,
     "run_known_stack(backend, weights, input, h0, c0, bidirectional, /)\n--\n\n"
     "run_known for a call of functional.lstm with an input (T, B, I): (output, h_n, c_n), or None."},
    {"admit_known_stack", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(admit_known_stack)),
     METH_FASTCALL,
     "admit_known_stack(backend, weights, input, h0, c0, bidirectional, chosen, /)\n--\n\n"
     "admit_known for such a call, which the backend `chosen` runs."},
    {"forget_known", forget_known, METH_NOARGS, "forget_known()\n--\n\nForgets what was admitted."},
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
    {"use_idle_team", use_idle_team, METH_NOARGS,
     "use_idle_team()\n--\n\n"
     "Before a call of an engine with threads of its own: from here until 0.2 s after the last such call the "
     "threads\n"
     "of GNU's OpenMP (PyTorch's on Linux) sleep microseconds after a parallel region, not milliseconds, and "
     "so leave\n"
     "their cores to the engine."},
    {"end_idle_team", end_idle_team, METH_NOARGS,
     "end_idle_team()\n--\n\nOpenMP's threads spin from here on, until use_idle_team() is called again."},
    {}};

}  // namespace

PYBIND11_MODULE(_guard, m) {
  m.doc() = "What a call of a captured region needs of Python and PyTorch.";
  snapshot_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&snapshot_spec));
  m.add_object("Snapshot", py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(snapshot_type)));
  m.add_object("Gate", py::reinterpret_steal<py::object>(PyType_FromSpec(&gate_spec)));
  if (PyModule_AddFunctions(m.ptr(), functions) != 0) throw py::error_already_set();
}
