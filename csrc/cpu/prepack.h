// Weights packed once for many calls, and a fingerprint that tells whether they are still the same.
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

// A sum of the words sees each change alone; a sum of products with a key that goes with the place sees those
// that make up for each other, such as two rows exchanged (XXH3, https://github.com/Cyan4973/xxHash, is built
// from the same two). Runs at the speed of reading, of one part in `part` of the bytes.
inline uint64_t hash_chunk(const char* bytes, int64_t count, uint64_t seed, int64_t part) {
  constexpr int kChains = 4;  // sums that do not wait for each other
  constexpr int64_t kVector = sizeof(vq);
  vq words[kChains]{}, products[kChains]{}, keys[kChains];
  for (int j = 0; j < kChains; ++j) keys[j] = vq{} + (seed * kChains + j + 1) * 0x9e3779b97f4a7c15u;
  const auto add = [&](int j, vq x) {
    words[j] += x;
    products[j] += multiply_halves(x ^ keys[j]);
    keys[j] += vq{} + 0xc2b2ae3d27d4eb4fu;
  };
  int64_t i = 0;
  for (; i + kChains * kVector <= count; i += part * kChains * kVector) {
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

inline void fingerprint(Span* spans, int count, int threads) {
  struct Context {
    Span* spans;
    int count;
  } context{spans, count};
  for (int s = 0; s < count; ++s) spans[s].fingerprint = 0;
  run_team(
      threads,
      [](void* pointer, int rank, int size) {
        const Context& c = *static_cast<Context*>(pointer);
        for (int s = 0; s < c.count; ++s) {
          Span& span = c.spans[s];
          const int64_t bytes = span.bytes, chunks = ceil_div(bytes, kChunkBytes);
          uint64_t sum = 0;  // which thread adds which chunk makes no difference
          for (int64_t k = chunks * rank / size; k < chunks * (rank + 1) / size; ++k) {
            const int64_t begin = k * kChunkBytes;
            const int64_t part = k == 0 ? 1 : span.part;
            sum += hash_chunk(static_cast<const char*>(span.data) + begin,
                              std::min(bytes - begin, kChunkBytes), k, part);
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
