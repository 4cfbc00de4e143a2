// Forward recurrence of one layer: gate product, activations and state update in one pass over the registers.
//
// T is the dtype of the tensors, Operand that of what the gates' products read: T, or uint8_t where they are
// of int8 (quantize.h).
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/quantize.h"
#include "cpu/share.h"

namespace cnnlstm {
namespace {

// Gate inputs are computed ahead for as many steps as fit this many bytes of a thread's L2.
constexpr int64_t kAheadBytes = 1 << 18;

// Words of W_ih's panel that stay in L2 while all rows pass by. Sums of int8 go on to their end.
template <class Operand>
constexpr int64_t kPieceWords = kQuantized<Operand> ? kMostQuantized : 512;

// Up to where the rows that the matrix engine multiplies are filled with zeros.
template <class Operand>
int64_t engine_length(int64_t K) {
  return sizeof(Operand) == 2 ? ceil_div(K, kEngineTile) * kEngineTile : K;
}

// Floats of the panel of W units: vectors i f g o, reduction over engine_length(K).
template <class Operand>
int64_t gate_panel_floats(int64_t K) {
  return (words<Operand>(engine_length<Operand>(K)) + (kQuantized<Operand> ? 2 : 0)) * 4 * W;
}

template <class T, class Operand>
struct ForwardScratch {
  float* to_pack_input;  // where to pack W_ih and W_hh, or null
  float* to_pack_gates;
  const float* input_panels;   // of W_ih, one for each block of W units; or null
  const float* gate_panels;    // of W_hh
  float* output_panels;        // blocks of 4W outputs of the projection, reduction over H
  T* h[2];                     // (B, ldp): h before and after a step, zero beyond P
  float* c;                    // (B, ldh): zero beyond H
  T* unprojected;              // (B, ldh), projection only
  float* gate_inputs;          // split among the threads: see Ahead
  const Operand** input_rows;  // (threads, max(B, ahead_rows))
  Operand* quantized;          // (threads, B, quantized_bytes(P)): h, quantized; or null
  int64_t ldp, ldh;
  int64_t blocks, input_panel, gate_panel;  // how many, and floats in one
  int64_t output_blocks, output_panel;
  int64_t ahead_rows;

  ForwardScratch(Arena& arena, const ForwardLayer& layer, const ForwardDirection& d) {
    const int64_t B = layer.seq.B;
    ldp = ceil_div(layer.P, 4 * W) * 4 * W;
    ldh = ceil_div(layer.H, W) * W;
    blocks = ceil_div(layer.H, W);
    input_panel = gate_panel_floats<Operand>(layer.I);
    gate_panel = gate_panel_floats<Operand>(layer.P);
    output_blocks = d.w_hr == nullptr ? 0 : ceil_div(layer.P, 4 * W);
    output_panel = words<T>(layer.H) * 4 * W;
    ahead_rows = ceil_div(kAheadBytes, 16 * ldh);
    if (ahead_rows > layer.seq.T * B) ahead_rows = layer.seq.T * B;
    const auto to_pack = [&](const void* packed, bool pays, int64_t panel) {
      return packed == nullptr && (pays || kQuantized<Operand>) ? arena.take<float>(blocks * panel) : nullptr;
    };
    to_pack_input = to_pack(d.packed_w_ih, d.product == nullptr && pays_to_pack_input(layer, layer.seq.T * B),
                            input_panel);
    to_pack_gates = to_pack(d.packed_w_hh, pays_to_pack_gates(layer), gate_panel);
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
    gate_inputs = arena.take<float>((B + layer.threads * ahead_rows) * 4 * ldh);
    input_rows = arena.take<const Operand*>(layer.threads * (B > ahead_rows ? B : ahead_rows));
    quantized =
        kQuantized<Operand> ? arena.take<Operand>(layer.threads * B * quantized_bytes(layer.P)) : nullptr;
  }
};

// Whether a thread's part of both weights outgrows its L2, so that every pass of all panels reads them from
// L3.
template <class T, class Operand>
bool outgrows_cache(const ForwardScratch<T, Operand>& scratch, const Share& share) {
  const int64_t blocks = share.panel_end(scratch.blocks) - share.panel_begin(scratch.blocks);
  return blocks * (scratch.input_panel + scratch.gate_panel) * int64_t(sizeof(float)) > kCacheBytes;
}

// Less than this of quantized rows goes faster without the matrix engine.
constexpr int64_t kEngineRows = 8, kEngineBytes = 1 << 13;

// Whether the matrix engine multiplies so many rows, `stride` elements apart, with these panels.
template <class Operand>
bool uses_engine(const ForwardLayer& layer, const float* panels, int64_t stride, int64_t rows) {
  if constexpr (kQuantized<Operand>) {
    const int64_t bytes = stride - quantized_bytes(0);
    return layer.engine.multiply_int8 != nullptr && bytes % (2 * kEngineTile) == 0 && rows >= kEngineRows &&
           rows * bytes >= kEngineBytes;
  }
  return layer.engine.multiply != nullptr && panels != nullptr && stride % kEngineTile == 0 && rows > 0;
}

// C (M, 4W) += A (M, K) times the panel.
template <class Operand>
void multiply_on_engine(const MatrixEngine& engine, int64_t M, int64_t K, int64_t lda, int64_t ldc,
                        const Operand* A, const float* panel, float* C) {
  if constexpr (kQuantized<Operand>) {
    constexpr int64_t kRows = 64;  // whose sums stay in L1
    alignas(64) int32_t sums[kRows * 4 * W];
    for (int64_t i = 0; i < M; i += kRows) {
      const int64_t count = std::min(kRows, M - i);
      engine.multiply_int8(count, 4 * W, K, lda, 4 * W, 4 * W, A + i * lda,
                           reinterpret_cast<const int8_t*>(panel), sums);
      add_sums(C + i * ldc, ldc, sums, panel, A + i * lda, lda, count, words<Operand>(K));
    }
  } else {
    engine.multiply(M, 4 * W, engine_length<Operand>(K), lda, 4 * W, ldc, A, panel, C);
  }
}

// Packs block b of the gates' weights w (4H, K), with zeros up to the panel's end.
template <class Operand, class T>
void pack_gates(float* panels, int64_t panel, const T* w, int64_t H, int64_t K, int64_t b) {
  if constexpr (kQuantized<Operand>) return pack_quantized(panels + b * panel, w, H, K, b);
  pack_rows(panels + b * panel, w + b * W * K, K, H, H - b * W, 0);
  std::fill(panels + b * panel + words<T>(K) * 4 * W, panels + (b + 1) * panel, 0.0f);
}

// x W_ih^T + bias of one thread's units and sequences, for the next few steps of one direction. A matrix
// product over several steps reads W_ih once for all of them.
template <class T, class Operand>
class Ahead {
 public:
  Ahead(const ForwardLayer& layer, const ForwardDirection& d, const ForwardScratch<T, Operand>& scratch,
        const Share& share)
      : layer_(layer), d_(d), scratch_(scratch), share_(share) {
    const int64_t rows = scratch.ahead_rows;
    first_block_ = share.panel_begin(scratch.blocks);
    end_block_ = share.panel_end(scratch.blocks);
    stride_ = (end_block_ - first_block_) * 4 * W;
    capacity_ = share.row_end - share.row_begin > rows ? share.row_end - share.row_begin : rows;
    values_ =
        scratch.gate_inputs + (share.split_rows ? (share.row_begin + share.rank * rows) * 4 * scratch.ldh
                                                : capacity_ * 4 * W * first_block_);
    rows_ = scratch.input_rows + share.rank * (layer.seq.B > rows ? layer.seq.B : rows);
  }

  // Makes the gate inputs of step t available; steps are asked for in the direction's order of time.
  void reach(int64_t t) {
    if (steps_ == 0) {
      compute(t);
    } else {
      here_ += d_.reverse ? -rows_of(t) * stride_ : rows_of(t - 1) * stride_;
    }
    --steps_;
  }

  // Of block b: four vectors for sequence r; those of r + 1 follow `stride` floats later.
  float* at_block(int64_t b, int64_t r) const {
    return here_ + (r - share_.row_begin) * stride_ + (b - first_block_) * 4 * W;
  }
  int64_t stride() const { return stride_; }

 private:
  int64_t rows_of(int64_t t) const {
    const int64_t active = layer_.seq.active[t];
    const int64_t end = active < share_.row_end ? active : share_.row_end;
    return end > share_.row_begin ? end - share_.row_begin : 0;
  }

  // Of the units of block b, gate v.
  CNNLSTM_INLINE vf bias_of(int64_t b, int v) const {
    if (d_.b_ih == nullptr) return zero();
    const int64_t first = v * layer_.H + b * W, n = layer_.H - b * W;
    return load(static_cast<const T*>(d_.b_ih) + first, n) + load(static_cast<const T*>(d_.b_hh) + first, n);
  }

  // As many steps from t on as there is room for. They lie in the order of the input's memory, so that the
  // matrix engine can take the rows of several steps at once.
  void compute(int64_t t) {
    int64_t count = 0;
    for (int64_t s = t; s >= 0 && s < layer_.seq.T && count + rows_of(s) <= capacity_;
         s += d_.reverse ? -1 : 1) {
      count += rows_of(s);
      ++steps_;
    }
    const int64_t first = d_.reverse ? t - steps_ + 1 : t;
    int64_t i = 0;
    for (int64_t s = first; s < first + steps_; ++s) {
      for (int64_t r = share_.row_begin, end = r + rows_of(s); r < end; ++r)
        rows_[i++] = row<Operand>(layer_.input, at(layer_.input_rows, s, r), layer_.input_stride);
    }
    here_ = values_ + (d_.reverse ? count - rows_of(t) : 0) * stride_;
    even_ = true;
    for (int64_t i = 1; i < count; ++i) even_ &= rows_[i] - rows_[i - 1] == layer_.input_stride;
    const int64_t together = kQuantized<Operand> && !even_ ? rows_of(first) : count;
    for (int64_t b = first_block_; b < end_block_; ++b) {
      if (d_.product != nullptr) {
        take_product(b, count);
      } else if (uses_engine<Operand>(layer_, scratch_.input_panels, layer_.input_stride, together)) {
        on_engine(b, first, count);
      } else if (scratch_.input_panels != nullptr) {
        const int64_t n = words<Operand>(layer_.I);
        for (int64_t k = 0; k < n; k += kPieceWords<Operand>) {
          const int64_t end = std::min(k + kPieceWords<Operand>, n);
          // the panels of all blocks lie one after the other
          const bool more = outgrows_cache(scratch_, share_) && (b + 1 < end_block_ || end < n);
          const float* next = more ? scratch_.input_panels + b * scratch_.input_panel + end * 4 * W : nullptr;
          int64_t pass = 0;
          for_row_tiles(0, count, [&](auto m, int64_t i) {
            piece<m.value>(b, i, k, end, Fetch(next, end - k, pass++, ceil_div(count, kTileRows)));
          });
        }
      } else if constexpr (!kQuantized<Operand>) {
        for_row_tiles(0, count, [&](auto m, int64_t i) { whole<m.value>(b, i); });
      }
    }
  }

  // Block b of the first `count` rows of input_rows, which begin with step t: one product, or one a step
  // where the rows of several steps are not evenly spaced.
  void on_engine(int64_t b, int64_t t, int64_t count) const {
    float* to = values_ + (b - first_block_) * 4 * W;
    for (int v = 0; v < 4; ++v) {
      const vf bias = bias_of(b, v);
      for (int64_t i = 0; i < count; ++i) store(to + i * stride_ + v * W, bias);
    }
    for (int64_t i = 0, n; i < count; i += n, ++t) {
      n = even_ ? count : rows_of(t);
      const int64_t lda = n > 1 ? rows_[i + 1] - rows_[i] : layer_.input_stride;
      if (n > 0) {
        multiply_on_engine(layer_.engine, n, layer_.I, lda, stride_, rows_[i],
                           scratch_.input_panels + b * scratch_.input_panel, to + i * stride_);
      }
    }
  }

  // Block b of the first `count` rows of input_rows, multiplied before.
  void take_product(int64_t b, int64_t count) const {
    const int64_t H = layer_.H;
    float* to = values_ + (b - first_block_) * 4 * W;
    for (int v = 0; v < 4; ++v) {
      const vf bias = bias_of(b, v);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t place = (rows_[i] - static_cast<const Operand*>(layer_.input)) / layer_.input_stride;
        store(to + i * stride_ + v * W, bias + load(d_.product + (place * 4 + v) * H + b * W, H - b * W));
      }
    }
  }

  template <int M>
  CNNLSTM_INLINE void start(vf (&acc)[M][4], int64_t b) const {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const vf bias = bias_of(b, v);
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) acc[m][v] = bias;
    }
  }

  // Words [k, end) of the product of block b with rows [i, i + M) of input_rows.
  template <int M>
  void piece(int64_t b, int64_t i, int64_t k, int64_t end, Fetch fetch) const {
    vf acc[M][4];
    float* to = values_ + i * stride_ + (b - first_block_) * 4 * W;
    if (k == 0) {
      start<M>(acc, b);
    } else {
      load_tile<M>(acc, to, stride_);
    }
    const Operand* x[M];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) x[m] = rows_[i + m] + k * kPerWord<Operand>;
    multiply<M>(acc, scratch_.input_panels + b * scratch_.input_panel + k * 4 * W, x, end - k, fetch);
    store_tile<M>(acc, to, stride_);
  }

  template <int M>
  void whole(int64_t b, int64_t i) const {
    vf acc[M][4];
    start<M>(acc, b);
    const Operand* x[M];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) x[m] = rows_[i + m];
    multiply_unpacked<M, T>(acc, row<T>(d_.w_ih, b * W, layer_.I), layer_.H, layer_.H - b * W, x, layer_.I);
    store_tile<M>(acc, values_ + i * stride_ + (b - first_block_) * 4 * W, stride_);
  }

  const ForwardLayer& layer_;
  const ForwardDirection& d_;
  const ForwardScratch<T, Operand>& scratch_;
  const Share& share_;
  int64_t first_block_, end_block_, stride_, capacity_;
  float* values_;
  const Operand** rows_;
  bool even_;              // the rows of all steps computed at once lie one after the other
  int64_t steps_ = 0;      // computed and not yet asked for
  float* here_ = nullptr;  // those of the step asked for last
};

// One step of one direction.
template <class T, class Operand>
struct ForwardStep {
  const ForwardLayer& layer;
  const ForwardDirection& d;
  const ForwardScratch<T, Operand>& scratch;
  const Ahead<T, Operand>& ahead;
  int64_t t;
  bool multiplied;        // the gate inputs have the product with h
  int parity;             // h[parity] is the state before the step, h[1 - parity] the one after
  const Operand* before;  // h before the step as the product reads it, rows `before_stride` elements apart
  int64_t before_stride;

  // What must happen to sequence r's state after this step.
  bool ends(int64_t r) const { return !has_next(layer.seq, d.reverse, t, r); }
  bool resets(int64_t r) const { return !ends(r) && is_reset(layer.seq, d.reverse ? t - 1 : t + 1, r); }

  // Stores n lanes of the new h of sequence r, units u on.
  CNNLSTM_INLINE void store_h(int64_t r, int64_t u, int64_t n, vf h) const {
    const Sequences& seq = layer.seq;
    store(scratch.h[1 - parity] + r * scratch.ldp + u, resets(r) ? zero() : h);
    store(row<T>(d.output, at(d.output_rows, t, r), d.output_stride) + u, n, h);
    if (ends(r)) store(row<T>(d.h_n, seq.batch[r], layer.P) + u, n, h);
  }

  // Adds W_hh h to the four gates of block b.
  template <int M>
  CNNLSTM_INLINE void add_recurrent(vf (&acc)[M][4], int64_t b, int64_t r, Fetch fetch) const {
    const Operand* x[M];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) x[m] = before + (r + m) * before_stride;
    if (scratch.gate_panels != nullptr) {
      multiply<M>(acc, scratch.gate_panels + b * scratch.gate_panel, x, words<Operand>(layer.P), fetch);
    } else if constexpr (!kQuantized<Operand>) {
      multiply_unpacked<M, T>(acc, row<T>(d.w_hh, b * W, layer.P), layer.H, layer.H - b * W, x, layer.P);
    }
  }

  // Units [b * W, b * W + W) of sequences [r, r + M).
  template <int M>
  void gate_tile(int64_t b, int64_t r, Fetch fetch) const {
    const Sequences& seq = layer.seq;
    const int64_t H = layer.H, u = b * W, n = H - u;
    vf acc[M][4];
    load_tile<M>(acc, ahead.at_block(b, r), ahead.stride());
    if (!multiplied) add_recurrent<M>(acc, b, r, fetch);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const vf i = sigmoid(acc[m][0]), f = sigmoid(acc[m][1]), g = tanh(acc[m][2]), o = sigmoid(acc[m][3]);
      float* state = scratch.c + (r + m) * scratch.ldh + u;
      const vf c = fma(f, load(state), i * g);
      // Infinity times the zeros that fill a panel is NaN, and bf16 products read h in pairs or whole tiles.
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

// Initial state of sequence r: h0 and c0, or zero where its first step is reset. A sequence without a step
// passes them on.
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

// What the product with W_hh reads of h[parity], of this thread's sequences below `end`: every thread
// quantizes all units for itself, so that none waits for another. Rows and the elements between them.
template <class T, class Operand>
std::pair<const Operand*, int64_t> operands(const ForwardLayer& layer,
                                            const ForwardScratch<T, Operand>& scratch, const Share& share,
                                            int parity, int64_t end) {
  if constexpr (kQuantized<Operand>) {
    const int64_t stride = quantized_bytes(layer.P);
    Operand* rows = scratch.quantized + share.rank * layer.seq.B * stride;
    for (int64_t r = share.row_begin; r < end; ++r)
      quantize_row(rows + r * stride, scratch.h[parity] + r * scratch.ldp, layer.P);
    return {rows, stride};
  } else {
    return {scratch.h[parity], scratch.ldp};
  }
}

template <class T, class Operand>
void forward_direction(const ForwardLayer& layer, const ForwardDirection& d,
                       const ForwardScratch<T, Operand>& scratch, const Share& share) {
  const Sequences& seq = layer.seq;
  const int64_t H = layer.H, P = layer.P;
  for (int64_t b = share.begin(scratch.blocks); b < share.end(scratch.blocks); ++b) {
    if (scratch.to_pack_input != nullptr)
      pack_gates<Operand>(scratch.to_pack_input, scratch.input_panel, row<T>(d.w_ih, 0, layer.I), H, layer.I,
                          b);
    if (scratch.to_pack_gates != nullptr)
      pack_gates<Operand>(scratch.to_pack_gates, scratch.gate_panel, row<T>(d.w_hh, 0, P), H, P, b);
  }
  for (int64_t b = share.begin(scratch.output_blocks); b < share.end(scratch.output_blocks); ++b) {
    pack_rows(scratch.output_panels + b * scratch.output_panel, row<T>(d.w_hr, b * 4 * W, H), H, W,
              P - b * 4 * W, W);
  }
  for (int64_t r = share.begin(seq.B); r < share.end(seq.B); ++r) start_sequence(layer, d, scratch, r);
  share.wait();

  const bool fetches = scratch.gate_panels != nullptr && outgrows_cache(scratch, share);
  Ahead<T, Operand> ahead(layer, d, scratch, share);
  for (int64_t step = 0; step < seq.T; ++step) {
    const int64_t t = d.reverse ? seq.T - 1 - step : step;
    ahead.reach(t);
    const int64_t end = share.row_end < seq.active[t] ? share.row_end : seq.active[t];
    const auto [before, before_stride] = operands(layer, scratch, share, step & 1, end);
    const bool engine =
        uses_engine<Operand>(layer, scratch.gate_panels, before_stride, end - share.row_begin);
    const bool multiplied = engine || layer.products_have_h0;
    const ForwardStep<T, Operand> now{layer,         d,      scratch,      ahead, t, multiplied,
                                      int(step & 1), before, before_stride};
    const int64_t first_block = share.panel_begin(scratch.blocks),
                  end_block = share.panel_end(scratch.blocks);
    const int64_t passes = ceil_div(end - share.row_begin, kTileRows);
    for (int64_t k = first_block; k < end_block; ++k) {
      // Every other step backwards: the weights that were read last are still in the cache.
      const int64_t b = step % 2 == 0 ? k : first_block + end_block - 1 - k;
      if (engine) {
        multiply_on_engine(layer.engine, end - share.row_begin, P, before_stride, ahead.stride(),
                           before + share.row_begin * before_stride,
                           scratch.gate_panels + b * scratch.gate_panel, ahead.at_block(b, share.row_begin));
      }
      const int64_t next = step % 2 == 0 ? b + 1 : b - 1;
      const bool more = fetches && next >= first_block && next < end_block;
      const float* next_panel = more ? scratch.gate_panels + next * scratch.gate_panel : nullptr;
      int64_t pass = 0;
      for_row_tiles(share.row_begin, end, [&](auto m, int64_t r) {
        now.template gate_tile<m.value>(b, r, Fetch(next_panel, words<Operand>(P), pass++, passes));
      });
    }
    if (d.w_hr != nullptr) {
      share.wait_step();
      for (int64_t b = share.panel_begin(scratch.output_blocks); b < share.panel_end(scratch.output_blocks);
           ++b) {
        for_row_tiles(share.row_begin, end,
                      [&](auto m, int64_t r) { now.template output_tile<m.value>(b, r); });
      }
    }
    share.wait_step();
  }
  if (layer.engine.release != nullptr) layer.engine.release();
}

template <class T, class Operand = T>
size_t forward_workspace(const ForwardLayer& layer) {
  Arena arena(nullptr);
  for (int d = 0; d < layer.D; ++d) ForwardScratch<T, Operand>(arena, layer, layer.direction[d]);
  return arena.used();
}

template <class T, class Operand = T>
void forward(const ForwardLayer& layer) {
  share_layer(layer, 4 * layer.H * layer.P * int64_t(sizeof(Operand)),
              [](const ForwardLayer& layer, int direction, const Share& share) {
                Arena arena(layer.workspace);
                const ForwardScratch<T, Operand> first(arena, layer, layer.direction[0]);
                if (direction == 0) return forward_direction(layer, layer.direction[0], first, share);
                const ForwardScratch<T, Operand> second(arena, layer, layer.direction[1]);
                forward_direction(layer, layer.direction[1], second, share);
              });
}

}  // namespace
}  // namespace cnnlstm
