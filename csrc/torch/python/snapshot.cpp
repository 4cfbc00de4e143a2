#include "torch/python/snapshot.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

namespace cnnlstm {

namespace py = pybind11;

namespace {

bool is_mutable_container(PyObject* object) {
  return PyDict_Check(object) || PyList_Check(object) || PySet_Check(object);
}

// A number that differs after every edit of a container, 0 where there is none.
uint64_t version_of(PyObject* container) {
#if PY_VERSION_HEX < 0x030D0000  // later ones do not count every edit
  if (PyDict_Check(container)) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    return reinterpret_cast<PyDictObject*>(container)->ma_version_tag;
#pragma GCC diagnostic pop
  }
#endif
  static_cast<void>(container);
  return 0;
}

// Calls visit(key, value) for every item until it returns false, and returns whether it never did. Runs no
// Python code, also in a subclass with an __iter__ of its own.
template <typename Visit>
bool for_each_item(PyObject* container, Visit visit) {
  if (PyDict_Check(container)) {
    Py_ssize_t position = 0;
    for (PyObject *key, *value; PyDict_Next(container, &position, &key, &value);)
      if (!visit(key, value)) return false;
  } else if (PyList_Check(container) || PyTuple_Check(container)) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(container); ++i)
      if (!visit(nullptr, PySequence_Fast_GET_ITEM(container, i))) return false;
  } else if (PySet_GET_SIZE(container) != 0) {
    const auto items = py::reinterpret_steal<py::object>(PySet_Type.tp_iter(container));
    if (!items) throw py::error_already_set();
    while (const auto value =
               py::reinterpret_steal<py::object>(Py_TYPE(items.ptr())->tp_iternext(items.ptr())))
      if (!visit(nullptr, value.ptr())) return false;
  }
  return true;
}

// Whether two objects are the same immutable value. False and True, and None, are one object each.
bool same_value(PyObject* a, PyObject* b);

// torch.export replaces a module's lists and tuples by copies.
bool same_items(PyObject* a, PyObject* b) {
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(a);
  if (size != PySequence_Fast_GET_SIZE(b)) return false;
  for (Py_ssize_t i = 0; i < size; ++i)
    if (!same_value(PySequence_Fast_GET_ITEM(a, i), PySequence_Fast_GET_ITEM(b, i))) return false;
  return true;
}

bool same_value(PyObject* a, PyObject* b) {
  if (a == b) return true;
  if (a == nullptr || b == nullptr || Py_TYPE(a) != Py_TYPE(b)) return false;
  if (PyTuple_CheckExact(a) || PyList_CheckExact(a)) return same_items(a, b);
  if (PyFloat_CheckExact(a)) {  // by bits: 0.0 is not -0.0, and a NaN is itself
    const double x = PyFloat_AS_DOUBLE(a), y = PyFloat_AS_DOUBLE(b);
    return std::memcmp(&x, &y, sizeof x) == 0;
  }
  return (PyLong_CheckExact(a) || PyUnicode_CheckExact(a)) && PyObject_RichCompareBool(a, b, Py_EQ) == 1;
}

bool is_tensor(PyObject* object) {
  return PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(THPVariableClass));
}

}  // namespace

struct Snapshot::Walk {
  PyTypeObject* module_class;
  std::vector<PyObject*> modules;  // yet to be visited
  std::unordered_set<PyObject*> seen;
  std::unordered_map<PyObject*, int32_t> tensors;
};

Snapshot::Snapshot(PyObject* root, PyObject* ignored, PyObject* unread, PyTypeObject* module_class,
                   PyObject* globals)
    : ignored_(hold(ignored)), unread_(hold(unread)) {
  Walk walk{module_class, {root}, {root}, {}};
  walk_ = &walk;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(globals); ++i)
    add_container(PyTuple_GET_ITEM(globals, i), Kind::kPlain);
  while (!walk.modules.empty()) {
    PyObject* module = walk.modules.back();
    walk.modules.pop_back();
    add_module(module);
  }
  walk_ = nullptr;
}

PyObject* Snapshot::hold(PyObject* object) {
  return held_.emplace_back(py::reinterpret_borrow<py::object>(object)).ptr();
}

void Snapshot::add_module(PyObject* module) {
  hold(module);
  PyTypeObject* type = Py_TYPE(module);
  if (walk_->seen.insert(reinterpret_cast<PyObject*>(type)).second) {
    classes_.push_back({type, hold(type->tp_mro)});
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(type->tp_mro); ++i)
      add_class(reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(type->tp_mro, i)));
  }
  PyObject** slot = _PyObject_GetDictPtr(module);
  if (slot == nullptr || *slot == nullptr) throw py::type_error("a module without a __dict__");
  modules_.push_back(
      {module, reinterpret_cast<PyTypeObject*>(hold(reinterpret_cast<PyObject*>(type))), slot, *slot});
  add_container(*slot, Kind::kModule);
}

void Snapshot::add_class(PyTypeObject* type) {
  // Only classes that Python code made can be edited.
  if (PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)) add_container(type->tp_dict, Kind::kClass);
}

void Snapshot::add_container(PyObject* object, Kind kind) {
  if (!walk_->seen.insert(object).second) return;
  hold(object);
  // The values' own containers come after it, so that its items are contiguous.
  std::vector<Item> items;
  std::vector<PyObject*> inner;
  for_each_item(object, [&](PyObject* key, PyObject* value) {
    if (is_left_out(kind, key)) return true;
    if (key != nullptr) hold(key);
    items.push_back({key, hold(value), -1});
    return true;
  });
  const auto begin = static_cast<uint32_t>(items_.size());
  items_.insert(items_.end(), items.begin(), items.end());
  const auto end = static_cast<uint32_t>(items_.size());
  containers_.push_back({object, version_of(object), begin, end, kind});
  for (uint32_t i = begin; i < end; ++i) {
    if (is_unread(kind, items_[i].key)) continue;
    const int32_t tensor = add_value(items_[i].value, kind != Kind::kPlain);
    items_[i].tensor = tensor;
  }
}

int32_t Snapshot::add_value(PyObject* value, bool containers) {
  if (is_tensor(value)) {
    const auto [found, is_new] = walk_->tensors.try_emplace(value, static_cast<int32_t>(tensors_.size()));
    if (is_new) {
      tensors_.emplace_back(value);
      uses_.emplace_back();
    }
    ++uses_[found->second].count;
    return found->second;
  }
  if (PyObject_TypeCheck(value, walk_->module_class)) {
    if (walk_->seen.insert(value).second) walk_->modules.push_back(value);
  } else if (containers && is_mutable_container(value)) {
    add_container(value, Kind::kPlain);
  } else if (containers && (PyTuple_Check(value) || PyFrozenSet_Check(value))) {
    for_each_item(value, [&](PyObject*, PyObject* item) {
      add_value(item, false);
      return true;
    });
  }
  return -1;
}

bool Snapshot::is_left_out(Kind kind, PyObject* key) const {
  if (key == nullptr || kind == Kind::kPlain || !PyUnicode_CheckExact(key)) return false;
  if (kind == Kind::kModule) return PySet_Contains(ignored_, key) == 1;
  // Python keeps notes in classes: to read __annotations__ makes an entry of that name.
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(key, &size);
  if (text == nullptr) throw py::error_already_set();
  const std::string_view name(text, size);
  return name.starts_with("__") && name != "__call__" && name != "__getattr__";
}

bool Snapshot::is_unread(Kind kind, PyObject* key) const {
  return kind == Kind::kModule && PyUnicode_CheckExact(key) && PySet_Contains(unread_, key) == 1;
}

Verdict Snapshot::compare(const Item& item, PyObject* value) {
  if (same_value(item.value, value)) return Verdict::kUnchanged;
  if (item.tensor < 0 || !is_tensor(value)) return Verdict::kChanged;
  Uses& uses = uses_[item.tensor];
  if (uses.replaced++ != 0 && uses.by != value) return Verdict::kChanged;
  uses.by = value;
  any_replaced_ = true;
  return tensors_[item.tensor].compare(value);
}

Verdict Snapshot::compare(Container& container) {
  Verdict verdict = Verdict::kUnchanged;
  uint32_t next = container.begin;
  bool identical = true;
  const bool all = for_each_item(container.object, [&](PyObject* key, PyObject* value) {
    if (next == container.end || !same_value(items_[next].key, key)) return is_left_out(container.kind, key);
    identical &= items_[next].value == value;
    verdict = std::max(verdict, compare(items_[next++], value));
    return verdict != Verdict::kChanged;
  });
  if (!all || next != container.end) return Verdict::kChanged;
  // An equal list is another object, whose edits this dict's version does not count.
  if (verdict == Verdict::kUnchanged && identical) container.version = version_of(container.object);
  return verdict;
}

// Where one tensor had several names, its successor must have all of them: else they are no longer tied.
Verdict Snapshot::take_replaced() {
  bool untied = false;
  for (Uses& uses : uses_) {
    untied |= uses.replaced != 0 && uses.replaced != uses.count;
    uses.replaced = 0;
  }
  any_replaced_ = false;
  return untied ? Verdict::kChanged : Verdict::kUnchanged;
}

Verdict Snapshot::check() {
  if (held_.empty()) return Verdict::kChanged;
  for (const TensorState& tensor : tensors_) tensor.prefetch();
  for (const Class& known : classes_)
    if (known.type->tp_mro != known.mro) return Verdict::kChanged;
  for (const Module& module : modules_)
    if (Py_TYPE(module.object) != module.type || *module.dict_slot != module.dict) return Verdict::kChanged;
  Verdict verdict = Verdict::kUnchanged;
  for (Container& container : containers_) {
    if (container.version != 0 && container.version == version_of(container.object)) continue;
    verdict = std::max(verdict, compare(container));
    if (verdict == Verdict::kChanged) break;
  }
  if (any_replaced_) verdict = std::max(verdict, take_replaced());
  if (verdict == Verdict::kChanged) return verdict;
  for (const TensorState& tensor : tensors_) verdict = std::max(verdict, tensor.compare());
  return verdict;
}

bool Snapshot::requires_grad() const {
  return std::any_of(tensors_.begin(), tensors_.end(),
                     [](const auto& tensor) { return tensor.requires_grad(); });
}

int Snapshot::traverse(visitproc visit, void* arg) const {
  for (const py::object& object : held_) Py_VISIT(object.ptr());
  return 0;
}

void Snapshot::clear() {
  // Out of reach first: to drop a reference may run Python code that calls check().
  const auto dropped = std::exchange(held_, {});
}

}  // namespace cnnlstm
