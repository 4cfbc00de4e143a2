// The C ABI of recurrence.h: arguments are checked, kernels chosen, exceptions turned into messages.
#include <limits>

#include "cuda/elementwise.cuh"
#include "cuda/guarded.h"
#include "cuda/recurrence.cuh"
#include "cuda/recurrence.h"

namespace cnnlstm {
namespace {

void require(bool right, const std::string& message) {
  if (!right) throw std::runtime_error(message);
}

// Rows, sequences and units have 32-bit indices in the kernels.
bool fits(int64_t n) { return n > 0 && n <= std::numeric_limits<int32_t>::max(); }

void check_layer(int D, int64_t H) {
  require(D == 1 || D == 2, "D: expected 1 or 2, got " + std::to_string(D));
  require(H > 0 && H <= std::numeric_limits<int32_t>::max() / 4,
          "H: expected a size from 1 whose 4H fits 32 bits, got " + std::to_string(H));
}

template <class Arguments>
void check_sizes(const Arguments& arguments) {
  check_layer(arguments.D, arguments.H);
  const CnnlstmRows& rows = arguments.rows;
  require(fits(rows.T) && fits(rows.B) && fits(rows.N) && fits(rows.T * rows.B),
          "T, B, N: expected sizes from 1 whose T*B and N fit 32 bits, got " + std::to_string(rows.T) + ", " +
              std::to_string(rows.B) + ", " + std::to_string(rows.N));
}

void check_steps(const CnnlstmForward& pass) {
  require(0 <= pass.begin && pass.begin < pass.end && pass.end <= pass.rows.T,
          "begin, end: expected steps of the call, got " + std::to_string(pass.begin) + ", " +
              std::to_string(pass.end));
}

// Calls f with the algorithm of a plan as an integral constant.
template <class F>
void with_algorithm(const CnnlstmPlan& plan, F f) {
  switch (plan.algorithm) {
    case CNNLSTM_PERSISTENT_BLOCK:
      return f(std::integral_constant<int, CNNLSTM_PERSISTENT_BLOCK>());
    case CNNLSTM_PERSISTENT_CLUSTER:
      return f(std::integral_constant<int, CNNLSTM_PERSISTENT_CLUSTER>());
    case CNNLSTM_PERSISTENT_GRID:
      return f(std::integral_constant<int, CNNLSTM_PERSISTENT_GRID>());
    case CNNLSTM_STREAMING:
      return f(std::integral_constant<int, CNNLSTM_STREAMING>());
  }
  throw std::runtime_error("plan: its algorithm has no kernel of its own");
}

// A plan for these sizes: no kernel may reach beyond its shared memory or its words.
template <bool kBackward>
void check_plan(const PassOf<kBackward>& pass, const CnnlstmPlan& plan, const void* exchange) {
  const Layout layout = layout_of(plan, kBackward, pass.compute_type);
  const int64_t part = int64_t{plan.tiles} * kPiece / layout.element_bytes;
  const bool block = plan.algorithm == CNNLSTM_PERSISTENT_BLOCK, stream = plan.algorithm == CNNLSTM_STREAMING;
  const int sequences = kSequences * plan.batch;
  require(
      plan.groups > 0 && plan.splits > 0 && plan.blocks > 0 && plan.turns > 0 && plan.batch > 0 &&
          layout.units >= pass.H && plan.turns * plan.splits * part >= pass.H &&
          (stream ? plan.tiles == kStreamTiles && plan.batch <= kMostBatch &&
                        streamed_owners(plan.groups, plan.batch) <= layout.warps
                  : (plan.tiles == 8 || (block && plan.tiles == 4)) && plan.turns == 1 && plan.batch == 1) &&
          (block ? plan.splits == 1 && plan.blocks == 1 : plan.splits > 1) &&
          (!kBackward || plan.groups % 2 == 0) && plan.threads == 32 * plan.groups * plan.splits &&
          plan.threads <= most_threads(pass.compute_type) && plan.shared_bytes == layout.shared_bytes &&
          plan.tiles_at_once > 0 && plan.batch_tiles == (pass.rows.B + sequences - 1) / sequences &&
          plan.exchange_bytes == layout.exchange_bytes(pass.D, plan.batch_tiles),
      "plan: it is not one of this pass's");
  require(exchange != nullptr, "exchange: expected memory, got NULL");
}

template <bool kBackward>
void run(const PassOf<kBackward>& pass, const CnnlstmPlan& plan, void* exchange, void* stream) {
  check_sizes(pass);
  with_algorithm(plan, [&](auto algorithm) {
    check_plan<kBackward>(pass, plan, exchange);
    run_algorithm<decltype(algorithm)::value, kBackward>(pass, plan, exchange, stream);
  });
}

// Blocks along y, of which a grid has 65535 at most.
constexpr int64_t kMostY = 65535;

int blocks_for(int64_t units) {
  return static_cast<int>((units + kElementwiseThreads - 1) / kElementwiseThreads);
}

LaunchShape elementwise(int64_t x, int64_t y, int D) {
  return {static_cast<int>(x), static_cast<int>(y), D, kElementwiseThreads, 0, false, false};
}

}  // namespace
}  // namespace cnnlstm

using namespace cnnlstm;

extern "C" int cnnlstm_forward(const CnnlstmForward* pass, const CnnlstmPlan* plan, void* exchange,
                               void* stream, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    check_steps(*pass);
    run<false>(*pass, *plan, exchange, stream);
  });
}

extern "C" int cnnlstm_backward(const CnnlstmBackward* pass, const CnnlstmPlan* plan, void* exchange,
                                void* stream, char* message, size_t message_size) {
  return guarded(message, message_size, [&] { run<true>(*pass, *plan, exchange, stream); });
}

extern "C" int cnnlstm_registers(int backward, int compute_type, const CnnlstmPlan* plan, int* registers,
                                 char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    with_algorithm(*plan, [&](auto algorithm) {
      constexpr int kAlgorithm = decltype(algorithm)::value;
      *registers = backward ? registers_of_algorithm<kAlgorithm, true>(compute_type, *plan)
                            : registers_of_algorithm<kAlgorithm, false>(compute_type, *plan);
    });
  });
}

extern "C" int cnnlstm_forward_step(const CnnlstmForwardStep* step, void* stream, char* message,
                                    size_t message_size) {
  return guarded(message, message_size, [&] {
    const CnnlstmForward& pass = step->pass;
    check_sizes(pass);
    check_steps(pass);
    require(pass.end == pass.begin + 1, "end: expected begin + 1, got " + std::to_string(pass.end));
    with_compute_type(pass.compute_type, [&](auto compute_type) {
      launch<ForwardStep<decltype(compute_type)>>(elementwise(pass.rows.B, blocks_for(pass.H), pass.D), *step,
                                                  stream);
    });
  });
}

extern "C" int cnnlstm_backward_step(const CnnlstmBackwardStep* step, void* stream, char* message,
                                     size_t message_size) {
  return guarded(message, message_size, [&] {
    const CnnlstmBackward& pass = step->pass;
    check_sizes(pass);
    require(-1 <= step->step && step->step < pass.rows.T,
            "step: expected one of the call or -1, got " + std::to_string(step->step));
    with_compute_type(pass.compute_type, [&](auto compute_type) {
      launch<BackwardStep<decltype(compute_type)>>(elementwise(pass.rows.B, blocks_for(pass.H), pass.D),
                                                   *step, stream);
    });
  });
}

extern "C" int cnnlstm_entering(const CnnlstmEntering* arguments, void* stream, char* message,
                                size_t message_size) {
  return guarded(message, message_size, [&] {
    check_sizes(*arguments);
    with_compute_type(arguments->compute_type, [&](auto compute_type) {
      const LaunchShape shape =
          elementwise(arguments->rows.T, std::min(arguments->rows.B, kMostY), arguments->D);
      launch<Entering<decltype(compute_type)>>(shape, *arguments, stream);
    });
  });
}

extern "C" int cnnlstm_states(const CnnlstmStates* arguments, void* stream, char* message,
                              size_t message_size) {
  return guarded(message, message_size, [&] {
    check_layer(arguments->D, arguments->H);
    require(fits(arguments->N),
            "N: expected a number of rows from 1 that fits 32 bits, got " + std::to_string(arguments->N));
    with_compute_type(arguments->compute_type, [&](auto compute_type) {
      launch<States<decltype(compute_type)>>(elementwise(arguments->N, 1, arguments->D), *arguments, stream);
    });
  });
}
