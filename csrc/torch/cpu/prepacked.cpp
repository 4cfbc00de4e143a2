#include "torch/cpu/prepacked.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "cpu/threads.h"

namespace cnnlstm {

namespace {

// Fewer bytes to read than this are not worth another thread.
constexpr size_t kBytesPerThread = 1 << 17;

struct Entry {
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;  // while it is held, no other storage has its address
  uint64_t version;                                   // incremented by in-place operations
  uint64_t fingerprint;                               // for edits that do not change the version
  at::Tensor panels;                                  // set on the second use, with the fingerprint
};

using Key =
    std::tuple<const c10::StorageImpl*, const void*, int64_t, int64_t, at::ScalarType, const Kernels*>;

struct PanelCache {
  std::mutex mutex;
  std::map<Key, Entry> entries;

  void erase_expired() {
    std::erase_if(entries, [](const auto& item) { return item.second.storage.expired(); });
  }
};

PanelCache& panel_cache() {
  static PanelCache& cache = *new PanelCache;  // never destroyed: callers may outlive static objects
  return cache;
}

Key key_of(const at::Tensor& weight, const Kernels& kernel) {
  return {weight.storage().unsafeGetStorageImpl(),
          weight.const_data_ptr(),
          weight.size(0),
          weight.size(1),
          weight.scalar_type(),
          &kernel};
}

uint64_t version_of(const at::Tensor& weight) { return weight.is_inference() ? 0 : weight._version(); }

// Reading all float weights at every call would take longer than the int8 products. Edits through autograd
// change the version; weights without a version (inference tensors) are read completely.
int64_t sampling_period(const at::Tensor& weight, const Kernels& kernel) {
  return kernel.quantize_rows == nullptr || weight.is_inference() ? 1 : 64;
}

int threads_for(size_t bytes) {
  return int(std::clamp<size_t>(bytes / kBytesPerThread, 1, at::get_num_threads()));
}

}  // namespace

std::vector<at::Tensor> prepacked(const std::vector<at::Tensor>& weights, const Kernels& kernel) {
  std::vector<at::Tensor> panels(weights.size());
  // In a forked child the mutex may have been copied while it was held.
  if (is_forked_child()) return panels;
  std::vector<size_t> known;                  // indices of weights that are in the cache
  std::vector<FingerprintSpan> spans;         // their current contents
  std::vector<uint64_t> packed_fingerprints;  // their contents when they were packed
  size_t bytes = 0;
  {
    const std::lock_guard lock(panel_cache().mutex);
    auto& entries = panel_cache().entries;
    for (size_t i = 0; i < weights.size(); ++i) {
      const at::Tensor& weight = weights[i];
      if (!weight.is_contiguous() || weight.numel() == 0) continue;
      const auto found = entries.find(key_of(weight, kernel));
      if (found == entries.end() || found->second.storage.expired() ||
          found->second.version != version_of(weight)) {
        panel_cache().erase_expired();
        entries.insert_or_assign(key_of(weight, kernel),
                                 Entry{weight.storage().getWeakStorageImpl(), version_of(weight), 0, {}});
        continue;
      }
      known.push_back(i);
      panels[i] = found->second.panels;
      packed_fingerprints.push_back(found->second.fingerprint);
      spans.push_back({weight.const_data_ptr(), weight.nbytes(), sampling_period(weight, kernel), 0});
      bytes += weight.nbytes();
    }
  }
  kernel.fingerprint(spans.data(), int(spans.size()), threads_for(bytes));
  for (size_t k = 0; k < known.size(); ++k) {
    const at::Tensor& weight = weights[known[k]];
    at::Tensor& packed = panels[known[k]];
    if (packed.defined() && spans[k].fingerprint == packed_fingerprints[k]) continue;
    const int64_t H = weight.size(0) / 4, K = weight.size(1);
    packed = at::empty({int64_t(kernel.packed_floats(H, K))}, at::kFloat);
    kernel.pack(packed.mutable_data_ptr<float>(), spans[k].data, H, K, threads_for(spans[k].bytes));
    const std::lock_guard lock(panel_cache().mutex);
    panel_cache().entries.insert_or_assign(
        key_of(weight, kernel),
        Entry{weight.storage().getWeakStorageImpl(), version_of(weight), spans[k].fingerprint, packed});
  }
  return panels;
}

int64_t prepacked_bytes() {
  const std::lock_guard lock(panel_cache().mutex);
  panel_cache().erase_expired();
  int64_t bytes = 0;
  for (const auto& [key, entry] : panel_cache().entries)
    bytes += entry.panels.defined() ? entry.panels.nbytes() : 0;
  return bytes;
}

}  // namespace cnnlstm
