#include "torch/cpu/microkernel.h"

#include <ATen/native/CPUBlas.h>

#include <atomic>
#include <utility>

#include "cpu/amx.h"
#include "cpu/isa.h"

namespace cnnlstm {

namespace {

// ATen caches its tile configuration, so it must release it before this library configures tiles.
thread_local bool aten_has_tiles = false;

std::atomic<int64_t> uses{0};
thread_local bool multiplied = false;

void count_use() {
  if (std::exchange(multiplied, false)) uses.fetch_add(1, std::memory_order_relaxed);
}

void release() {
  count_use();
  if (aten_has_tiles) at::native::cpublas::brgemm_release();
  aten_has_tiles = false;
  release_amx();
}

// For a few rows, the overhead of ATen's call exceeds the product itself.
void multiply(int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc, const void* A,
              const void* B, float* C) {
  if (M <= kAmxRows) {
    if (aten_has_tiles) release();
    multiplied = true;
    return multiply_amx(M, N, K, lda, ldb, ldc, A, B, C);
  }
  if (!aten_has_tiles) release_amx();
  aten_has_tiles = multiplied = true;
  at::native::cpublas::brgemm(M, N, K, lda, ldb, ldc, true, static_cast<const at::BFloat16*>(A),
                              static_cast<const at::BFloat16*>(B), C);
}

}  // namespace

GemmMicrokernel bf16_microkernel(at::ScalarType dtype) {
  if (dtype != at::kBFloat16 || active_isa() != Isa::avx512 || !at::native::cpublas::could_pack(dtype) ||
      !has_amx_bf16()) {
    return {};
  }
  return {multiply, release, nullptr};
}

GemmMicrokernel int8_microkernel() {
  if (active_isa() != Isa::avx512 || !at::native::cpublas::could_pack(at::kByte)) return {};
  return {nullptr,
          [] {
            count_use();
            at::native::cpublas::brgemm_release();
          },
          [](int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc, const uint8_t* A,
             const int8_t* B, int32_t* C) {
            multiplied = true;
            at::native::cpublas::brgemm(M, N, K, lda, ldb, ldc, false, A,
                                        reinterpret_cast<const signed char*>(B), C);
          }};
}

int64_t microkernel_uses() { return uses.load(std::memory_order_relaxed); }

}  // namespace cnnlstm
