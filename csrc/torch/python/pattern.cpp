#include "torch/python/pattern.h"

#include <stdexcept>

namespace cnnlstm {

namespace py = pybind11;

bool Pattern::match(PyObject* example, PyObject* object, std::vector<PyObject*>& tensors) const {
  if (example == marker_.ptr()) {
    tensors.push_back(object);
    return true;
  }
  if (Py_TYPE(example) != Py_TYPE(object)) return false;
  if (PyTuple_CheckExact(example) || PyList_CheckExact(example)) {
    const Py_ssize_t size = PySequence_Fast_GET_SIZE(example);
    if (size != PySequence_Fast_GET_SIZE(object)) return false;
    for (Py_ssize_t i = 0; i < size; ++i)
      if (!match(PySequence_Fast_GET_ITEM(example, i), PySequence_Fast_GET_ITEM(object, i), tensors))
        return false;
    return true;
  }
  if (PyDict_CheckExact(example)) {
    if (PyDict_GET_SIZE(example) != PyDict_GET_SIZE(object)) return false;
    Py_ssize_t position = 0;
    for (PyObject *key, *value; PyDict_Next(example, &position, &key, &value);) {
      PyObject* const found = PyDict_GetItemWithError(object, key);
      if (found == nullptr || !match(value, found, tensors)) {
        PyErr_Clear();
        return false;
      }
    }
    return true;
  }
  if (example == object) return true;
  const bool plain =
      PyLong_CheckExact(example) || PyFloat_CheckExact(example) || PyUnicode_CheckExact(example);
  return plain && PyObject_RichCompareBool(example, object, Py_EQ) == 1;
}

py::object Pattern::fill(PyObject* tensors) const {
  Py_ssize_t next = 0;
  return fill(example_.ptr(), tensors, next);
}

py::object Pattern::fill(PyObject* example, PyObject* tensors, Py_ssize_t& next) const {
  if (example == marker_.ptr()) {
    if (next >= PyTuple_GET_SIZE(tensors))
      throw std::runtime_error("fewer results than the captured call had");
    return py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(tensors, next++));
  }
  if (PyTuple_CheckExact(example)) {
    py::tuple filled(PyTuple_GET_SIZE(example));
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(example); ++i)
      PyTuple_SET_ITEM(filled.ptr(), i, fill(PyTuple_GET_ITEM(example, i), tensors, next).release().ptr());
    return filled;
  }
  if (PyList_CheckExact(example)) {
    py::list filled(PyList_GET_SIZE(example));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(example); ++i)
      PyList_SET_ITEM(filled.ptr(), i, fill(PyList_GET_ITEM(example, i), tensors, next).release().ptr());
    return filled;
  }
  if (PyDict_CheckExact(example)) {
    py::dict filled;
    Py_ssize_t position = 0;
    for (PyObject *key, *value; PyDict_Next(example, &position, &key, &value);)
      filled[py::handle(key)] = fill(value, tensors, next);
    return filled;
  }
  return py::reinterpret_borrow<py::object>(example);
}

}  // namespace cnnlstm
