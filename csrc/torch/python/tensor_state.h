// What a guard remembers of one tensor.
#pragma once

#include <torch/csrc/autograd/python_variable.h>

#include <cstddef>
#include <cstdint>

namespace cnnlstm {

// In the order of gravity.
enum class Verdict { kUnchanged, kWeights, kChanged };

// The Python object is borrowed: its owner keeps it alive. Nothing here runs Python code.
class TensorState {
 public:
  explicit TensorState(PyObject* tensor);

  // What the remembered tensor is now.
  Verdict compare() const { return compare(object_); }

  // What another tensor in its place is: never kUnchanged.
  Verdict compare(PyObject* now) const;

  // Starts to load what compare() will read. All of it is cold after a call of an engine, and so the misses
  // overlap.
  void prefetch() const;

  bool requires_grad() const { return requires_grad_; }

 private:
  // Contents of a larger tensor are compared in `kLines` cache lines, evenly spread from the first to the
  // last.
  static constexpr std::size_t kLine = 64, kLines = 4, kSample = kLine * kLines;

  template <typename Visit>
  void for_each_piece(Visit visit) const;
  uint64_t hash_of_sample() const;

  // All that a tensor without changes needs comes first, and fills two cache lines.
  PyObject* object_;
  // Where its parts were: only to load them early, for these may be gone.
  const void *impl_, *autograd_, *storage_ = nullptr;
  PyTypeObject* type_;
  c10::DispatchKeySet keys_;
  const std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;          // of the storage
  std::size_t sampled_bytes_ = 0;  // 0: no sample
  uint64_t sample_ = 0;            // a hash: a copy would be four lines to load
  uint64_t layout_ = 0;            // a hash of sizes and strides
  uint32_t version_;
  caffe2::TypeMeta dtype_;
  c10::Device device_;
  bool requires_grad_;
  // Plain memory with strides. Of any other tensor (sparse, a wrapper) the version counter tells edits.
  bool strided_;
  c10::SmallVector<int64_t, 4> sizes_;
};

}  // namespace cnnlstm
