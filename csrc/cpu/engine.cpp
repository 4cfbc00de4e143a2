#include "cpu/engine.h"

#include <ATen/native/CPUBlas.h>

#include "cpu/isa.h"

namespace cnnlstm {

MatrixEngine matrix_engine(at::ScalarType dtype) {
  if (dtype != at::kBFloat16 || active_isa() != Isa::avx512 || !at::native::cpublas::could_pack(dtype))
    return {};
  return {[](int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc, const void* A,
             const void* B, float* C) {
            at::native::cpublas::brgemm(M, N, K, lda, ldb, ldc, true, static_cast<const at::BFloat16*>(A),
                                        static_cast<const at::BFloat16*>(B), C);
          },
          [] { at::native::cpublas::brgemm_release(); }};
}

}  // namespace cnnlstm
