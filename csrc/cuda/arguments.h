// The arguments of the recurrence kernels: plain data, raw pointers, sizes and strides in elements.
//
// T steps, B sequences, H hidden_size, D directions, N rows: T*B (row t*B + b), or those of a packed
// sequence. Arrays of gates hold the four gates i f g o of a unit beside each other: (..., H, 4).
// `compute_type` is the type that products are computed in; arrays of void are stored in its dtype (float32
// for TF32).
//
// A direction's steps are numbered in its own order: s = 0 comes first, and its time is t = s, or T-1-s in
// reverse.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum CnnlstmComputeType {
  CNNLSTM_FLOAT32 = 0,  // exact products
  CNNLSTM_TF32 = 1,     // float32 with TF32 products
  CNNLSTM_BFLOAT16 = 2,
  CNNLSTM_FLOAT16 = 3,
};

// The rows of a call.
typedef struct {
  int64_t T, B, N;
  const int64_t* lengths;  // (B,), or NULL: all T
  const int64_t* offsets;  // (T,): first row of each time of a packed sequence, or NULL
  const uint8_t* reset;    // (T, B): state that enters the step is zero, or NULL
} CnnlstmRows;

typedef struct {
  int compute_type;
  int D;
  int64_t H;
  CnnlstmRows rows;
  int64_t begin, end;  // steps of this launch
  // gate_inputs[d] + (row - first_row[d]) * gate_inputs_stride: W_ih x of a row, (H, 4) float32, 16-byte
  // aligned
  const float* gate_inputs[2];
  int64_t first_row[2], gate_inputs_rows[2], gate_inputs_stride;
  const void* weight_hh[2];  // (4H, H) in nn.LSTM's order; row r, column k at weight_hh[d] + r*H + k
  const void* bias_ih[2];    // (4H,) in nn.LSTM's order, or NULL
  const void* bias_hh[2];
  // Both (D, B, H): what enters step `begin`, and what leaves step end-1. No array overlaps another.
  const void* h_in;
  void* h_out;
  const void* c_in;  // (D, B, H), float32 where c_in_float is set
  void* c_out;
  int c_in_float, c_out_float;
  void* output;  // (N, D*H): zero where a sequence has ended
  void* cells;   // (D, N, H) like it, or NULL
  void* gates;   // (D, N, H, 4) activated, zero like it, or NULL
} CnnlstmForward;

typedef struct {
  int compute_type;
  int D;
  int64_t H;
  CnnlstmRows rows;
  const void* weight_hh[2];  // (4H, H) in nn.LSTM's order
  const void* gates;         // (D, N, H, 4) as the forward pass left them
  const void* cells;         // (D, N, H)
  const void* c0;            // (D, B, H)
  const void* grad_output;   // (N, D*H), or NULL
  const void* grad_cells;    // (D, N, H), or NULL
  const void* grad_h_n;      // (D, B, H), or NULL
  const void* grad_c_n;      // (D, B, H), or NULL
  void* grad_h0;             // (D, B, H)
  void* grad_c0;             // (D, B, H)
  void* gate_gradients;      // (N, D, H, 4) before the activation, zero where a sequence has ended
} CnnlstmBackward;

// The hidden state that enters every step, and the hidden states recomputed from gates and cells (where a
// projection follows).
typedef struct {
  int compute_type;
  int D;
  int64_t H;
  CnnlstmRows rows;
  const void* output;  // (N, D*H)
  const void* h0;      // (D, B, H)
  void* entering;      // (D, N, H): zero where the state is reset, and where a sequence has ended
} CnnlstmEntering;

typedef struct {
  int compute_type;
  int D;
  int64_t H, N;
  const void* gates;  // (D, N, H, 4)
  const void* cells;  // (D, N, H)
  void* states;       // (N, D*H)
} CnnlstmStates;

// One step, where a library makes the recurrent product: the cell of step `step` of every direction.
typedef struct {
  CnnlstmForward pass;        // begin = step, end = step + 1; weight_hh is not read
  const float* recurrent[2];  // (B, 4H) float32 in nn.LSTM's order: W_hh h of the step
} CnnlstmForwardStep;

typedef struct {
  CnnlstmBackward pass;
  int64_t step;
  // (D, B, H) float32: W_hh^T times the gate gradients of step+1; not read in the last step T-1. In the call
  // of step -1 only grad_h0 and grad_c0 are written.
  const float* recurrent;
  float* grad_h;  // (D, B, H): state between calls, gradients of a sequence that does not have the step pass
                  // unchanged
  float* grad_c;
  void* exchanged;  // (D, B, 4H) in nn.LSTM's order: the gate gradients of this step, for the product
} CnnlstmBackwardStep;

#ifdef __cplusplus
}
#endif
