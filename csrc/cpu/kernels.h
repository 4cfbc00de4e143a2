// The interface of the CPU kernels, which run the recurrence of one LSTM layer: raw pointers and sizes, no
// torch header.
//
// Names: T steps, B sequences, H units, P = size of h (proj_size, or H), D directions. A "row" is the
// r-th sequence at step t; the sequences are ordered so that those active at step t are r < active[t].
// Every pointer is owned by the caller and must stay valid during the call. `void*` to data means
// elements of the kernel's dtype (float or bf16). Matrices are dense, rows one after the other.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cnnlstm {

// Row (t, r) of a matrix is its row step[t] + row[r].
struct RowMap {
  const int64_t* step;  // (T)
  const int64_t* row;   // (B)
};

struct Sequences {
  int64_t T;
  int64_t B;
  const int64_t* active;  // (T + 1): active[t] sequences at step t, never increasing; active[T] = 0
  const int64_t* batch;   // (B): which row of h0, c0, h_n, c_n belongs to the r-th sequence
  RowMap rows;            // rows of cells, gates and reset
  RowMap compact;         // rows of the matrices that hold active rows only, in order of t, then r
  const uint8_t* reset;   // rows: nonzero zeroes h and c before that step; or null
};

// A GEMM micro-kernel that runs on a matrix unit (AMX); null pointers where there is none.
// multiply: C (M, N) += A (M, K) B of bf16, where C is float and B holds pairs of rows: (K / 2, N, 2). K is a
// multiple of 32, since A may be read in whole tiles.
// release: called at the end by each thread that has called multiply.
// multiply_int8: C = A B of unsigned and signed bytes, where B holds quadruples of rows: (K / 4, N, 4).
struct GemmMicrokernel {
  void (*multiply)(int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc, const void* A,
                   const void* B, float* C);
  void (*release)();
  void (*multiply_int8)(int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc,
                        const uint8_t* A, const int8_t* B, int32_t* C) = nullptr;
};

// Length of a tile row of the micro-kernel: rows of A are padded to a multiple of this many bf16, or of twice
// as many bytes.
constexpr int64_t kMicrokernelTile = 32;

// One or two rows of bf16 are multiplied without the micro-kernel, which takes as long for one row as for
// four. AMX may run at a third of its speed for seconds, where another machine shares the core
// (docs/notes/cpu.md): for two rows it loses more then than it gains otherwise.
constexpr int64_t kMicrokernelMinRows = 3;

// Stride in bytes of quantized rows: K bytes, padded to words, and their scale (quantize.h).
constexpr int64_t quantized_bytes(int64_t K) { return (K + 3) / 4 * 4 + 4; }

// The longest rows whose int8 products cannot overflow a sum of 32 bits: 127 * 127 * 2^17 < 2^31.
constexpr int64_t kMaxQuantizedLength = 1 << 17;

struct ForwardDirection {
  bool reverse;
  const void* w_ih;            // (4H, I), gates in the order i f g o
  const float* input_product;  // (input rows, 4H): input times w_ih^T, or null: the kernel computes it
  const void* b_ih;            // (4H), or null: no bias
  const void* b_hh;            // (4H), or null
  const void* w_hh;            // (4H, P)
  const void* w_hr;            // (P, H), or null: no projection and P = H
  const void* packed_w_ih;     // in the layout of Kernels::pack, or null: packed here if should_pack_input()
  const void* packed_w_hh;
  const void* h0;  // (B, P)
  const void* c0;  // (B, H)
  void* h_n;       // (B, P), every element is written
  void* c_n;       // (B, H), every element is written
  void* output;    // output_rows x (P), rows `output_stride` elements apart
  RowMap output_rows;
  int64_t output_stride;
  void* cells;  // rows x (H), or null
  void* gates;  // rows x (4H), activated, or null
};

struct ForwardLayer {
  Sequences seq;
  uint32_t call;              // a number of this call: the next one of the same caller has the next
  bool keeps_panels;          // what is packed for this call will be kept for the next ones
  bool input_product_has_h0;  // T = 1 only: input_product includes h0 times w_hh^T
  // input_rows x (I), rows `input_stride` elements apart, which is even for bf16; elements from I to
  // input_stride are zero. For int8 kernels quantized rows, and I <= kMaxQuantizedLength.
  const void* input;
  RowMap input_rows;
  int64_t input_stride;
  GemmMicrokernel microkernel;
  int64_t I;
  int64_t H;
  int64_t P;
  int D;
  int threads;
  ForwardDirection direction[2];
  void* workspace;  // forward_workspace() bytes, 64-byte aligned
};

// Whether packing W_ih, which is read for `rows` rows, or W_hh takes less time than it saves.
bool should_pack_input(const ForwardLayer& layer, int64_t rows);
bool should_pack_gates(const ForwardLayer& layer);

// Whether it is faster to compute input_product for `rows` rows of float32 with a GEMM library before the
// kernel.
bool should_hoist_input(const ForwardLayer& layer, int64_t rows);

struct BackwardDirection {
  bool reverse;
  const void* w_hh;         // (4H, P)
  const void* w_hr;         // (P, H), or null
  const void* c0;           // (B, H)
  const void* cells;        // rows x (H)
  const void* gates;        // rows x (4H)
  const void* grad_output;  // grad_output_rows x (P), rows `grad_output_stride` elements apart; or null
  RowMap grad_output_rows;
  int64_t grad_output_stride;
  const void* grad_cells;     // rows x (H), or null
  const void* grad_h_n;       // (B, P), or null
  const void* grad_c_n;       // (B, H), or null
  void* grad_gates;           // compact x (4H): gradient of the gates before activation
  int64_t grad_gates_stride;  // elements from row to row
  void* grad_projected;       // compact x (P): gradient of h, needed and written with w_hr only
  void* unprojected;          // compact x (H): o tanh(c), written with w_hr only
  void* grad_h0;              // (B, P), every element is written
  void* grad_c0;              // (B, H), every element is written
};

struct BackwardLayer {
  Sequences seq;
  GemmMicrokernel microkernel;
  int64_t H;
  int64_t P;
  int D;
  int threads;
  BackwardDirection direction[2];
  void* workspace;  // backward_workspace() bytes, 64-byte aligned
};

struct FingerprintSpan {
  const void* data;
  size_t bytes;
  int64_t sampling_period;  // beyond the first 32 KB, one in so many bytes is read
  uint64_t fingerprint;
};

// The kernels of one instruction set and dtype. Kernels with int8 products have no backward pass.
struct Kernels {
  size_t (*forward_workspace)(const ForwardLayer&);
  void (*forward)(const ForwardLayer&);
  size_t (*backward_workspace)(const BackwardLayer&);
  void (*backward)(const BackwardLayer&);
  // The size of the panels of a matrix (4H, K), which are 64-byte aligned.
  size_t (*packed_floats)(int64_t H, int64_t K);
  void (*pack)(float* panels, const void* weight, int64_t H, int64_t K, int threads);
  void (*fingerprint)(FingerprintSpan* spans, int count, int threads);
  // to[c * to_stride + r] = from[r * from_stride + c]
  void (*transpose)(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t rows,
                    int64_t columns);
  // Of int8 kernels only; the rows are dense.
  void (*quantize_rows)(uint8_t* to, const void* rows, int64_t count, int64_t K, int threads) = nullptr;
};

const Kernels& kernels_portable(bool is_bf16);
const Kernels& kernels_avx2(bool is_bf16);
const Kernels& kernels_avx512(bool is_bf16);
const Kernels& kernels_avx512_bf16();  // dtype bf16; only where has_avx512_bf16()

// float tensors, int8 products
const Kernels& kernels_portable_int8();
const Kernels& kernels_avx2_int8();
const Kernels& kernels_avx512_int8();
const Kernels& kernels_avx512_vnni_int8();  // only where has_avx512_vnni()

// The kernels of active_isa().
const Kernels& kernels(bool is_bf16);
const Kernels& kernels_int8();

}  // namespace cnnlstm
