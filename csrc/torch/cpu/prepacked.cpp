#include "torch/cpu/prepacked.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <pthread.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "cpu/threads.h"

namespace cnnlstm {

namespace {

// Fewer bytes to read than this are not worth another thread.
constexpr size_t kBytesPerThread = 1 << 17;

// Every so many calls what belongs to weights that no longer exist is freed.
constexpr int kCallsPerSweep = 32;

using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

struct Entry {
  WeakStorage storage;   // while it is held, no other storage has its address
  uint64_t version;      // incremented by in-place operations
  uint64_t fingerprint;  // for edits that do not change the version; 0 of a frozen weight
  at::Tensor made;       // the panels or the copy; set on the second use, with the fingerprint
};

// A storage, and where in it a weight begins.
using Place = std::pair<const c10::StorageImpl*, const void*>;

Place place_of(const at::Tensor& weight) {
  return {weight.storage().unsafeGetStorageImpl(), weight.const_data_ptr()};
}

// What is made: panels for these kernels, or (null) a copy of that dtype.
using Key =
    std::tuple<const c10::StorageImpl*, const void*, int64_t, int64_t, at::ScalarType, const Kernels*>;

struct Cache {
  std::mutex mutex;
  std::map<Key, Entry> entries;
  std::map<Place, WeakStorage> frozen;
  int calls = 0;

  void sweep() {
    calls = 0;
    std::erase_if(entries, [](const auto& item) { return item.second.storage.expired(); });
    std::erase_if(frozen, [](const auto& item) { return item.second.expired(); });
  }

  bool is_frozen(const at::Tensor& weight) const {
    const auto found = frozen.empty() ? frozen.end() : frozen.find(place_of(weight));
    return found != frozen.end() && !found->second.expired();
  }
};

// Never destroyed: callers may outlive static objects, and a forked child's copy may be half changed.
Cache* process_cache = new Cache;
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, [] { process_cache = new Cache; });

uint64_t version_of(const at::Tensor& weight) { return weight.is_inference() ? 0 : weight._version(); }

int threads_for(size_t bytes) {
  return int(std::clamp<size_t>(bytes / kBytesPerThread, 1, at::get_num_threads()));
}

// One weight of a call, and what is known of it.
struct Use {
  at::Tensor weight;
  Key key;
  int64_t sampling_period;
  bool known = false;  // it has been used before, and is of the same version
  bool frozen = false;
  FingerprintSpan span;  // its contents now
  uint64_t packed_fingerprint = 0;
  at::Tensor made;
};

// Reads the entries of all uses, and then the contents of the weights that are known and not frozen.
void look_up(std::vector<Use>& uses, void (*fingerprint)(FingerprintSpan*, int, int)) {
  {
    Cache& cache = *process_cache;
    const std::lock_guard lock(cache.mutex);
    for (Use& use : uses) {
      use.frozen = cache.is_frozen(use.weight);
      const auto found = cache.entries.find(use.key);
      if (found != cache.entries.end() && !found->second.storage.expired() &&
          found->second.version == version_of(use.weight)) {
        use.known = true;
        use.made = found->second.made;
        use.packed_fingerprint = found->second.fingerprint;
      } else {
        cache.sweep();
        cache.entries.insert_or_assign(
            use.key, Entry{use.weight.storage().getWeakStorageImpl(), version_of(use.weight), 0, {}});
      }
    }
  }
  std::vector<FingerprintSpan> spans;
  size_t bytes = 0;
  for (const Use& use : uses) {
    if (!use.known || use.frozen) continue;
    spans.push_back({use.weight.const_data_ptr(), use.weight.nbytes(), use.sampling_period, 0});
    bytes += use.weight.nbytes();
  }
  if (!spans.empty()) fingerprint(spans.data(), int(spans.size()), threads_for(bytes));
  auto span = spans.begin();
  for (Use& use : uses) use.span = use.known && !use.frozen ? *span++ : FingerprintSpan{};
}

// Whether what is kept has to be made (anew), and is then to be kept by keep().
bool must_make(const Use& use) {
  if (!use.known && !use.frozen) return false;
  return !use.made.defined() || use.span.fingerprint != use.packed_fingerprint;
}

void keep(const Use& use) {
  Cache& cache = *process_cache;
  const std::lock_guard lock(cache.mutex);
  cache.entries.insert_or_assign(use.key, Entry{use.weight.storage().getWeakStorageImpl(),
                                                version_of(use.weight), use.span.fingerprint, use.made});
}

Key key_of(const at::Tensor& weight, at::ScalarType dtype, const Kernels* kernel) {
  return {weight.storage().unsafeGetStorageImpl(),
          weight.const_data_ptr(),
          weight.size(0),
          weight.dim() > 1 ? weight.size(1) : 1,
          dtype,
          kernel};
}

// Reading all float weights at every call would take longer than the int8 products. Edits through autograd
// change the version; weights without a version (inference tensors) are read completely.
int64_t sampling_period(const at::Tensor& weight, const Kernels& kernel) {
  return kernel.quantize_rows == nullptr || weight.is_inference() ? 1 : 64;
}

}  // namespace

void count_call() {
  const std::lock_guard lock(process_cache->mutex);
  if (++process_cache->calls >= kCallsPerSweep) process_cache->sweep();
}

std::vector<at::Tensor> prepacked(const std::vector<WantedPanels>& wanted, const Kernels& kernel) {
  std::vector<at::Tensor> panels(wanted.size());
  std::vector<Use> uses;
  std::vector<size_t> places;
  {
    const std::lock_guard lock(process_cache->mutex);
    for (size_t i = 0; i < wanted.size(); ++i) {
      const at::Tensor& weight = wanted[i].weight;
      if (!weight.defined() || !weight.is_contiguous() || weight.numel() == 0) continue;
      if (!wanted[i].pays && !process_cache->is_frozen(weight)) continue;
      places.push_back(i);
      uses.push_back(
          {weight, key_of(weight, weight.scalar_type(), &kernel), sampling_period(weight, kernel)});
    }
  }
  if (uses.empty()) return panels;
  look_up(uses, kernel.fingerprint);
  for (size_t k = 0; k < uses.size(); ++k) {
    Use& use = uses[k];
    if (must_make(use)) {
      const int64_t H = use.weight.size(0) / 4, K = use.weight.size(1);
      use.made = at::empty({int64_t(kernel.packed_floats(H, K))}, at::kFloat);
      kernel.pack(use.made.mutable_data_ptr<float>(), use.weight.const_data_ptr(), H, K,
                  threads_for(use.weight.nbytes()));
      keep(use);
    }
    panels[places[k]] = use.made;
  }
  return panels;
}

// Plain memory of a CPU, and nothing that takes part in the operators on it.
static bool has_contents(const at::Tensor& weight) {
  constexpr c10::DispatchKeySet others{c10::DispatchKey::Python,
                                       c10::DispatchKey::FuncTorchDynamicLayerFrontMode};
  return weight.has_storage() && weight.device().is_cpu() && !weight.key_set().has_any(others) &&
         !c10::impl::tls_local_dispatch_key_set().included_.has_any(others);
}

std::vector<at::Tensor> cast_weights(at::TensorList weights, at::ScalarType dtype) {
  std::vector<at::Tensor> found(weights.size());
  std::vector<Use> uses;
  std::vector<size_t> places;
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor& weight = weights[i];
    if (has_contents(weight) && weight.scalar_type() == at::kFloat && weight.is_contiguous() &&
        weight.numel() > 0) {
      places.push_back(i);
      uses.push_back({weight, key_of(weight, dtype, nullptr), 1});
    } else {
      found[i] = weight.to(dtype);
    }
  }
  if (!uses.empty()) look_up(uses, kernels(false).fingerprint);
  for (size_t k = 0; k < uses.size(); ++k) {
    Use& use = uses[k];
    if (must_make(use)) {
      use.made = use.weight.to(dtype);
      keep(use);
      freeze(use.made);
    }
    found[places[k]] = use.made.defined() ? use.made : use.weight.to(dtype);
  }
  return found;
}

void freeze(at::TensorList weights) {
  thaw(weights);
  const std::lock_guard lock(process_cache->mutex);
  for (const at::Tensor& weight : weights)
    process_cache->frozen.emplace(place_of(weight), weight.storage().getWeakStorageImpl());
}

void thaw(at::TensorList weights) {
  const std::lock_guard lock(process_cache->mutex);
  for (const at::Tensor& weight : weights) {
    const Place place = place_of(weight);
    process_cache->frozen.erase(place);
    // What was made of a frozen weight has no fingerprint.
    std::erase_if(process_cache->entries, [&](const auto& item) {
      return Place{std::get<0>(item.first), std::get<1>(item.first)} == place;
    });
  }
}

bool is_frozen(const at::Tensor& weight) {
  const std::lock_guard lock(process_cache->mutex);
  return process_cache->is_frozen(weight);
}

int64_t prepacked_bytes() {
  const std::lock_guard lock(process_cache->mutex);
  int64_t bytes = 0;
  for (const auto& [key, entry] : process_cache->entries)
    bytes += entry.made.defined() ? entry.made.nbytes() : 0;
  return bytes;
}

void clear_prepacked() {
  const std::lock_guard lock(process_cache->mutex);
  process_cache->entries.clear();
}

}  // namespace cnnlstm
