#include "torch/python/known_calls.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "torch/python/call_state.h"

namespace py = pybind11;

namespace cnnlstm::known_calls {

namespace {

constexpr size_t kMostCalls = 4096;

// Names of attributes, made once.
struct Names {
  py::str parameters = intern("_parameters"), flat_weights_names = intern("_flat_weights_names"),
          num_layers = intern("num_layers"), bidirectional = intern("bidirectional"),
          batch_first = intern("batch_first"), proj_size = intern("proj_size"), dropout = intern("dropout"),
          training = intern("training"), backend = intern("backend"), bias = intern("bias");
  py::tuple of_cell = py::make_tuple(intern("weight_ih"), intern("weight_hh"), intern("bias_ih"),
                                     intern("bias_hh")),
            of_cell_without_bias = py::make_tuple(of_cell[0], of_cell[1]);

  static py::str intern(const char* text) {
    return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(text));
  }
};

const Names& names() {
  static const Names& all = *new Names;  // never destroyed: the interpreter may end before static objects
  return all;
}

// Null where there is no such attribute.
py::object attribute(PyObject* layer, const py::str& name) {
  const auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(layer, name.ptr()));
  if (!value) PyErr_Clear();
  return value;
}

// An integer or a truth value. Nothing where the attribute is missing, is something else or is too large.
std::optional<int64_t> integer(PyObject* layer, const py::str& name) {
  const py::object value = attribute(layer, name);
  if (!value || !PyLong_Check(value.ptr())) return std::nullopt;
  int overflow = 0;
  const int64_t found = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
  if (overflow != 0) return std::nullopt;
  return found;
}

bool is_zero(PyObject* layer, const py::str& name) {
  const py::object value = attribute(layer, name);
  return value && PyFloat_Check(value.ptr()) && PyFloat_AS_DOUBLE(value.ptr()) == 0.0;
}

// What the caller asks for as a number: 0 for "auto", else that of a compiled backend.
std::optional<int64_t> asked_backend(PyObject* name) {
  if (name == nullptr || !PyUnicode_Check(name)) return std::nullopt;
  constexpr std::array known{"auto", "cpu", "cpu-int8"};
  for (size_t i = 0; i < known.size(); ++i)
    if (PyUnicode_CompareWithASCIIString(name, known[i]) == 0) return i;
  return std::nullopt;
}

using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;
using Operator = Results(const at::Tensor&, const at::Tensor&, const at::Tensor&, at::TensorList,
                         const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                         const OptionalTensor&, bool, bool, bool, c10::string_view);

const c10::TypedOperatorHandle<Operator>& lstm_operator() {
  static const auto handle =
      c10::Dispatcher::singleton().findSchemaOrThrow("cnnlstm_fast::lstm", "").typed<Operator>();
  return handle;
}

// What a layer and its arguments come to in the operator's terms, all but the tensors' layout.
struct Call {
  bool cell = false, bidirectional = false, batch_first = false;
  int64_t states = 1, proj_size = 0;  // states: in h0, and in c0
  at::Tensor input, h0, c0;           // as the caller gave them; h0 and c0 undefined where hx is None
  std::vector<at::Tensor> weights;
  c10::SmallVector<int64_t, 96> key;  // all that a backend is chosen by
};

struct Before {
  using is_transparent = void;
  bool operator()(at::IntArrayRef a, at::IntArrayRef b) const {
    return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
  }
};

// By key. Used with the interpreter's lock held.
std::map<std::vector<int64_t>, std::string, Before>& backends() {
  static auto& known = *new std::map<std::vector<int64_t>, std::string, Before>;
  return known;
}

py::object wrap(const at::Tensor& tensor) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
}

// Appends a tensor's description to the key, and the tensor to the call. False where it is not plain.
bool read_tensor(PyObject* object, Call& call, at::Tensor& to) {
  if (object == nullptr || !is_plain_tensor(object)) return false;
  to = THPVariable_Unpack(object);
  call.key.push_back(to.dim());
  call.key.append(to.sizes().begin(), to.sizes().end());
  return true;
}

// `find`: the k-th weight, borrowed, or null.
template <typename Find>
bool read_weights(Py_ssize_t count, Find find, Call& call) {
  if (count < 2) return false;
  call.weights.resize(count);
  for (Py_ssize_t k = 0; k < count; ++k)
    if (!read_tensor(find(k), call, call.weights[k])) return false;
  return true;
}

bool is_sequence(PyObject* object) { return PyList_CheckExact(object) || PyTuple_CheckExact(object); }

bool read_layer(PyObject* layer, Call& call) {
  const auto backend = asked_backend(attribute(layer, names().backend).ptr()),
             bias = integer(layer, names().bias);
  if (!backend || !bias) return false;
  PyObject* dict = PyObject_GenericGetDict(layer, nullptr);
  if (dict == nullptr) return PyErr_Clear(), false;
  Py_DECREF(dict);  // the layer keeps it
  PyObject* of_weights = PyDict_GetItemWithError(dict, names().flat_weights_names.ptr());
  call.cell = of_weights == nullptr;
  if (call.cell) {
    of_weights = (*bias ? names().of_cell : names().of_cell_without_bias).ptr();
  } else {
    const auto layers = integer(layer, names().num_layers), two = integer(layer, names().bidirectional),
               batch_first = integer(layer, names().batch_first), P = integer(layer, names().proj_size),
               training = integer(layer, names().training);
    if (!layers || !two || !batch_first || !P || !training) return false;
    if (*training && !is_zero(layer, names().dropout)) return false;
    call.bidirectional = *two;
    call.batch_first = *batch_first;
    call.states = *layers * (1 + call.bidirectional);
    call.proj_size = *P;
  }
  call.key = {*backend, call.cell, call.bidirectional, call.batch_first, call.states, call.proj_size, *bias};
  // The layer's own dictionary: a Parameter that is computed, as by a parametrization, is not there.
  PyObject* own = PyDict_GetItemWithError(dict, names().parameters.ptr());
  if (own == nullptr || !PyDict_Check(own) || !is_sequence(of_weights)) return false;
  const auto weight = [&](Py_ssize_t k) {
    return PyDict_GetItemWithError(own, PySequence_Fast_GET_ITEM(of_weights, k));
  };
  return read_weights(PySequence_Fast_GET_SIZE(of_weights), weight, call);
}

bool read_stack(const Stack& stack, Call& call) {
  const auto backend = asked_backend(stack.backend);
  if (!backend || !is_sequence(stack.weights)) return false;
  call.bidirectional = stack.bidirectional;
  call.key = {-1 - *backend, call.bidirectional};  // negative, as no layer's is
  const auto weight = [&](Py_ssize_t k) { return PySequence_Fast_GET_ITEM(stack.weights, k); };
  if (!read_weights(PySequence_Fast_GET_SIZE(stack.weights), weight, call)) return false;
  const at::Tensor &w_ih = call.weights[0], &w_hh = call.weights[1];
  if (w_ih.dim() != 2 || w_hh.dim() != 2) return false;
  const bool bias = call.weights.size() > 2 && call.weights[2].dim() == 1;
  const bool projects = w_hh.size(1) < w_ih.size(0) / 4;
  call.proj_size = projects ? w_hh.size(1) : 0;
  call.states = call.weights.size() / (2 + 2 * bias + projects);
  return true;
}

// h0 and c0: null where the caller gives none.
bool read_tensors(PyObject* input, PyObject* h0, PyObject* c0, Call& call) {
  if (!read_tensor(input, call, call.input)) return false;
  if (h0 != nullptr && (!read_tensor(h0, call, call.h0) || !read_tensor(c0, call, call.c0))) return false;
  const at::ScalarType dtype = call.input.scalar_type();
  const int64_t rank = call.input.dim();
  if ((dtype != at::kFloat && dtype != at::kBFloat16) || rank > 3 - call.cell || rank < 2 - call.cell)
    return false;
  call.key.push_back(int64_t(dtype));
  const bool records = c10::GradMode::is_enabled();
  const auto fits = [&](const at::Tensor& tensor) {
    return !tensor.defined() || (tensor.device().is_cpu() && tensor.scalar_type() == dtype &&
                                 !(records && tensor.requires_grad()));
  };
  return fits(call.input) && fits(call.h0) && fits(call.c0) &&
         std::all_of(call.weights.begin(), call.weights.end(), fits);
}

// Both return whether run() may answer the call.
bool read(PyObject* layer, PyObject* input, PyObject* hx, Call& call) {
  if (!is_plain_state() || !read_layer(layer, call)) return false;
  if (hx == Py_None) return read_tensors(input, nullptr, nullptr, call);
  return is_sequence(hx) && PySequence_Fast_GET_SIZE(hx) == 2 &&
         read_tensors(input, PySequence_Fast_GET_ITEM(hx, 0), PySequence_Fast_GET_ITEM(hx, 1), call);
}

bool read(const Stack& stack, Call& call) {
  const bool states = stack.h0 != Py_None;
  return is_plain_state() && read_stack(stack, call) &&
         read_tensors(stack.input, states ? stack.h0 : nullptr, states ? stack.c0 : nullptr, call);
}

// The backend of a call that is known, else nothing.
std::optional<std::string> backend_of(const Call& call) {
  const auto found = backends().find(at::IntArrayRef(call.key));
  if (found == backends().end()) return std::nullopt;
  return found->second;
}

void admit(const Call& call, const std::string& backend) {
  if (backends().size() >= kMostCalls) backends().clear();
  backends()[std::vector<int64_t>(call.key.begin(), call.key.end())] = backend;
}

bool is_compiled(const std::string& backend) { return backend == "cpu" || backend == "cpu-int8"; }

// Output, h_n and c_n in the caller's layout.
std::array<at::Tensor, 3> run_operator(const Call& call, const std::string& backend) {
  const py::gil_scoped_release unlocked;
  const at::AutoDispatchBelowAutograd below;
  const bool batched = call.input.dim() == (call.cell ? 2 : 3);
  const auto canonical = [&](const at::Tensor& tensor) {
    const at::Tensor x = batched ? tensor : tensor.unsqueeze(call.cell ? 0 : 1);
    return call.cell ? x.unsqueeze(0) : x;
  };
  at::Tensor x = canonical(call.input), h0, c0;
  if (batched && call.batch_first) x = x.transpose(0, 1);
  if (call.h0.defined()) {
    h0 = canonical(call.h0);
    c0 = canonical(call.c0);
  } else {
    const int64_t H = call.weights[0].size(0) / 4, P = call.proj_size > 0 ? call.proj_size : H;
    h0 = at::zeros({call.states, x.size(1), P}, x.options());
    c0 = at::zeros({call.states, x.size(1), H}, x.options());
  }
  auto [output, h_n, c_n, cells, gates, hidden] =
      lstm_operator().call(x, h0, c0, call.weights, std::nullopt, std::nullopt, std::nullopt, std::nullopt,
                           call.bidirectional, false, false, backend);
  if (!batched) {
    if (!call.cell) output = output.squeeze(1);
    h_n = h_n.squeeze(1);
    c_n = c_n.squeeze(1);
  } else if (call.batch_first) {
    output = output.transpose(0, 1);
  }
  if (call.cell) {  // in place, so that they are no views, which autograd forbids to edit in some places
    h_n.squeeze_(0);
    c_n.squeeze_(0);
  }
  return {output, h_n, c_n};
}

}  // namespace

PyObject* run(PyObject* layer, PyObject* input, PyObject* hx) {
  Call call;
  if (!read(layer, input, hx, call)) return nullptr;
  const auto backend = backend_of(call);
  if (!backend) return nullptr;
  const auto [output, h_n, c_n] = run_operator(call, *backend);
  const py::tuple states = py::make_tuple(wrap(h_n), wrap(c_n));
  if (call.cell) return py::object(states).release().ptr();
  return py::make_tuple(wrap(output), states).release().ptr();
}

PyObject* run(const Stack& stack) {
  Call call;
  if (!read(stack, call)) return nullptr;
  const auto backend = backend_of(call);
  if (!backend) return nullptr;
  const auto [output, h_n, c_n] = run_operator(call, *backend);
  return py::make_tuple(wrap(output), wrap(h_n), wrap(c_n)).release().ptr();
}

void admit(PyObject* layer, PyObject* input, PyObject* hx, const std::string& backend) {
  Call call;
  if (is_compiled(backend) && read(layer, input, hx, call)) admit(call, backend);
}

void admit(const Stack& stack, const std::string& backend) {
  Call call;
  if (is_compiled(backend) && read(stack, call)) admit(call, backend);
}

void forget() { backends().clear(); }

}  // namespace cnnlstm::known_calls
