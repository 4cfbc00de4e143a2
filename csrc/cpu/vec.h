// Vectors of W floats and the activations on them, in GCC/Clang vector extensions.
//
// Included by the isa_*.cpp files only, each of which is compiled for another instruction set. Everything is
// in an unnamed namespace: the linker would merge a function with external linkage across those translation
// units, and the copy that it keeps may use instructions that the machine does not have.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace cnnlstm {
namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

#define CNNLSTM_INLINE inline __attribute__((always_inline))

using vf = float __attribute__((vector_size(W * 4)));
using vi = int32_t __attribute__((vector_size(W * 4)));
using vu = uint32_t __attribute__((vector_size(W * 4)));
using vh = uint16_t __attribute__((vector_size(W * 2)));

struct bf16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

CNNLSTM_INLINE vf zero() { return vf{}; }
CNNLSTM_INLINE vf splat(float x) { return x - vf{}; }

CNNLSTM_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

CNNLSTM_INLINE vf widen(vh x) { return (vf)(__builtin_convertvector(x, vu) << 16); }

// Round to nearest even; NaN stays NaN.
CNNLSTM_INLINE vh narrow(vf x) {
#if defined(__AVX512BF16__)
  return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
  const vu bits = (vu)x;
  const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const vu quiet_nan = (bits >> 16) | 0x40u;
  const vi is_nan = x != x;
  return __builtin_convertvector((vu)(is_nan ? (vi)quiet_nan : (vi)rounded), vh);
#endif
}

// load(p, n): lanes 0..n-1 from p, the others zero; nothing beyond p[n-1] is read. n >= W loads all lanes, n
// <= 0 none. store(p, n, x): writes lanes 0..n-1 and nothing else.
CNNLSTM_INLINE vf load(const float* p) {
  vf x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

CNNLSTM_INLINE vf load(const bf16* p) {
  vh x;
  std::memcpy(&x, p, sizeof x);
  return widen(x);
}

CNNLSTM_INLINE void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }

CNNLSTM_INLINE void store(bf16* p, vf x) {
  const vh y = narrow(x);
  std::memcpy(p, &y, sizeof y);
}

#if defined(__AVX512F__)
CNNLSTM_INLINE __mmask16 lanes(int64_t n) {
  return n >= W ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

CNNLSTM_INLINE vf load(const float* p, int64_t n) { return (vf)_mm512_maskz_loadu_ps(lanes(n), p); }
CNNLSTM_INLINE vf load(const bf16* p, int64_t n) { return widen((vh)_mm256_maskz_loadu_epi16(lanes(n), p)); }
CNNLSTM_INLINE void store(float* p, int64_t n, vf x) { _mm512_mask_storeu_ps(p, lanes(n), (__m512)x); }
CNNLSTM_INLINE void store(bf16* p, int64_t n, vf x) {
  _mm256_mask_storeu_epi16(p, lanes(n), (__m256i)narrow(x));
}
#else
template <class T>
CNNLSTM_INLINE vf load(const T* p, int64_t n) {
  if (n >= W) return load(p);
  vf x{};
  for (int64_t i = 0; i < n; ++i) x[i] = to_float(p[i]);
  return x;
}

template <class T>
CNNLSTM_INLINE void store(T* p, int64_t n, vf x) {
  if (n >= W) return store(p, x);
  T y[W];
  store(y, x);
  for (int64_t i = 0; i < n; ++i) p[i] = y[i];
}
#endif

// Lanes 0..n-1 of x, the rest zero.
CNNLSTM_INLINE vf first_lanes(int64_t n, vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_mov_ps(lanes(n), (__m512)x);
#else
  for (int64_t i = n < 0 ? 0 : n; i < W; ++i) x[i] = 0.0f;
  return x;
#endif
}

// The lanes of a and b alternately: of their first halves, of their second halves.
#if defined(__AVX512F__)
CNNLSTM_INLINE vf interleave_low(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
CNNLSTM_INLINE vf interleave_high(vf a, vf b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif defined(__AVX2__)
CNNLSTM_INLINE vf interleave_low(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
CNNLSTM_INLINE vf interleave_high(vf a, vf b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
CNNLSTM_INLINE vf interleave_low(vf a, vf b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
CNNLSTM_INLINE vf interleave_high(vf a, vf b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#endif

// The W x W matrix whose rows are x, transposed: each stage moves one bit of the row number into the lane
// number.
CNNLSTM_INLINE void transpose(vf (&x)[W]) {
#pragma GCC unroll 4
  for (int stage = 1; stage < W; stage *= 2) {
    vf y[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i) {
      y[2 * i] = interleave_low(x[i], x[i + W / 2]);
      y[2 * i + 1] = interleave_high(x[i], x[i + W / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) x[i] = y[i];
  }
}

// Lane i is the sum over the lanes of x[i]; the same network with an addition in each stage. Overwrites x.
CNNLSTM_INLINE vf sum_lanes(vf (&x)[W]) {
#pragma GCC unroll 4
  for (int n = W / 2; n > 0; n /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) x[i] = interleave_low(x[i], x[i + n]) + interleave_high(x[i], x[i + n]);
  }
  return x[0];
}

// exp(x) - 1 for |x| <= 87 with a relative error of about 1e-7, also near 0; NaN stays NaN.
// x = n ln2 + r, |r| <= ln2 / 2; exp(r) - 1 = r + r^2 q(r), q from the Taylor series fitted as in Cephes'
// expf; exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1).
CNNLSTM_INLINE vf expm1(vf x) {
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low mantissa bits; the additional 127 turns
  // those bits into the exponent field of 2^n.
  const vf shift = splat(12582912.0f + 127.0f);
  const vf shifted = fma(x, splat(1.44269504088896341f), shift);
  const vf n = shifted - shift;
  vf r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  vf q = fma(splat(1.9875691500e-4f), r, splat(1.3981999507e-3f));
  q = fma(q, r, splat(8.3334519073e-3f));
  q = fma(q, r, splat(4.1665795894e-2f));
  q = fma(q, r, splat(1.6666665459e-1f));
  q = fma(q, r, splat(5.0000001201e-1f));
  const vf e = fma(q, r * r, r);
  const vf power = (vf)((vi)shifted << 23);
  return fma(power, e, power - 1.0f);
}

// Comparisons with NaN are false, so NaN passes through.
CNNLSTM_INLINE vf clamp(vf x, float limit) {
  x = x > splat(limit) ? splat(limit) : x;
  return x < splat(-limit) ? splat(-limit) : x;
}

CNNLSTM_INLINE vf sigmoid(vf x) { return 1.0f / (2.0f + expm1(clamp(-x, 87.0f))); }

CNNLSTM_INLINE vf tanh(vf x) {
  const vf e = expm1(clamp(x + x, 20.0f));  // tanh(10) rounds to 1
  return e / (e + 2.0f);
}

}  // namespace
}  // namespace cnnlstm
