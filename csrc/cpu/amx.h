// Matrix products on AMX, the matrix unit of x86 processors, for few rows.
#pragma once

#include <cstdint>

namespace cnnlstm {

// Whether the processor has AMX for bf16 and the operating system permits this process to use it.
bool has_amx_bf16();

// The maximum M of multiply_amx: the rows of one tile.
constexpr int64_t kAmxRows = 16;

// C (M, N) += A (M, K) B for M <= kAmxRows, N a multiple of 64 and K of 32; C is float, A bf16 and B holds
// bf16 pairs of rows: (K / 2, ldb, 2). This thread's tiles stay configured until release_amx().
void multiply_amx(int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc, const void* A,
                  const void* B, float* C);
void release_amx();

}  // namespace cnnlstm
