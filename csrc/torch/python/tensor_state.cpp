#include "torch/python/tensor_state.h"

#include <algorithm>
#include <cstring>

namespace cnnlstm {

namespace {

uint32_t version_of(c10::TensorImpl* tensor) {
  return tensor->is_inference() ? 0 : tensor->version_counter().current_version();
}

c10::TensorImpl* unpack(PyObject* tensor) { return THPVariable_Unpack(tensor).unsafeGetTensorImpl(); }

}  // namespace

TensorState::TensorState(PyObject* tensor)
    : object_(tensor),
      impl_(unpack(tensor)),
      autograd_(unpack(tensor)->autograd_meta()),
      type_(Py_TYPE(tensor)),
      keys_(unpack(tensor)->key_set()),
      dtype_(unpack(tensor)->dtype()),
      device_(unpack(tensor)->device()),
      requires_grad_(unpack(tensor)->requires_grad()),
      version_(version_of(unpack(tensor))) {
  c10::TensorImpl* impl = unpack(tensor);
  strided_ = impl->has_storage() && impl->layout() == c10::kStrided && !impl->is_nested() &&
             !impl->is_python_dispatch() && !impl->has_symbolic_sizes_strides();
  if (!strided_) return;
  storage_ = impl->unsafe_storage().unsafeGetStorageImpl();
  sizes_ = impl->sizes();
  strides_ = impl->strides();
  data_ = static_cast<const std::byte*>(impl->data());
  bytes_ = impl->unsafe_storage().nbytes();
  if (device_.is_cpu() && impl->is_non_overlapping_and_dense() && data_ != nullptr)
    sampled_bytes_ = impl->numel() * dtype_.itemsize();
  std::byte* sample = sample_.data();
  for_each_piece([&](const std::byte* piece, std::size_t size) {
    std::memcpy(sample, piece, size);
    sample += size;
    return true;
  });
}

template <typename Visit>
bool TensorState::for_each_piece(Visit visit) const {
  if (sampled_bytes_ <= kSample) return sampled_bytes_ == 0 || visit(data_, sampled_bytes_);
  for (std::size_t i = 0; i < kLines; ++i) {
    const std::size_t offset = (sampled_bytes_ - kLine) * i / (kLines - 1) / kLine * kLine;
    if (!visit(data_ + offset, kLine)) return false;
  }
  return true;
}

void TensorState::prefetch() const {
  __builtin_prefetch(object_);
  for (std::size_t offset = 0; offset < sizeof(c10::TensorImpl); offset += kLine)
    __builtin_prefetch(static_cast<const std::byte*>(impl_) + offset);
  __builtin_prefetch(autograd_);
  __builtin_prefetch(storage_);
  for_each_piece([](const std::byte* piece, std::size_t size) {
    for (std::size_t offset = 0; offset < size; offset += kLine) __builtin_prefetch(piece + offset);
    return true;
  });
}

bool TensorState::same_sample() const {
  const std::byte* sample = sample_.data();
  return for_each_piece([&](const std::byte* piece, std::size_t size) {
    const bool same = std::memcmp(sample, piece, size) == 0;
    sample += size;
    return same;
  });
}

Verdict TensorState::compare(PyObject* now) const {
  if (Py_TYPE(now) != type_) return Verdict::kChanged;
  c10::TensorImpl* impl = unpack(now);
  if (impl->key_set() != keys_ || impl->dtype() != dtype_ || impl->device() != device_ ||
      impl->requires_grad() != requires_grad_)
    return Verdict::kChanged;
  if (!strided_)
    return now == object_ && version_of(impl) == version_ ? Verdict::kUnchanged : Verdict::kChanged;
  if (impl->sizes() != c10::IntArrayRef(sizes_)) return Verdict::kChanged;
  // Where the address is the same, the storage that the sample is read from is the same, and long enough.
  const bool same = now == object_ && version_of(impl) == version_ && impl->data() == data_ &&
                    impl->unsafe_storage().nbytes() == bytes_ &&
                    impl->strides() == c10::IntArrayRef(strides_) && same_sample();
  return same ? Verdict::kUnchanged : Verdict::kWeights;
}

}  // namespace cnnlstm
