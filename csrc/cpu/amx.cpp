#include "cpu/amx.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace cnnlstm {

namespace {

bool request_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kBf16) || !(d & kTile)) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // Linux: Documentation/arch/x86/xstate.rst
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// The operand of LDTILECFG. Tiles 0 to 3 hold C, 4 holds A, 5 to 7 hold B.
struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {};
};

thread_local int64_t configured_rows = 0;

}  // namespace

bool has_amx_bf16() {
  static const bool has = request_amx();
  return has;
}

__attribute__((target("amx-tile,amx-bf16"))) void multiply_amx(int64_t M, int64_t N, int64_t K, int64_t lda,
                                                               int64_t ldb, int64_t ldc, const void* A,
                                                               const void* B, float* C) {
  if (configured_rows != M) {
    Config config;
    for (int tile = 0; tile < 8; ++tile) config.rows[tile] = tile < 5 ? M : 16;
    _tile_loadconfig(&config);
    configured_rows = M;
  }
  for (int64_t n = 0; n < N; n += 64, C += 64) {
    _tile_loadd(0, C, ldc * 4);
    _tile_loadd(1, C + 16, ldc * 4);
    _tile_loadd(2, C + 32, ldc * 4);
    _tile_loadd(3, C + 48, ldc * 4);
    const char* a = static_cast<const char*>(A);
    const char* b = static_cast<const char*>(B) + n * 4;
    for (int64_t k = 0; k < K; k += 32, a += 64, b += 16 * ldb * 4) {
      _tile_loadd(4, a, lda * 2);
      _tile_loadd(5, b, ldb * 4);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, b + 64, ldb * 4);
      _tile_dpbf16ps(1, 4, 6);
      _tile_loadd(7, b + 128, ldb * 4);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, b + 192, ldb * 4);
      _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, C, ldc * 4);
    _tile_stored(1, C + 16, ldc * 4);
    _tile_stored(2, C + 32, ldc * 4);
    _tile_stored(3, C + 48, ldc * 4);
  }
}

__attribute__((target("amx-tile"))) void release_amx() {
  if (configured_rows != 0) _tile_release();
  configured_rows = 0;
}

}  // namespace cnnlstm

#else

namespace cnnlstm {

bool has_amx_bf16() { return false; }
void multiply_amx(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const void*, const void*, float*) {}
void release_amx() {}

}  // namespace cnnlstm

#endif
