// Weights packed once for many calls, and a fingerprint that tells whether they are still the same.
#pragma once

#include "cpu/forward.h"

namespace cnnlstm {
namespace {

template <class T>
size_t packed_floats(int64_t H, int64_t K) {
  return ceil_div(H, W) * gate_panel_floats<T>(K);
}

template <class T>
void pack(float* panels, const void* weight, int64_t H, int64_t K, int threads) {
  struct Context {
    float* panels;
    const T* weight;
    int64_t H, K;
  } context{panels, static_cast<const T*>(weight), H, K};
  run_team(
      threads,
      [](void* pointer, int rank, int size) {
        const Context& c = *static_cast<Context*>(pointer);
        const int64_t blocks = ceil_div(c.H, W);
        for (int64_t b = blocks * rank / size; b < blocks * (rank + 1) / size; ++b)
          pack_gates(c.panels, gate_panel_floats<T>(c.K), c.weight, c.H, c.K, b);
      },
      &context);
}

constexpr int64_t kChunkBytes = 1 << 15;

// One multiplication and rotation a word, in lanes; each step can be undone, so that no change of a single word
// is lost.
inline uint64_t hash_chunk(const char* bytes, int64_t count, uint64_t seed) {
  constexpr int kChains = 4;  // multiplications that do not wait for each other
  constexpr int64_t kVector = sizeof(vu);
  vu state[kChains];
  for (int j = 0; j < kChains; ++j) state[j] = vu{} + uint32_t(seed * 4 + j + 1);
  const auto mix = [](vu state, vu x) {
    const vu y = (state ^ x) * 0x9e3779b1u;
    return y << 13 | y >> 19;
  };
  int64_t i = 0;
  for (; i + kChains * kVector <= count; i += kChains * kVector) {
#pragma GCC unroll 4
    for (int j = 0; j < kChains; ++j) {
      vu x;
      std::memcpy(&x, bytes + i + j * kVector, kVector);
      state[j] = mix(state[j], x);
    }
  }
  for (; i < count; i += kVector) {
    vu x{};
    std::memcpy(&x, bytes + i, count - i < kVector ? count - i : kVector);
    state[0] = mix(state[0], x);
  }
  uint64_t hash = seed;
  for (const vu& chain : state) {
    for (int lane = 0; lane < W; ++lane) {
      hash = (hash ^ chain[lane]) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 32;
    }
  }
  return hash;
}

inline uint64_t fingerprint(const void* data, size_t bytes, int threads) {
  struct Context {
    const char* data;
    int64_t bytes;
    uint64_t sum;
  } context{static_cast<const char*>(data), int64_t(bytes), 0};
  run_team(
      threads,
      [](void* pointer, int rank, int size) {
        Context& c = *static_cast<Context*>(pointer);
        const int64_t chunks = ceil_div(c.bytes, kChunkBytes);
        uint64_t sum = 0;
        for (int64_t k = chunks * rank / size; k < chunks * (rank + 1) / size; ++k) {
          const int64_t begin = k * kChunkBytes, left = c.bytes - begin;
          sum += hash_chunk(c.data + begin, left < kChunkBytes ? left : kChunkBytes, k);
        }
        __atomic_fetch_add(&c.sum, sum, __ATOMIC_RELAXED);
      },
      &context);
  return context.sum;
}

template <class T>
constexpr Kernels kKernels{forward_workspace<T>, forward<T>,       backward_workspace<T>, backward<T>,
                           packed_floats<T>,     pack<T>,          fingerprint};

}  // namespace
}  // namespace cnnlstm
