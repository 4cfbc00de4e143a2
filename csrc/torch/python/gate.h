// Whether a call of a module with a runner runs by its engines: see Gate in guard.cpp.
#pragma once

#include <Python.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "torch/python/snapshot.h"

namespace cnnlstm {

// In guard.py.
enum class Entry { kRun, kEager, kSettle, kAdmit };

class Gate {
 public:
  struct Argument {
    c10::ScalarType dtype;
    int64_t rank;
  };

  // `module`: the snapshot's, which it keeps alive.
  Gate(PyObject* module, Snapshot& snapshot, std::vector<Argument> arguments, int threads);

  // Runs no Python code.
  Entry enter(PyObject* module, std::span<PyObject* const> tensors);

  // What enter() answers to calls with these shapes from now on. It forgets all others before they are too
  // many.
  void remember(std::span<PyObject* const> tensors, bool runs);

 private:
  // Reads the shapes into key_; returns whether the tensors are of the captured call's kinds.
  bool fits(std::span<PyObject* const> tensors);

  PyObject* module_;
  Snapshot& snapshot_;
  std::vector<Argument> arguments_;
  int threads_;
  int64_t process_;
  bool weights_require_grad_;
  std::vector<int64_t> key_;
  std::map<std::vector<int64_t>, bool> runs_;
};

}  // namespace cnnlstm
