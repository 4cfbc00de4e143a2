// The structure of a call's arguments or results: nested tuples, lists and dicts of tensors and of values
// that stay the same.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

namespace cnnlstm {

// Made of an example of the structure, in which an object stands for each tensor. Runs no Python code other
// than the comparison of strings and numbers.
class Pattern {
 public:
  // `marker`: what stands for a tensor.
  Pattern(pybind11::object example, pybind11::object marker)
      : example_(std::move(example)), marker_(std::move(marker)) {}

  // Whether the object has the structure; adds what is in the places of tensors, borrowed, in their order.
  bool match(PyObject* object, std::vector<PyObject*>& tensors) const {
    return match(example_.ptr(), object, tensors);
  }

  // A new object of the structure with the items of a tuple in the places of tensors. Throws where there are
  // more places than items.
  pybind11::object fill(PyObject* tensors) const;

 private:
  bool match(PyObject* example, PyObject* object, std::vector<PyObject*>& tensors) const;
  pybind11::object fill(PyObject* example, PyObject* tensors, Py_ssize_t& next) const;

  pybind11::object example_, marker_;
};

}  // namespace cnnlstm
