// What a guard remembers of a module: see Guard in cnnlstm_fast/encoder/guard.py.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "torch/python/tensor_state.h"

namespace cnnlstm {

// Owns a reference to every object that it compares by identity, so that no address is used again while it
// lives. It can be part of a cycle (its module may hold it): traverse and clear let Python's collector break
// that. The GIL protects it.
class Snapshot {
 public:
  // `root` with all modules that it holds, and `globals`, a tuple of dicts. The keys in `ignored`, a set, are
  // left out of the modules' __dict__. Of the values of those in `unread` the items are not compared.
  Snapshot(PyObject* root, PyObject* ignored, PyObject* unread, PyTypeObject* module_class,
           PyObject* globals);
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

  // Runs no Python code.
  Verdict check();

  // Whether one of the tensors does.
  bool requires_grad() const;

  int traverse(visitproc visit, void* arg) const;

  // Drops all references; from then on check() returns kChanged.
  void clear();

 private:
  enum class Kind : uint8_t { kPlain, kModule, kClass };

  struct Module {
    PyObject* object;
    PyTypeObject* type;
    PyObject** dict_slot;
    PyObject* dict;
  };
  struct Class {
    PyTypeObject* type;
    PyObject* mro;
  };
  // A dict, list or set, and which of the items are its own.
  struct Container {
    PyObject* object;
    uint64_t version;  // at which its items were as remembered; 0: not known
    uint32_t begin, end;
    Kind kind;
  };
  struct Item {
    PyObject* key;  // null in a list or set
    PyObject* value;
    int32_t tensor;  // where it is remembered, or -1
  };
  // How many items hold a tensor, and, within a check, how many hold another one now, and which.
  struct Uses {
    uint32_t count = 0, replaced = 0;
    PyObject* by = nullptr;
  };

  PyObject* hold(PyObject* object);
  void add_module(PyObject* module);
  void add_class(PyTypeObject* type);
  void add_container(PyObject* object, Kind kind);
  int32_t add_value(PyObject* value, bool containers);
  bool is_left_out(Kind kind, PyObject* key) const;
  bool is_unread(Kind kind, PyObject* key) const;
  Verdict compare(Container& container);
  Verdict compare(const Item& item, PyObject* value);
  Verdict take_replaced();

  struct Walk;
  Walk* walk_ = nullptr;  // only within the constructor

  std::vector<pybind11::object> held_;
  PyObject *ignored_, *unread_;
  std::vector<Class> classes_;
  std::vector<Module> modules_;
  std::vector<Container> containers_;
  std::vector<Item> items_;
  std::vector<TensorState> tensors_;
  std::vector<Uses> uses_;
  bool any_replaced_ = false;
};

}  // namespace cnnlstm
