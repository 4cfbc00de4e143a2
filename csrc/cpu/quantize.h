// Int8 products: rows quantized symmetrically, each with its own scale, and panels of such rows.
//
// A quantized row of K elements is words<uint8_t>(K) words of the bytes round(x / scale) + 128 (128 beyond
// K), then the scale, a float: max|x| / 127, or NaN if an element of x is not finite. A panel has the bytes
// round(w / scale) without the offset 128, and after the last word 4 vectors of scales and 4 vectors of
// integers: the corrections that cancel what the offset of the other factor adds to each sum.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/panels.h"
#include "cpu/threads.h"

namespace cnnlstm {
namespace {

template <class Operand>
constexpr bool kQuantized = std::is_same_v<Operand, uint8_t>;

using vb = uint8_t __attribute__((vector_size(W)));

// To the nearest integer, ties to even.
CNNLSTM_INLINE vi round(vf x) {
#if defined(__AVX512F__)
  return (vi)_mm512_maskz_cvtps_epi32(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (vi)_mm256_cvtps_epi32((__m256)x);
#elif defined(__SSE2__)
  return (vi)_mm_cvtps_epi32((__m128)x);
#else
  const vf shift = splat(12582912.0f);  // 1.5 * 2^23
  return __builtin_convertvector((x + shift) - shift, vi);
#endif
}

CNNLSTM_INLINE int32_t largest_lane(vi x) {
#pragma GCC unroll 4
  for (int n = W; n > 1; n /= 2) {
    const vi low = (vi)interleave_low((vf)x, (vf)x), high = (vi)interleave_high((vf)x, (vf)x);
    x = low > high ? low : high;
  }
  return x[0];
}

struct RowScale {
  float scale, inverse;
};

template <class T>
RowScale scale_of(const T* from, int64_t K) {
  vi largest{};  // compares bits, whose order is that of non-negative floats, then infinity, then NaN
  for (int64_t k = 0; k < K; k += W) {
    const vi bits = (vi)load(from + k, K - k) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  const int32_t bits = largest_lane(largest);
  float max_abs;
  std::memcpy(&max_abs, &bits, 4);
  const float inverse = 127.0f / max_abs;
  return {max_abs / 127.0f + (max_abs - max_abs),  // NaN where max_abs is not finite
          inverse <= __FLT_MAX__ ? inverse : 0.0f};
}

// Writes words<uint8_t>(K) words.
template <class T>
void quantize_words(uint8_t* to, const T* from, int64_t K, float inverse) {
  const int64_t bytes = 4 * words<uint8_t>(K);
  for (int64_t k = 0; k < bytes; k += W) {
    const vb q = __builtin_convertvector(round(load(from + k, K - k) * inverse) + 128, vb);
    std::memcpy(to + k, &q, bytes - k < W ? bytes - k : W);
  }
}

// Writes quantized_bytes(K) bytes.
template <class T>
void quantize_row(uint8_t* to, const T* from, int64_t K) {
  const RowScale row = scale_of(from, K);
  quantize_words(to, from, K, row.inverse);
  std::memcpy(to + 4 * words<uint8_t>(K), &row.scale, 4);
}

// acc + the sum of the four products of each word, the bytes of w signed and those of x unsigned.
// Intermediate sums may wrap: only the corrected final sum must fit 32 bits.
CNNLSTM_INLINE vi dot4(vi acc, vi w, vi x) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)w);
#elif defined(__SSE2__)
  using vs = int16_t __attribute__((vector_size(W * 4)));
  const vs w_even = ((vs)w << 8) >> 8, w_odd = (vs)w >> 8;
  const vs x_even = (vs)(x & 0x00ff00ff), x_odd = (vs)((vu)x >> 8 & 0x00ff00ffu);
#if defined(__AVX512F__)
  return acc + (vi)_mm512_madd_epi16((__m512i)w_even, (__m512i)x_even) +
         (vi)_mm512_madd_epi16((__m512i)w_odd, (__m512i)x_odd);
#elif defined(__AVX2__)
  return acc + (vi)_mm256_madd_epi16((__m256i)w_even, (__m256i)x_even) +
         (vi)_mm256_madd_epi16((__m256i)w_odd, (__m256i)x_odd);
#else
  return acc + (vi)_mm_madd_epi16((__m128i)w_even, (__m128i)x_even) +
         (vi)_mm_madd_epi16((__m128i)w_odd, (__m128i)x_odd);
#endif
#else
  for (int shift = 24; shift >= 0; shift -= 8)
    acc = (vi)((vu)acc + (vu)(((vi)((vu)w << shift) >> 24) * (vi)((vu)x << shift >> 24)));
  return acc;
#endif
}

CNNLSTM_INLINE vi splat_bytes(const uint8_t* x) {
  int32_t word;
  std::memcpy(&word, x, 4);
  return word - vi{};
}

// acc[m][v] += the product of the quantized row x[m] of n words with vector v of the panel.
template <int M>
CNNLSTM_INLINE void multiply(vf (&acc)[M][4], const float* panel, const uint8_t* const (&x)[M], int64_t n,
                             Prefetch = {}) {
  const float* const end = panel + n * 4 * W;
  vi sums[M][4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) sums[m][v] = (vi)load(end + (4 + v) * W);
  }
  int64_t k = 0;
  if constexpr (M == 1) {  // eight chains of dependent additions, since four would be bound by latency
    vi odd[4] = {};
    for (; k + 1 < n; k += 2) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        sums[0][v] = dot4(sums[0][v], (vi)load(panel + (k * 4 + v) * W), splat_bytes(x[0] + k * 4));
        odd[v] = dot4(odd[v], (vi)load(panel + (k * 4 + 4 + v) * W), splat_bytes(x[0] + k * 4 + 4));
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[0][v] += odd[v];
  }
  for (; k < n; ++k) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const vi w = (vi)load(panel + (k * 4 + v) * W);
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) sums[m][v] = dot4(sums[m][v], w, splat_bytes(x[m] + k * 4));
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    const vf scale = splat_word(x[m] + n * 4);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v)
      acc[m][v] = fma(__builtin_convertvector(sums[m][v], vf), scale * load(end + v * W), acc[m][v]);
  }
}

// The same, from the uncorrected sums (count, 4W) of rows x; rows of `to` and x are ldt and ldx elements
// apart.
inline void add_sums(float* to, int64_t ldt, const int32_t* sums, const float* panel, const uint8_t* x,
                     int64_t ldx, int64_t count, int64_t n) {
  const float* const end = panel + n * 4 * W;
  for (int64_t i = 0; i < count; ++i) {
    const vf scale = splat_word(x + i * ldx + n * 4);
    for (int v = 0; v < 4; ++v) {
      vi sum;
      std::memcpy(&sum, sums + (i * 4 + v) * W, sizeof sum);
      sum += (vi)load(end + (4 + v) * W);
      float* out = to + i * ldt + v * W;
      store(out, fma(__builtin_convertvector(sum, vf), scale * load(end + v * W), load(out)));
    }
  }
}

// Block b of the gates' weights w (4H, K), quantized.
template <class T>
void pack_quantized(float* panel, const T* w, int64_t H, int64_t K, int64_t b) {
  const int64_t n = words<uint8_t>(K), first = b * W, count = std::min<int64_t>(H - first, W);
  float scales[4 * W]{}, inverses[4 * W];
  for (int v = 0; v < 4; ++v) {
    for (int64_t i = 0; i < count; ++i) {
      const RowScale row = scale_of(w + (v * H + first + i) * K, K);
      scales[v * W + i] = row.scale, inverses[v * W + i] = row.inverse;
    }
  }
  constexpr int64_t kWords = 64;  // of each row: they stay in L1
  float rows[4 * W * kWords];
  for (int64_t k = 0; k < n; k += kWords) {
    const int64_t length = std::min(kWords, n - k);
    for (int v = 0; v < 4; ++v) {
      for (int64_t i = 0; i < count; ++i) {
        quantize_words(reinterpret_cast<uint8_t*>(rows + (v * W + i) * length),
                       w + (v * H + first + i) * K + 4 * k, std::min(4 * length, K - 4 * k),
                       inverses[v * W + i]);
      }
    }
    pack_rows(panel + k * 4 * W, rows, length, W, count, 0);
  }
  for (int v = 0; v < 4; ++v) store(panel + (n * 4 + v) * W, load(scales + v * W));
  const vi sign = vi{} + int32_t(0x80808080), ones = vi{} + 0x01010101;
  for (int v = 0; v < 4; ++v) {
    vi sum{};
    for (int64_t k = 0; k < n; ++k) {
      float* word = panel + (k * 4 + v) * W;
      const vi q = (vi)load(word) ^ sign;
      store(word, (vf)q);
      sum = dot4(sum, q, ones);
    }
    store(panel + ((n + 1) * 4 + v) * W, (vf)(sum * -128));
  }
}

template <class T>
void quantize_rows(uint8_t* to, const void* rows, int64_t count, int64_t K, int threads) {
  struct Context {
    uint8_t* to;
    const T* rows;
    int64_t count, K;
  } context{to, static_cast<const T*>(rows), count, K};
  run_team(
      threads,
      [](void* pointer, int rank, int size) {
        const Context& c = *static_cast<Context*>(pointer);
        for (int64_t i = c.count * rank / size; i < c.count * (rank + 1) / size; ++i)
          quantize_row(c.to + i * quantized_bytes(c.K), c.rows + i * c.K, c.K);
      },
      &context);
}

}  // namespace
}  // namespace cnnlstm
