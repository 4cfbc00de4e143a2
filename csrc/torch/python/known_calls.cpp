#include "torch/python/known_calls.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>

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
          training = intern("training"), backend = intern("backend"), bias = intern("bias"),
          hidden_size = intern("hidden_size");
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

// An integer or a truth value. Nothing where the attribute is missing or is something else.
std::optional<int64_t> integer(PyObject* layer, const py::str& name) {
  const auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(layer, name.ptr()));
  if (!value) PyErr_Clear();
  if (!value || !PyLong_Check(value.ptr())) return std::nullopt;
  return PyLong_AsLongLong(value.ptr());
}

bool is_zero(PyObject* layer, const py::str& name) {
  const auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(layer, name.ptr()));
  if (!value) PyErr_Clear();
  return value && PyFloat_Check(value.ptr()) && PyFloat_AS_DOUBLE(value.ptr()) == 0.0;
}

// The layer's backend as a number: 0 for "auto", else that of a compiled one.
std::optional<int64_t> backend_of(PyObject* layer) {
  const auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(layer, names().backend.ptr()));
  if (!value) PyErr_Clear();
  if (!value || !PyUnicode_Check(value.ptr())) return std::nullopt;
  constexpr std::array known{"auto", "cpu", "cpu-int8"};
  for (size_t i = 0; i < known.size(); ++i)
    if (PyUnicode_CompareWithASCIIString(value.ptr(), known[i]) == 0) return i;
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
  bool cell, bidirectional = false, batch_first = false;
  int64_t states = 1, proj_size = 0;  // states: in h0, and in c0
  at::Tensor input, h0, c0;           // as the caller gave them; h0 and c0 undefined where hx is None
  std::vector<at::Tensor> weights;
};

// All that a backend is chosen by, of the call that was read last.
std::vector<int64_t>& key() {
  static std::vector<int64_t>& last = *new std::vector<int64_t>;
  return last;
}

std::map<std::vector<int64_t>, std::string>& backends() {
  static auto& known = *new std::map<std::vector<int64_t>, std::string>;
  return known;
}

py::object wrap(const at::Tensor& tensor) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
}

void add_sizes(const at::Tensor& tensor) {
  key().push_back(tensor.dim());
  key().insert(key().end(), tensor.sizes().begin(), tensor.sizes().end());
}

// Of the layer's own dictionary of Parameters: one that is computed, as by a parametrization, is not there.
bool read_weights(PyObject* parameters, PyObject* of_weights, Call& call) {
  if (!PyDict_Check(parameters) || !(PyList_Check(of_weights) || PyTuple_Check(of_weights))) return false;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(of_weights);
  call.weights.reserve(count);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* weight = PyDict_GetItemWithError(parameters, PySequence_Fast_GET_ITEM(of_weights, i));
    if (weight == nullptr || !is_plain_tensor(weight)) return PyErr_Clear(), false;
    call.weights.push_back(THPVariable_Unpack(weight));
    add_sizes(call.weights.back());
  }
  return count >= 2;
}

bool read_layer(PyObject* layer, Call& call) {
  const std::optional<int64_t> backend = backend_of(layer), bias = integer(layer, names().bias);
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
  key().assign(
      {*backend, call.cell, call.bidirectional, call.batch_first, call.states, call.proj_size, *bias != 0});
  PyObject* parameters = PyDict_GetItemWithError(dict, names().parameters.ptr());
  return parameters != nullptr && read_weights(parameters, of_weights, call);
}

bool read_tensors(PyObject* input, PyObject* hx, Call& call) {
  if (!is_plain_tensor(input)) return false;
  call.input = THPVariable_Unpack(input);
  add_sizes(call.input);
  if (hx == Py_None) return true;
  if (!(PyTuple_CheckExact(hx) || PyList_CheckExact(hx)) || PySequence_Fast_GET_SIZE(hx) != 2) return false;
  PyObject *h0 = PySequence_Fast_GET_ITEM(hx, 0), *c0 = PySequence_Fast_GET_ITEM(hx, 1);
  if (!is_plain_tensor(h0) || !is_plain_tensor(c0)) return false;
  call.h0 = THPVariable_Unpack(h0);
  call.c0 = THPVariable_Unpack(c0);
  add_sizes(call.h0);
  add_sizes(call.c0);
  return true;
}

// Describes the call in key(); nothing where run() never answers it.
std::optional<Call> read(PyObject* layer, PyObject* input, PyObject* hx) {
  std::optional<Call> call(std::in_place);
  if (!is_plain_state() || !read_layer(layer, *call) || !read_tensors(input, hx, *call)) return std::nullopt;
  const at::ScalarType dtype = call->input.scalar_type();
  const int64_t rank = call->input.dim();
  if ((dtype != at::kFloat && dtype != at::kBFloat16) || rank > 3 - call->cell || rank < 2 - call->cell)
    return std::nullopt;
  key().push_back(int64_t(dtype));
  const bool records = c10::GradMode::is_enabled();
  const auto fits = [&](const at::Tensor& tensor) {
    return !tensor.defined() || (tensor.device().is_cpu() && tensor.scalar_type() == dtype &&
                                 !(records && tensor.requires_grad()));
  };
  if (!fits(call->input) || !fits(call->h0) || !fits(call->c0)) return std::nullopt;
  for (const at::Tensor& weight : call->weights)
    if (!fits(weight)) return std::nullopt;
  return call;
}

}  // namespace

PyObject* run(PyObject* layer, PyObject* input, PyObject* hx) {
  const std::optional<Call> call = read(layer, input, hx);
  if (!call) return nullptr;
  const auto found = backends().find(key());
  if (found == backends().end()) return nullptr;
  const std::string backend = found->second;  // another thread may clear the map
  at::Tensor output, h_n, c_n;
  {
    const py::gil_scoped_release unlocked;
    const at::AutoDispatchBelowAutograd below;
    const bool batched = call->input.dim() == (call->cell ? 2 : 3);
    const auto canonical = [&](const at::Tensor& tensor) {
      const at::Tensor x = batched ? tensor : tensor.unsqueeze(call->cell ? 0 : 1);
      return call->cell ? x.unsqueeze(0) : x;
    };
    at::Tensor x = canonical(call->input), h0, c0;
    if (batched && call->batch_first) x = x.transpose(0, 1);
    if (call->h0.defined()) {
      h0 = canonical(call->h0);
      c0 = canonical(call->c0);
    } else {
      const int64_t H = call->weights[0].size(0) / 4, P = call->proj_size > 0 ? call->proj_size : H;
      h0 = at::zeros({call->states, x.size(1), P}, x.options());
      c0 = at::zeros({call->states, x.size(1), H}, x.options());
    }
    std::tie(output, h_n, c_n, std::ignore, std::ignore, std::ignore) =
        lstm_operator().call(x, h0, c0, call->weights, std::nullopt, std::nullopt, std::nullopt, std::nullopt,
                             call->bidirectional, false, false, backend);
    if (!batched) {
      if (!call->cell) output = output.squeeze(1);
      h_n = h_n.squeeze(1);
      c_n = c_n.squeeze(1);
    } else if (call->batch_first) {
      output = output.transpose(0, 1);
    }
    if (call->cell) {
      h_n = h_n.squeeze_(0);
      c_n = c_n.squeeze_(0);
    }
  }
  const py::tuple states = py::make_tuple(wrap(h_n), wrap(c_n));
  if (call->cell) return py::object(states).release().ptr();
  return py::make_tuple(wrap(output), states).release().ptr();
}

void admit(PyObject* layer, PyObject* input, PyObject* hx, const std::string& backend) {
  if ((backend != "cpu" && backend != "cpu-int8") || !read(layer, input, hx)) return;
  if (backends().size() >= kMostCalls) backends().clear();
  backends()[key()] = backend;
}

void forget() { backends().clear(); }

}  // namespace cnnlstm::known_calls
