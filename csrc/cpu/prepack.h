// Weights packed once for many calls, and a fingerprint that detects changes of them.
#pragma once

#include "cpu/forward.h"

namespace cnnlstm {
namespace {

template <class Operand>
size_t packed_floats(int64_t H, int64_t K) {
  return ceil_div(H, W) * gate_panel_floats<Operand>(K);
}

template <class T, class Operand = T>
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
          pack_gates<Operand>(c.panels, gate_panel_floats<Operand>(c.K), c.weight, c.H, c.K, b);
      },
      &context);
}

using vq = uint64_t __attribute__((vector_size(W * 4)));

// The product of the two halves of each 64-bit lane.
CNNLSTM_INLINE vq multiply_halves(vq x) {
#if defined(__AVX512F__)
  return (vq)_mm512_maskz_mul_epu32(0xff, (__m512i)x, (__m512i)(x >> 32));
#elif defined(__AVX2__)
  return (vq)_mm256_mul_epu32((__m256i)x, (__m256i)(x >> 32));
#else
  return (x & 0xffffffffu) * (x >> 32);
#endif
}

constexpr int64_t kChunkBytes = 1 << 15;

// The sum of the words detects every single change; the sum of products with a key that depends on the
// position detects changes that cancel in the first sum, such as two exchanged rows (XXH3,
// https://github.com/Cyan4973/xxHash, combines the same two). Runs at memory speed, and reads one in
// `sampling_period` bytes.
inline uint64_t hash_chunk(const char* bytes, int64_t count, uint64_t seed, int64_t sampling_period) {
  constexpr int kChains = 4;  // independent sums
  constexpr int64_t kVector = sizeof(vq);
  vq words[kChains]{}, products[kChains]{}, keys[kChains];
  for (int j = 0; j < kChains; ++j) keys[j] = vq{} + (seed * kChains + j + 1) * 0x9e3779b97f4a7c15u;
  const auto add = [&](int j, vq x) {
    words[j] += x;
    products[j] += multiply_halves(x ^ keys[j]);
    keys[j] += vq{} + 0xc2b2ae3d27d4eb4fu;
  };
  int64_t i = 0;
  for (; i + kChains * kVector <= count; i += sampling_period * kChains * kVector) {
#pragma GCC unroll 4
    for (int j = 0; j < kChains; ++j) {
      vq x;
      std::memcpy(&x, bytes + i + j * kVector, kVector);
      add(j, x);
    }
  }
  for (; i < count; i += kVector) {
    vq x{};
    std::memcpy(&x, bytes + i, count - i < kVector ? count - i : kVector);
    add(0, x);
  }
  uint64_t hash = seed;
  for (int j = 0; j < kChains; ++j) {
    for (int lane = 0; lane < int(kVector / 8); ++lane) {
      for (const uint64_t part : {words[j][lane], products[j][lane]}) {
        hash = (hash ^ part) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
      }
    }
  }
  return hash;
}

inline void fingerprint(FingerprintSpan* spans, int count, int threads) {
  struct Context {
    FingerprintSpan* spans;
    int count;
  } context{spans, count};
  for (int s = 0; s < count; ++s) spans[s].fingerprint = 0;
  run_team(
      threads,
      [](void* pointer, int rank, int size) {
        const Context& c = *static_cast<Context*>(pointer);
        for (int s = 0; s < c.count; ++s) {
          FingerprintSpan& span = c.spans[s];
          const int64_t bytes = span.bytes, chunks = ceil_div(bytes, kChunkBytes);
          uint64_t sum = 0;  // addition commutes: the result does not depend on the threads
          for (int64_t k = chunks * rank / size; k < chunks * (rank + 1) / size; ++k) {
            const int64_t begin = k * kChunkBytes;
            const int64_t period = k == 0 ? 1 : span.sampling_period;
            sum += hash_chunk(static_cast<const char*>(span.data) + begin,
                              std::min(bytes - begin, kChunkBytes), k, period);
          }
          __atomic_fetch_add(&span.fingerprint, sum, __ATOMIC_RELAXED);
        }
      },
      &context);
}

template <class T>
constexpr Kernels kKernels{forward_workspace<T>, forward<T>, backward_workspace<T>, backward<T>,
                           packed_floats<T>,     pack<T>,    fingerprint,           transpose_matrix<T>};

template <class T>
constexpr Kernels kQuantizedKernels{forward_workspace<T, uint8_t>,
                                    forward<T, uint8_t>,
                                    nullptr,
                                    nullptr,
                                    packed_floats<uint8_t>,
                                    pack<T, uint8_t>,
                                    fingerprint,
                                    transpose_matrix<T>,
                                    quantize_rows<T>};

}  // namespace
}  // namespace cnnlstm
