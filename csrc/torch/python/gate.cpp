#include "torch/python/gate.h"

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/python_variable.h>
#include <unistd.h>

#include <utility>

#include "torch/python/call_state.h"

namespace cnnlstm {

namespace {

constexpr size_t kMostShapes = 1024;

}  // namespace

Gate::Gate(PyObject* module, Snapshot& snapshot, std::vector<Argument> arguments, int threads)
    : module_(module),
      snapshot_(snapshot),
      arguments_(std::move(arguments)),
      threads_(threads),
      process_(getpid()),
      weights_require_grad_(snapshot.requires_grad()) {}

bool Gate::fits(PyObject* tensors) {
  if (PyTuple_GET_SIZE(tensors) != static_cast<Py_ssize_t>(arguments_.size())) return false;
  key_.clear();
  for (size_t i = 0; i < arguments_.size(); ++i) {
    PyObject* const object = PyTuple_GET_ITEM(tensors, i);
    if (!THPVariable_CheckExact(object)) return false;
    const at::Tensor& tensor = THPVariable_Unpack(object);
    if (tensor.scalar_type() != arguments_[i].dtype || !tensor.device().is_cpu() ||
        tensor.dim() != arguments_[i].rank)
      return false;
    key_.insert(key_.end(), tensor.sizes().begin(), tensor.sizes().end());
  }
  return true;
}

Entry Gate::enter(PyObject* module, PyObject* tensors) {
  // Engines' threads do not exist in a forked child; a shallow copy of the module has a runner, too.
  if (module != module_ || !fits(tensors) || !is_plain_call(tensors) || process_ != getpid())
    return Entry::kEager;
  // before the snapshot, which takes longer; what requires a gradient now, but did not then, has changed
  if (c10::GradMode::is_enabled() && (weights_require_grad_ || needs_grad(tensors))) return Entry::kEager;
  const Verdict verdict = snapshot_.check();
  if (verdict == Verdict::kChanged) return Entry::kEager;
  if (verdict != Verdict::kUnchanged || threads_ != at::get_num_threads()) return Entry::kSettle;
  const auto found = runs_.find(key_);
  if (found == runs_.end()) return Entry::kAdmit;
  return found->second ? Entry::kRun : Entry::kEager;
}

void Gate::remember(PyObject* tensors, bool runs) {
  if (!fits(tensors)) return;
  if (runs_.size() >= kMostShapes) runs_.clear();
  runs_[key_] = runs;
}

}  // namespace cnnlstm
