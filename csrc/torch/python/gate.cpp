#include "torch/python/gate.h"

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/python_variable.h>
#include <unistd.h>

#include <algorithm>
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

bool Gate::fits(std::span<PyObject* const> tensors) {
  if (tensors.size() != arguments_.size()) return false;
  key_.clear();
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (!is_plain_tensor(tensors[i])) return false;
    const at::Tensor& tensor = THPVariable_Unpack(tensors[i]);
    if (tensor.scalar_type() != arguments_[i].dtype || !tensor.device().is_cpu() ||
        tensor.dim() != arguments_[i].rank)
      return false;
    key_.insert(key_.end(), tensor.sizes().begin(), tensor.sizes().end());
  }
  return true;
}

Entry Gate::enter(PyObject* module, std::span<PyObject* const> tensors) {
  // Engines' threads do not exist in a forked child; a shallow copy of the module has a runner, too.
  if (module != module_ || !fits(tensors) || !is_plain_state() || process_ != getpid()) return Entry::kEager;
  // before the snapshot, which takes longer; what requires a gradient now, but did not then, has changed
  if (c10::GradMode::is_enabled() &&
      (weights_require_grad_ || std::any_of(tensors.begin(), tensors.end(), [](PyObject* tensor) {
         return THPVariable_Unpack(tensor).requires_grad();
       })))
    return Entry::kEager;
  const Verdict verdict = snapshot_.check();
  if (verdict == Verdict::kChanged) return Entry::kEager;
  if (verdict != Verdict::kUnchanged || threads_ != at::get_num_threads()) return Entry::kSettle;
  const auto found = runs_.find(key_);
  if (found == runs_.end()) return Entry::kAdmit;
  return found->second ? Entry::kRun : Entry::kEager;
}

void Gate::remember(std::span<PyObject* const> tensors, bool runs) {
  if (!fits(tensors)) return;
  if (runs_.size() >= kMostShapes) runs_.clear();
  runs_[key_] = runs;
}

}  // namespace cnnlstm
