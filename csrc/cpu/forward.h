// Forward recurrence of one layer: gate product, activations and state update in one pass over the registers.
//
// T is the dtype of the tensors, Operand the type that the gates' products read: T, or uint8_t for int8
// products (quantize.h).
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/quantize.h"
#include "cpu/thread_partition.h"

namespace cnnlstm {
namespace {

// The input projection is computed in chunks of as many steps as fit this many bytes of a thread's L2.
constexpr int64_t kInputChunkBytes = 1 << 18;

// The product with W_ih runs over slices of the reduction: so many words of a panel stay in L2 while all rows
// use them. Integer sums are not split.
template <class Operand>
constexpr int64_t kSliceWords = kQuantized<Operand> ? kMaxQuantizedLength : 512;

// The length to which rows are padded with zeros for the GEMM micro-kernel.
template <class Operand>
int64_t microkernel_length(int64_t K) {
  return sizeof(Operand) == 2 ? ceil_div(K, kMicrokernelTile) * kMicrokernelTile : K;
}

// Floats of the panel of W units: vectors i f g o, reduction over microkernel_length(K).
template <class Operand>
int64_t gate_panel_floats(int64_t K) {
  return (words<Operand>(microkernel_length<Operand>(K)) + (kQuantized<Operand> ? 2 : 0)) * 4 * W;
}

template <class T, class Operand>
struct ForwardScratch {
  float* to_pack_input;        // memory for the packed W_ih, or null: it is not packed here
  float* to_pack_gates;        // the same for W_hh
  const float* input_panels;   // of W_ih, one for each block of W units; or null
  const float* gate_panels;    // of W_hh
  float* output_panels;        // blocks of 4W outputs of the projection, reduction over H
  T* h[2];                     // (B, ldp): h before and after a step, zero beyond P
  float* c;                    // (B, ldh): zero beyond H
  T* unprojected;              // (B, ldh), projection only
  float* gate_inputs;          // split among the threads: see InputProjection
  const Operand** input_rows;  // (threads, max(B, input_chunk_rows))
  Operand* quantized;          // (threads, B, quantized_bytes(P)): h, quantized; or null
  int64_t ldp, ldh;
  int64_t blocks, input_panel, gate_panel;  // how many, and floats in one
  int64_t output_blocks, output_panel;
  int64_t input_chunk_rows;

  ForwardScratch(Arena& arena, const ForwardLayer& layer, const ForwardDirection& d) {
    const int64_t B = layer.seq.B;
    ldp = ceil_div(layer.P, 4 * W) * 4 * W;
    ldh = ceil_div(layer.H, W) * W;
    blocks = ceil_div(layer.H, W);
    input_panel = gate_panel_floats<Operand>(layer.I);
    gate_panel = gate_panel_floats<Operand>(layer.P);
    output_blocks = d.w_hr == nullptr ? 0 : ceil_div(layer.P, 4 * W);
    output_panel = words<T>(layer.H) * 4 * W;
    input_chunk_rows = ceil_div(kInputChunkBytes, 16 * ldh);
    if (input_chunk_rows > layer.seq.T * B) input_chunk_rows = layer.seq.T * B;
    const auto to_pack = [&](const void* packed, bool pays, int64_t panel) {
      return packed == nullptr && (pays || kQuantized<Operand>) ? arena.take<float>(blocks * panel) : nullptr;
    };
    to_pack_input = to_pack(
        d.packed_w_ih, d.input_product == nullptr && should_pack_input(layer, layer.seq.T * B), input_panel);
    to_pack_gates = to_pack(d.packed_w_hh, should_pack_gates(layer), gate_panel);
    const auto panels = [](const void* packed, const float* to_pack) {
      return packed == nullptr ? to_pack : static_cast<const float*>(packed);
    };
    input_panels = panels(d.packed_w_ih, to_pack_input);
    gate_panels = panels(d.packed_w_hh, to_pack_gates);
    output_panels = arena.take<float>(output_blocks * output_panel);
    h[0] = arena.take<T>(B * ldp);
    h[1] = arena.take<T>(B * ldp);
    c = arena.take<float>(B * ldh);
    unprojected = d.w_hr == nullptr ? nullptr : arena.take<T>(B * ldh);
    gate_inputs = arena.take<float>((B + layer.threads * input_chunk_rows) * 4 * ldh);
    input_rows = arena.take<const Operand*>(layer.threads * (B > input_chunk_rows ? B : input_chunk_rows));
    quantized =
        kQuantized<Operand> ? arena.take<Operand>(layer.threads * B * quantized_bytes(layer.P)) : nullptr;
  }
};

// Whether a thread's part of both weights exceeds its L2, so that every pass over all panels reads from L3.
template <class T, class Operand>
bool outgrows_cache(const ForwardScratch<T, Operand>& scratch, const ThreadPartition& partition) {
  const int64_t blocks = partition.panel_end(scratch.blocks) - partition.panel_begin(scratch.blocks);
  return blocks * (scratch.input_panel + scratch.gate_panel) * int64_t(sizeof(float)) > weight_cache_bytes();
}

// Products of fewer quantized rows or bytes are faster without the micro-kernel.
constexpr int64_t kInt8MicrokernelMinRows = 8, kInt8MicrokernelMinBytes = 1 << 13;

// Whether the micro-kernel multiplies `rows` rows, `stride` elements apart, with these panels.
template <class Operand>
bool uses_microkernel(const ForwardLayer& layer, const float* panels, int64_t stride, int64_t rows) {
  if constexpr (kQuantized<Operand>) {
    const int64_t bytes = stride - quantized_bytes(0);
    return layer.microkernel.multiply_int8 != nullptr && bytes % (2 * kMicrokernelTile) == 0 &&
           rows >= kInt8MicrokernelMinRows && rows * bytes >= kInt8MicrokernelMinBytes;
  }
  return layer.microkernel.multiply != nullptr && panels != nullptr && stride % kMicrokernelTile == 0 &&
         rows >= kMicrokernelMinRows;
}

// C (M, 4W) += A (M, K) times the panel.
template <class Operand>
void multiply_with_microkernel(const GemmMicrokernel& microkernel, int64_t M, int64_t K, int64_t lda,
                               int64_t ldc, const Operand* A, const float* panel, float* C) {
  if constexpr (kQuantized<Operand>) {
    constexpr int64_t kRows = 64;  // their sums stay in L1
    alignas(64) int32_t sums[kRows * 4 * W];
    for (int64_t i = 0; i < M; i += kRows) {
      const int64_t count = std::min(kRows, M - i);
      microkernel.multiply_int8(count, 4 * W, K, lda, 4 * W, 4 * W, A + i * lda,
                                reinterpret_cast<const int8_t*>(panel), sums);
      add_sums(C + i * ldc, ldc, sums, panel, A + i * lda, lda, count, words<Operand>(K));
    }
  } else {
    microkernel.multiply(M, 4 * W, microkernel_length<Operand>(K), lda, 4 * W, ldc, A, panel, C);
  }
}

// Packs block b of the gates' weights w (4H, K), with zeros up to the panel's end.
template <class Operand, class T>
void pack_gates(float* panels, int64_t panel, const T* w, int64_t H, int64_t K, int64_t b) {
  if constexpr (kQuantized<Operand>) return pack_quantized(panels + b * panel, w, H, K, b);
  pack_rows(panels + b * panel, w + b * W * K, K, H, H - b * W, 0);
  std::fill(panels + b * panel + words<T>(K) * 4 * W, panels + (b + 1) * panel, 0.0f);
}

// x W_ih^T + bias of one thread's units and sequences, for the next few steps of one direction. One matrix
// product over several steps reads W_ih once for all of them.
template <class T, class Operand>
class InputProjection {
 public:
  InputProjection(const ForwardLayer& layer, const ForwardDirection& d,
                  const ForwardScratch<T, Operand>& scratch, const ThreadPartition& partition)
      : layer_(layer), d_(d), scratch_(scratch), partition_(partition) {
    const int64_t rows = scratch.input_chunk_rows;
    first_block_ = partition.panel_begin(scratch.blocks);
    end_block_ = partition.panel_end(scratch.blocks);
    stride_ = (end_block_ - first_block_) * 4 * W;
    capacity_ =
        partition.row_end - partition.row_begin > rows ? partition.row_end - partition.row_begin : rows;
    gate_inputs_ = scratch.gate_inputs +
                   (partition.split_rows ? (partition.row_begin + partition.rank * rows) * 4 * scratch.ldh
                                         : capacity_ * 4 * W * first_block_);
    rows_ = scratch.input_rows + partition.rank * (layer.seq.B > rows ? layer.seq.B : rows);
  }

  // Makes the gate inputs of step t available. Called for every step in the direction's order of time. A
  // single step leaves them to compute_block().
  void advance_to(int64_t t) {
    if (steps_ == 0) {
      begin_chunk(t);
      if (layer_.seq.T > 1) {
        for (int64_t b = first_block_; b < end_block_; ++b) compute_block(b);
      }
    } else {
      current_ += d_.reverse ? -rows_of(t) * stride_ : rows_of(t - 1) * stride_;
    }
    --steps_;
  }

  // Computes block b of all steps of the chunk.
  void compute_block(int64_t b) const {
    const int64_t together = kQuantized<Operand> && !evenly_spaced_ ? rows_of(first_step_) : count_;
    if (d_.input_product != nullptr) {
      add_input_product(b, count_);
    } else if (uses_microkernel<Operand>(layer_, scratch_.input_panels, layer_.input_stride, together)) {
      compute_with_microkernel(b, first_step_, count_);
    } else if (scratch_.input_panels != nullptr) {
      const int64_t n = words<Operand>(layer_.I);
      for (int64_t k = 0; k < n; k += kSliceWords<Operand>) {
        const int64_t end = std::min(k + kSliceWords<Operand>, n);
        // the panels of all blocks are contiguous
        const bool more = outgrows_cache(scratch_, partition_) && (b + 1 < end_block_ || end < n);
        const float* next = more ? scratch_.input_panels + b * scratch_.input_panel + end * 4 * W : nullptr;
        int64_t pass = 0;
        for_row_tiles(0, count_, [&](auto m, int64_t i) {
          input_slice<m.value>(b, i, k, end, Prefetch(next, end - k, pass++, ceil_div(count_, kTileRows)));
        });
      }
    } else if constexpr (!kQuantized<Operand>) {
      for_row_tiles(0, count_, [&](auto m, int64_t i) { unpacked_tile<m.value>(b, i); });
    }
  }

  // Block b of sequence r, four vectors; those of sequence r + 1 are stride() floats further.
  float* at_block(int64_t b, int64_t r) const {
    return current_ + (r - partition_.row_begin) * stride_ + (b - first_block_) * 4 * W;
  }
  int64_t stride() const { return stride_; }

 private:
  int64_t rows_of(int64_t t) const {
    const int64_t active = layer_.seq.active[t];
    const int64_t end = active < partition_.row_end ? active : partition_.row_end;
    return end > partition_.row_begin ? end - partition_.row_begin : 0;
  }

  // Bias of gate v, units of block b.
  CNNLSTM_INLINE vf bias_of(int64_t b, int v) const {
    if (d_.b_ih == nullptr) return zero();
    const int64_t first = v * layer_.H + b * W, n = layer_.H - b * W;
    return load(static_cast<const T*>(d_.b_ih) + first, n) + load(static_cast<const T*>(d_.b_hh) + first, n);
  }

  // Begins the next chunk: as many steps from t on as fit. They are stored in the memory order of the input,
  // so that one call of the micro-kernel can take the rows of several steps.
  void begin_chunk(int64_t t) {
    count_ = 0;
    for (int64_t s = t; s >= 0 && s < layer_.seq.T && count_ + rows_of(s) <= capacity_;
         s += d_.reverse ? -1 : 1) {
      count_ += rows_of(s);
      ++steps_;
    }
    first_step_ = d_.reverse ? t - steps_ + 1 : t;
    int64_t i = 0;
    for (int64_t s = first_step_; s < first_step_ + steps_; ++s) {
      for (int64_t r = partition_.row_begin, end = r + rows_of(s); r < end; ++r)
        rows_[i++] = row<Operand>(layer_.input, at(layer_.input_rows, s, r), layer_.input_stride);
    }
    current_ = gate_inputs_ + (d_.reverse ? count_ - rows_of(t) : 0) * stride_;
    evenly_spaced_ = true;
    for (int64_t i = 1; i < count_; ++i) evenly_spaced_ &= rows_[i] - rows_[i - 1] == layer_.input_stride;
  }

  // Block b of the first `count` rows of rows_, which begin with step t: one product, or one per step if the
  // rows of several steps are not evenly spaced.
  void compute_with_microkernel(int64_t b, int64_t t, int64_t count) const {
    float* to = gate_inputs_ + (b - first_block_) * 4 * W;
    for (int v = 0; v < 4; ++v) {
      const vf bias = bias_of(b, v);
      for (int64_t i = 0; i < count; ++i) store(to + i * stride_ + v * W, bias);
    }
    for (int64_t i = 0, n; i < count; i += n, ++t) {
      n = evenly_spaced_ ? count : rows_of(t);
      const int64_t lda = n > 1 ? rows_[i + 1] - rows_[i] : layer_.input_stride;
      if (n > 0) {
        multiply_with_microkernel(layer_.microkernel, n, layer_.I, lda, stride_, rows_[i],
                                  scratch_.input_panels + b * scratch_.input_panel, to + i * stride_);
      }
    }
  }

  // Block b of the first `count` rows of rows_, from input_product.
  void add_input_product(int64_t b, int64_t count) const {
    const int64_t H = layer_.H;
    float* to = gate_inputs_ + (b - first_block_) * 4 * W;
    for (int v = 0; v < 4; ++v) {
      const vf bias = bias_of(b, v);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t input_row =
            (rows_[i] - static_cast<const Operand*>(layer_.input)) / layer_.input_stride;
        store(to + i * stride_ + v * W,
              bias + load(d_.input_product + (input_row * 4 + v) * H + b * W, H - b * W));
      }
    }
  }

  template <int M>
  CNNLSTM_INLINE void start_with_bias(vf (&acc)[M][4], int64_t b) const {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const vf bias = bias_of(b, v);
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) acc[m][v] = bias;
    }
  }

  // The slice [k, end) of the reduction, in words, of the product of block b with rows [i, i + M) of rows_.
  template <int M>
  void input_slice(int64_t b, int64_t i, int64_t k, int64_t end, Prefetch prefetch) const {
    vf acc[M][4];
    float* to = gate_inputs_ + i * stride_ + (b - first_block_) * 4 * W;
    if (k == 0) {
      start_with_bias<M>(acc, b);
    } else {
      load_tile<M>(acc, to, stride_);
    }
    const Operand* x[M];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) x[m] = rows_[i + m] + k * kPerWord<Operand>;
    multiply<M>(acc, scratch_.input_panels + b * scratch_.input_panel + k * 4 * W, x, end - k, prefetch);
    store_tile<M>(acc, to, stride_);
  }

  template <int M>
  void unpacked_tile(int64_t b, int64_t i) const {
    vf acc[M][4];
    start_with_bias<M>(acc, b);
    const Operand* x[M];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) x[m] = rows_[i + m];
    multiply_unpacked<M, T>(acc, row<T>(d_.w_ih, b * W, layer_.I), layer_.H, layer_.H - b * W, x, layer_.I);
    store_tile<M>(acc, gate_inputs_ + i * stride_ + (b - first_block_) * 4 * W, stride_);
  }

  const ForwardLayer& layer_;
  const ForwardDirection& d_;
  const ForwardScratch<T, Operand>& scratch_;
  const ThreadPartition& partition_;
  int64_t first_block_, end_block_, stride_, capacity_;
  float* gate_inputs_;
  const Operand** rows_;
  int64_t first_step_, count_;  // of the chunk: its earliest step and its number of rows
  bool evenly_spaced_;          // the rows of the current chunk are input_stride elements apart
  int64_t steps_ = 0;           // steps of the chunk after the current one
  float* current_ = nullptr;    // the values of the current step
};

// One step of one direction.
template <class T, class Operand>
struct ForwardStep {
  const ForwardLayer& layer;
  const ForwardDirection& d;
  const ForwardScratch<T, Operand>& scratch;
  const InputProjection<T, Operand>& input_projection;
  int64_t t;
  bool has_recurrent_product;  // the gate inputs already include the product with h
  int parity;                  // h[parity] is the state before the step, h[1 - parity] the one after
  const Operand* h_operand;    // h before the step as the product reads it, rows `h_stride` elements apart
  int64_t h_stride;

  // Whether sequence r ends with this step, and whether its state is reset before the next one.
  bool ends(int64_t r) const { return !has_next(layer.seq, d.reverse, t, r); }
  bool resets(int64_t r) const { return !ends(r) && is_reset(layer.seq, d.reverse ? t - 1 : t + 1, r); }

  // Stores n lanes of the new h of sequence r, from unit u on.
  CNNLSTM_INLINE void store_h(int64_t r, int64_t u, int64_t n, vf h) const {
    const Sequences& seq = layer.seq;
    store(scratch.h[1 - parity] + r * scratch.ldp + u, resets(r) ? zero() : h);
    store(row<T>(d.output, at(d.output_rows, t, r), d.output_stride) + u, n, h);
    if (ends(r)) store(row<T>(d.h_n, seq.batch[r], layer.P) + u, n, h);
  }

  // Adds W_hh h to the four gates of block b.
  template <int M>
  CNNLSTM_INLINE void add_recurrent(vf (&acc)[M][4], int64_t b, int64_t r, Prefetch prefetch) const {
    const Operand* x[M];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) x[m] = h_operand + (r + m) * h_stride;
    if (scratch.gate_panels != nullptr) {
      multiply<M>(acc, scratch.gate_panels + b * scratch.gate_panel, x, words<Operand>(layer.P), prefetch);
    } else if constexpr (!kQuantized<Operand>) {
      multiply_unpacked<M, T>(acc, row<T>(d.w_hh, b * W, layer.P), layer.H, layer.H - b * W, x, layer.P);
    }
  }

  // Units [b * W, b * W + W) of sequences [r, r + M).
  template <int M>
  void gate_tile(int64_t b, int64_t r, Prefetch prefetch) const {
    const Sequences& seq = layer.seq;
    const int64_t H = layer.H, u = b * W, n = H - u;
    vf acc[M][4];
    load_tile<M>(acc, input_projection.at_block(b, r), input_projection.stride());
    if (!has_recurrent_product) add_recurrent<M>(acc, b, r, prefetch);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const vf i = sigmoid(acc[m][0]), f = sigmoid(acc[m][1]), g = tanh(acc[m][2]), o = sigmoid(acc[m][3]);
      float* state = scratch.c + (r + m) * scratch.ldh + u;
      const vf c = fma(f, load(state), i * g);
      // Lanes beyond H are zeroed: infinity times the zeros that pad a panel is NaN, and bf16 products read h
      // in pairs or whole tiles.
      const vf h = first_lanes(n, o * tanh(c));
      store(state, resets(r + m) ? zero() : c);
      if (d.w_hr == nullptr) {
        store_h(r + m, u, n, h);
      } else {
        store(scratch.unprojected + (r + m) * scratch.ldh + u, h);
      }
      if (ends(r + m)) store(row<T>(d.c_n, seq.batch[r + m], H) + u, n, c);
      if (d.cells != nullptr) store(row<T>(d.cells, at(seq.rows, t, r + m), H) + u, n, c);
      if (d.gates != nullptr) {
        T* gates = row<T>(d.gates, at(seq.rows, t, r + m), 4 * H) + u;
        store(gates, n, i);
        store(gates + H, n, f);
        store(gates + 2 * H, n, g);
        store(gates + 3 * H, n, o);
      }
    }
  }

  // Outputs [b * 4W, b * 4W + 4W) of the projection of sequences [r, r + M).
  template <int M>
  void output_tile(int64_t b, int64_t r) const {
    vf acc[M][4] = {};
    multiply<M>(acc, scratch.output_panels + b * scratch.output_panel, scratch.unprojected + r * scratch.ldh,
                scratch.ldh, words<T>(layer.H));
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < 4; ++v) store_h(r + m, (b * 4 + v) * W, layer.P - (b * 4 + v) * W, acc[m][v]);
    }
  }
};

// Initial state of sequence r: h0 and c0, or zero where its first step is reset. For a sequence without steps
// they are copied to h_n and c_n.
template <class T, class Operand>
void start_sequence(const ForwardLayer& layer, const ForwardDirection& d,
                    const ForwardScratch<T, Operand>& scratch, int64_t r) {
  const Sequences& seq = layer.seq;
  const T* h0 = row<T>(d.h0, seq.batch[r], layer.P);
  const T* c0 = row<T>(d.c0, seq.batch[r], layer.H);
  const int64_t steps = length(seq, r);
  if (steps == 0) {
    std::memcpy(row<T>(d.h_n, seq.batch[r], layer.P), h0, layer.P * sizeof(T));
    std::memcpy(row<T>(d.c_n, seq.batch[r], layer.H), c0, layer.H * sizeof(T));
    return;
  }
  const bool reset = is_reset(seq, d.reverse ? steps - 1 : 0, r);
  for (int64_t u = 0; u < scratch.ldp; u += W) {
    const vf h = reset || u >= layer.P ? zero() : load(h0 + u, layer.P - u);
    store(scratch.h[0] + r * scratch.ldp + u, h);
    store(scratch.h[1] + r * scratch.ldp + u, h);
  }
  for (int64_t u = 0; u < scratch.ldh; u += W) {
    store(scratch.c + r * scratch.ldh + u, reset ? zero() : load(c0 + u, layer.H - u));
  }
}

// h[parity] as the product with W_hh reads it, for this thread's sequences before `end`: pointer and row
// stride. Every thread quantizes all units itself, which avoids a barrier.
template <class T, class Operand>
std::pair<const Operand*, int64_t> operands(const ForwardLayer& layer,
                                            const ForwardScratch<T, Operand>& scratch,
                                            const ThreadPartition& partition, int parity, int64_t end) {
  if constexpr (kQuantized<Operand>) {
    const int64_t stride = quantized_bytes(layer.P);
    Operand* rows = scratch.quantized + partition.rank * layer.seq.B * stride;
    for (int64_t r = partition.row_begin; r < end; ++r)
      quantize_row(rows + r * stride, scratch.h[parity] + r * scratch.ldp, layer.P);
    return {rows, stride};
  } else {
    return {scratch.h[parity], scratch.ldp};
  }
}

template <class T, class Operand>
void forward_direction(const ForwardLayer& layer, const ForwardDirection& d,
                       const ForwardScratch<T, Operand>& scratch, const ThreadPartition& partition) {
  const Sequences& seq = layer.seq;
  const int64_t H = layer.H, P = layer.P;
  for (int64_t b = partition.begin(scratch.blocks); b < partition.end(scratch.blocks); ++b) {
    if (scratch.to_pack_input != nullptr)
      pack_gates<Operand>(scratch.to_pack_input, scratch.input_panel, row<T>(d.w_ih, 0, layer.I), H, layer.I,
                          b);
    if (scratch.to_pack_gates != nullptr)
      pack_gates<Operand>(scratch.to_pack_gates, scratch.gate_panel, row<T>(d.w_hh, 0, P), H, P, b);
  }
  for (int64_t b = partition.begin(scratch.output_blocks); b < partition.end(scratch.output_blocks); ++b) {
    pack_rows(scratch.output_panels + b * scratch.output_panel, row<T>(d.w_hr, b * 4 * W, H), H, W,
              P - b * 4 * W, W);
  }
  for (int64_t r = partition.begin(seq.B); r < partition.end(seq.B); ++r)
    start_sequence(layer, d, scratch, r);
  partition.wait();

  const bool prefetches = scratch.gate_panels != nullptr && outgrows_cache(scratch, partition);
  InputProjection<T, Operand> input_projection(layer, d, scratch, partition);
  for (int64_t step = 0; step < seq.T; ++step) {
    const int64_t t = d.reverse ? seq.T - 1 - step : step;
    input_projection.advance_to(t);
    const int64_t end = partition.row_end < seq.active[t] ? partition.row_end : seq.active[t];
    const auto [h_operand, h_stride] = operands(layer, scratch, partition, step & 1, end);
    const bool use_microkernel =
        uses_microkernel<Operand>(layer, scratch.gate_panels, h_stride, end - partition.row_begin);
    const bool has_recurrent_product = use_microkernel || layer.input_product_has_h0;
    const ForwardStep<T, Operand> now{
        layer, d, scratch, input_projection, t, has_recurrent_product, int(step & 1), h_operand, h_stride};
    const int64_t first_block = partition.panel_begin(scratch.blocks),
                  end_block = partition.panel_end(scratch.blocks);
    const int64_t passes = ceil_div(end - partition.row_begin, kTileRows);
    // Every other step runs backwards: the weights that were read last are still in the cache.
    const bool backwards = (step + layer.call) % 2 != 0;
    for (int64_t k = first_block; k < end_block; ++k) {
      const int64_t b = backwards ? first_block + end_block - 1 - k : k;
      if (seq.T == 1) input_projection.compute_block(b);
      if (use_microkernel) {
        multiply_with_microkernel(layer.microkernel, end - partition.row_begin, P, h_stride,
                                  input_projection.stride(), h_operand + partition.row_begin * h_stride,
                                  scratch.gate_panels + b * scratch.gate_panel,
                                  input_projection.at_block(b, partition.row_begin));
      }
      const int64_t next = backwards ? b - 1 : b + 1;
      const bool more = prefetches && next >= first_block && next < end_block;
      const float* next_panel = more ? scratch.gate_panels + next * scratch.gate_panel : nullptr;
      int64_t pass = 0;
      for_row_tiles(partition.row_begin, end, [&](auto m, int64_t r) {
        now.template gate_tile<m.value>(b, r, Prefetch(next_panel, words<Operand>(P), pass++, passes));
      });
    }
    if (d.w_hr != nullptr) {
      partition.wait_step();
      for (int64_t b = partition.panel_begin(scratch.output_blocks);
           b < partition.panel_end(scratch.output_blocks); ++b) {
        for_row_tiles(partition.row_begin, end,
                      [&](auto m, int64_t r) { now.template output_tile<m.value>(b, r); });
      }
    }
    partition.wait_step();
  }
  if (layer.microkernel.release != nullptr) layer.microkernel.release();
}

template <class T, class Operand = T>
size_t forward_workspace(const ForwardLayer& layer) {
  Arena arena(nullptr);
  for (int d = 0; d < layer.D; ++d) ForwardScratch<T, Operand>(arena, layer, layer.direction[d]);
  return arena.used();
}

template <class T, class Operand = T>
void forward(const ForwardLayer& layer) {
  run_partitioned(layer, ceil_div(layer.H, W), 4 * layer.H * layer.P * int64_t(sizeof(Operand)),
                  [](const ForwardLayer& layer, int direction, const ThreadPartition& partition) {
                    Arena arena(layer.workspace);
                    const ForwardScratch<T, Operand> first(arena, layer, layer.direction[0]);
                    if (direction == 0) return forward_direction(layer, layer.direction[0], first, partition);
                    const ForwardScratch<T, Operand> second(arena, layer, layer.direction[1]);
                    forward_direction(layer, layer.direction[1], second, partition);
                  });
}

}  // namespace
}  // namespace cnnlstm
