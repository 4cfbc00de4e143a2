#include "cpu/prepacked.h"

#include <ATen/Functions.h>

#include <map>
#include <mutex>
#include <tuple>

#include "cpu/threads.h"

namespace cnnlstm {

namespace {

struct Entry {
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;  // as long as it is held, no other storage has its address
  uint64_t version;   // that in-place operations raise
  uint64_t contents;  // the fingerprint, for edits that go past it
  at::Tensor panels;  // from the second use on, and contents with them
};

using Key = std::tuple<const c10::StorageImpl*, const void*, int64_t, int64_t, at::ScalarType>;

struct Store {
  std::mutex mutex;
  std::map<Key, Entry> entries;

  void forget_dead() {
    std::erase_if(entries, [](const auto& item) { return item.second.storage.expired(); });
  }
};

Store& store() {
  static Store& one = *new Store;  // never destroyed: callers may outlive static objects
  return one;
}

}  // namespace

at::Tensor prepacked(const at::Tensor& weight, const Kernels& kernel, int threads) {
  // In a forked child the mutex may have been copied while it was held.
  if (is_forked_child() || !weight.is_contiguous() || weight.numel() == 0) return {};
  const int64_t H = weight.size(0) / 4, K = weight.size(1);
  const void* data = weight.const_data_ptr();
  const auto& storage = weight.storage();
  const Key key{storage.unsafeGetStorageImpl(), data, H, K, weight.scalar_type()};
  const uint64_t version = weight.is_inference() ? 0 : weight._version();
  at::Tensor panels;
  uint64_t packed_contents = 0;
  {
    const std::lock_guard lock(store().mutex);
    auto& entries = store().entries;
    const auto found = entries.find(key);
    if (found == entries.end() || found->second.storage.expired() || found->second.version != version) {
      store().forget_dead();
      entries.insert_or_assign(key, Entry{storage.getWeakStorageImpl(), version, 0, {}});
      return {};
    }
    panels = found->second.panels;
    packed_contents = found->second.contents;
  }
  const uint64_t contents = kernel.fingerprint(data, weight.nbytes(), threads);
  if (panels.defined() && contents == packed_contents) return panels;
  panels = at::empty({int64_t(kernel.packed_floats(H, K))}, at::kFloat);
  kernel.pack(panels.mutable_data_ptr<float>(), data, H, K, threads);
  const std::lock_guard lock(store().mutex);
  store().entries.insert_or_assign(key, Entry{storage.getWeakStorageImpl(), version, contents, panels});
  return panels;
}

int64_t prepacked_bytes() {
  const std::lock_guard lock(store().mutex);
  store().forget_dead();
  int64_t bytes = 0;
  for (const auto& [key, entry] : store().entries) bytes += entry.panels.defined() ? entry.panels.nbytes() : 0;
  return bytes;
}

}  // namespace cnnlstm
