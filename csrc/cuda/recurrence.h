// The launches of the recurrence kernels: a C ABI of raw pointers, sizes, a stream and a workspace. C++
// callers see no CUDA header. Arrays are described in arguments.h, plans in plan.h.
//
// Each puts its work on `stream` of the current device and returns at once. Returns 0, or -1 with the reason
// in `message`: then the results are not to be used. A kernel that waits for more than a second (which no
// fault-free run does) ends with a stream error. T and B must not be 0.
#pragma once

#include <stddef.h>

#include "cuda/arguments.h"
#include "cuda/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

// `exchange`: plan->exchange_bytes of the device's memory, 16-byte aligned, of no meaning before and after,
// not shared with a call on another stream. `plan`: of that pass, its algorithm not CNNLSTM_PER_STEP.
int cnnlstm_forward(const CnnlstmForward* pass, const CnnlstmPlan* plan, void* exchange, void* stream,
                    char* message, size_t message_size);
int cnnlstm_backward(const CnnlstmBackward* pass, const CnnlstmPlan* plan, void* exchange, void* stream,
                     char* message, size_t message_size);

// Registers of each thread of the kernel that the plan's pass launches on the current device.
int cnnlstm_registers(int backward, int compute_type, const CnnlstmPlan* plan, int* registers, char* message,
                      size_t message_size);

int cnnlstm_forward_step(const CnnlstmForwardStep* step, void* stream, char* message, size_t message_size);
int cnnlstm_backward_step(const CnnlstmBackwardStep* step, void* stream, char* message, size_t message_size);
int cnnlstm_entering(const CnnlstmEntering* arguments, void* stream, char* message, size_t message_size);
int cnnlstm_states(const CnnlstmStates* arguments, void* stream, char* message, size_t message_size);

#ifdef __cplusplus
}
#endif
