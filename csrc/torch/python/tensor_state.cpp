#include "torch/python/tensor_state.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace cnnlstm {

namespace {

uint32_t version_of(c10::TensorImpl* tensor) {
  return tensor->is_inference() ? 0 : tensor->version_counter().current_version();
}

c10::TensorImpl* unpack(PyObject* tensor) { return THPVariable_Unpack(tensor).unsafeGetTensorImpl(); }

// The next state of a hash: no two words lead from one state to the same next one.
uint64_t mixed(uint64_t state, uint64_t word) {
  state = (state ^ word) * 0x9E3779B97F4A7C15u;
  return state ^ (state >> 29);
}

uint64_t hash_of_layout(const c10::TensorImpl& tensor) {
  uint64_t state = tensor.dim();
  for (const int64_t size : tensor.sizes()) state = mixed(state, size);
  for (const int64_t stride : tensor.strides()) state = mixed(state, stride);
  return state;
}

}  // namespace

TensorState::TensorState(PyObject* tensor)
    : object_(tensor),
      impl_(unpack(tensor)),
      autograd_(unpack(tensor)->autograd_meta()),
      type_(Py_TYPE(tensor)),
      keys_(unpack(tensor)->key_set()),
      version_(version_of(unpack(tensor))),
      dtype_(unpack(tensor)->dtype()),
      device_(unpack(tensor)->device()),
      requires_grad_(unpack(tensor)->requires_grad()) {
  c10::TensorImpl* impl = unpack(tensor);
  strided_ = impl->has_storage() && impl->layout() == c10::kStrided && !impl->is_nested() &&
             !impl->is_python_dispatch() && !impl->has_symbolic_sizes_strides();
  if (!strided_) return;
  storage_ = impl->unsafe_storage().unsafeGetStorageImpl();
  sizes_ = impl->sizes();
  layout_ = hash_of_layout(*impl);
  data_ = static_cast<const std::byte*>(impl->data());
  bytes_ = impl->unsafe_storage().nbytes();
  if (device_.is_cpu() && impl->is_non_overlapping_and_dense() && data_ != nullptr)
    sampled_bytes_ = impl->numel() * dtype_.itemsize();
  sample_ = hash_of_sample();
}

// Calls visit(number, piece, size) for each piece of the sample, which are kLine bytes or, the last one of a
// small tensor, less.
template <typename Visit>
void TensorState::for_each_piece(Visit visit) const {
  const bool whole = sampled_bytes_ <= kSample;
  for (std::size_t i = 0; i < kLines && (!whole || i * kLine < sampled_bytes_); ++i) {
    const std::size_t offset =
        whole ? i * kLine : (sampled_bytes_ - kLine) * i / (kLines - 1) / kLine * kLine;
    visit(i, data_ + offset, std::min(kLine, sampled_bytes_ - offset));
  }
}

void TensorState::prefetch() const {
  __builtin_prefetch(object_);
  for (std::size_t offset = 0; offset < sizeof(c10::TensorImpl); offset += kLine)
    __builtin_prefetch(static_cast<const std::byte*>(impl_) + offset);
  __builtin_prefetch(autograd_);
  __builtin_prefetch(storage_);
  for_each_piece([](std::size_t, const std::byte* piece, std::size_t size) {
    __builtin_prefetch(piece);
    __builtin_prefetch(piece + size - 1);  // pieces need not be aligned
  });
}

// Of each piece for itself, so that the processor computes them side by side.
uint64_t TensorState::hash_of_sample() const {
  std::array<uint64_t, kLines> states{1, 2, 3, 4};
  for_each_piece([&](std::size_t i, const std::byte* piece, std::size_t size) {
    std::array<uint64_t, kLine / sizeof(uint64_t)> words{};
    std::memcpy(words.data(), piece, size);
    for (const uint64_t word : words) states[i] = mixed(states[i], word);
  });
  return mixed(mixed(mixed(states[0], states[1]), states[2]), states[3]);
}

Verdict TensorState::compare(PyObject* now) const {
  if (Py_TYPE(now) != type_) return Verdict::kChanged;
  c10::TensorImpl* impl = unpack(now);
  if (impl->key_set() != keys_ || impl->dtype() != dtype_ || impl->device() != device_ ||
      impl->requires_grad() != requires_grad_)
    return Verdict::kChanged;
  if (!strided_)
    return now == object_ && version_of(impl) == version_ ? Verdict::kUnchanged : Verdict::kChanged;
  const bool laid_out = hash_of_layout(*impl) == layout_;
  if (!laid_out && impl->sizes() != c10::IntArrayRef(sizes_)) return Verdict::kChanged;
  // Where the address is the same, the storage that the sample is read from is the same, and long enough.
  const bool same = now == object_ && version_of(impl) == version_ && impl->data() == data_ &&
                    impl->unsafe_storage().nbytes() == bytes_ && laid_out && hash_of_sample() == sample_;
  return same ? Verdict::kUnchanged : Verdict::kWeights;
}

}  // namespace cnnlstm
