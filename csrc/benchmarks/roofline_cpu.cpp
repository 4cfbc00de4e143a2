#include "benchmarks/roofline_cpu.h"

#include <algorithm>
#include <chrono>
#include <vector>

#ifdef CNNLSTM_X86
#include <immintrin.h>
#endif

namespace cnnlstm {
namespace {

// Each reader sums `count` floats (a multiple of 256) with accumulators enough to hide the latency of the
// sum; each burner does `rounds` rounds of fused multiply-adds and gives the floating-point operations of a
// round.
using Reader = float (*)(const float* data, std::size_t count);
struct Burner {
  float (*run)(std::size_t rounds);
  double flops_per_round;
};

float read_portable(const float* data, std::size_t count) {
  float sums[64] = {};
  for (std::size_t i = 0; i < count; i += 64)
    for (int j = 0; j < 64; ++j) sums[j] += data[i + j];
  return *std::max_element(sums, sums + 64);
}

float burn_portable(std::size_t rounds) {
  float sums[32] = {};
  for (std::size_t i = 0; i < rounds; ++i)
    for (float& sum : sums) sum = sum * 0.999f + 0.001f;
  return *std::max_element(sums, sums + 32);
}

#ifdef CNNLSTM_X86
__attribute__((target("avx"))) float read_avx(const float* data, std::size_t count) {
  __m256 sums[8];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  for (std::size_t i = 0; i < count; i += 64)
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sums[j] = _mm256_add_ps(sums[j], _mm256_loadu_ps(data + i + 8 * j));
  for (int j = 1; j < 8; ++j) sums[0] = _mm256_add_ps(sums[0], sums[j]);
  return _mm256_cvtss_f32(sums[0]);
}

__attribute__((target("avx512f"))) float read_avx512(const float* data, std::size_t count) {
  __m512 sums[16];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (std::size_t i = 0; i < count; i += 256)
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) sums[j] = _mm512_add_ps(sums[j], _mm512_loadu_ps(data + i + 16 * j));
  for (int j = 1; j < 16; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return _mm512_cvtss_f32(sums[0]);
}

__attribute__((target("avx,fma"))) float burn_fma(std::size_t rounds) {
  const __m256 factor = _mm256_set1_ps(0.999f), term = _mm256_set1_ps(0.001f);
  __m256 sums[12];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  for (std::size_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) sums[j] = _mm256_fmadd_ps(sums[j], factor, term);
  for (int j = 1; j < 12; ++j) sums[0] = _mm256_add_ps(sums[0], sums[j]);
  return _mm256_cvtss_f32(sums[0]);
}

__attribute__((target("avx512f"))) float burn_avx512(std::size_t rounds) {
  const __m512 factor = _mm512_set1_ps(0.999f), term = _mm512_set1_ps(0.001f);
  __m512 sums[16];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (std::size_t i = 0; i < rounds; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) sums[j] = _mm512_fmadd_ps(sums[j], factor, term);
  for (int j = 1; j < 16; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return _mm512_cvtss_f32(sums[0]);
}
#endif

Reader reader() {
#ifdef CNNLSTM_X86
  if (__builtin_cpu_supports("avx512f")) return read_avx512;
  if (__builtin_cpu_supports("avx")) return read_avx;
#endif
  return read_portable;
}

Burner burner() {
#ifdef CNNLSTM_X86
  if (__builtin_cpu_supports("avx512f")) return {burn_avx512, 16 * 16 * 2};
  if (__builtin_cpu_supports("fma")) return {burn_fma, 12 * 8 * 2};
#endif
  return {burn_portable, 32 * 2};
}

// Best rate, in work per nanosecond, of `burst` repeated for `seconds`. The best burst and not the mean: a
// limit is what the machine reaches undisturbed.
template <typename Burst>
double best_rate(double work, double seconds, Burst burst) {
  using Clock = std::chrono::steady_clock;
  volatile float sink = burst();  // warms the caches; volatile, so that no burst is optimised away
  double best = 0;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    const auto start = Clock::now();
    sink = burst();
    const std::chrono::duration<double, std::nano> taken = Clock::now() - start;
    best = std::max(best, work / std::max(taken.count(), 1.0));
  } while (Clock::now() < end);
  (void)sink;
  return best;
}

}  // namespace

double read_bandwidth(std::size_t bytes, double seconds) {
  constexpr std::size_t kBlock = 256;
  const std::size_t count = std::max<std::size_t>(bytes / sizeof(float) / kBlock, 1) * kBlock;
  std::vector<float> storage(count + 16, 1.0f);
  float* data = storage.data();
  while (reinterpret_cast<std::size_t>(data) % 64) ++data;
  // A burst reads at least 4 MiB, so that the clock's own cost does not count.
  const std::size_t sweeps = std::max<std::size_t>((std::size_t{1} << 20) / count, 1);
  const Reader read = reader();
  return best_rate(static_cast<double>(sweeps * count * sizeof(float)), seconds, [=] {
    float sum = 0;
    for (std::size_t i = 0; i < sweeps; ++i) sum += read(data, count);
    return sum;
  });
}

double fma_rate(double seconds) {
  constexpr std::size_t kRounds = 20000;
  const Burner burn = burner();
  return best_rate(burn.flops_per_round * kRounds, seconds, [=] { return burn.run(kRounds); });
}

}  // namespace cnnlstm
