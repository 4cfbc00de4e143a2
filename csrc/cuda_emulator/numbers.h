// The arithmetic and vector types of CUDA that C++ lacks.
#pragma once

#include <math.h>
#include <stdint.h>

#include <bit>

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace cnnlstm {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

namespace emulator {

inline float widen(bf16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

inline float widen(fp16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16;
  const uint32_t rest = (x.bits & 0x7fffu) << 13;
  if (rest >= 0x0f800000u) return std::bit_cast<float>(sign | rest | 0x7f800000u);  // infinity or NaN
  // the exponent's bias grows from 15 to 127, also for subnormal numbers
  const float magnitude = std::bit_cast<float>(rest) * 0x1p112f;
  return sign ? -magnitude : magnitude;
}

// To the nearest, ties to even.
inline bf16 narrow_bf16(float x) {
  if (isnan(x)) return {0x7fff};
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

inline fp16 narrow_fp16(float x) {
  if (isnan(x)) return {0x7fff};
  const uint32_t sign = std::bit_cast<uint32_t>(x) >> 16 & 0x8000u;
  const float magnitude = fabsf(x);
  uint32_t bits;
  if (magnitude >= 65520.0f) {
    bits = 0x7c00u;
  } else if (magnitude < 0x1p-14f) {
    bits = static_cast<uint32_t>(nearbyintf(magnitude * 0x1p24f));
  } else {
    const uint32_t wide = std::bit_cast<uint32_t>(magnitude) - (112u << 23);
    bits = (wide + 0xfffu + (wide >> 13 & 1)) >> 13;
  }
  return {static_cast<uint16_t>(sign | bits)};
}

// To that many significant bits of the 24, ties away from zero.
template <int kBits>
inline float round_to_bits(float x) {
  constexpr uint32_t kDropped = 24 - kBits;
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (!isfinite(x)) return x;
  return std::bit_cast<float>((bits + (1u << (kDropped - 1))) & ~((1u << kDropped) - 1));
}

}  // namespace emulator
}  // namespace cnnlstm
