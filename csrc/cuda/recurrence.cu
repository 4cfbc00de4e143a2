// The C ABI of recurrence.h: arguments are checked, kernels chosen, exceptions turned into messages.
#include <cstdio>
#include <exception>
#include <limits>

#include "cuda/elementwise.cuh"
#include "cuda/recurrence.cuh"
#include "cuda/recurrence.h"

namespace cnnlstm {
namespace {

template <class Run>
int guarded(char* message, size_t message_size, Run run) {
  try {
    run();
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(message, message_size, "%s", error.what());
    return -1;
  }
}

void require(bool right, const std::string& message) {
  if (!right) throw std::runtime_error(message);
}

// Rows, sequences and units have 32-bit numbers in the kernels.
template <class Arguments>
void check_sizes(const Arguments& arguments) {
  const CnnlstmRows& rows = arguments.rows;
  const auto fits = [](int64_t n) { return n > 0 && n <= std::numeric_limits<int32_t>::max(); };
  require(arguments.D == 1 || arguments.D == 2, "D: expected 1 or 2, got " + std::to_string(arguments.D));
  require(fits(rows.T) && fits(rows.B) && fits(rows.N) && fits(rows.T * rows.B) && fits(4 * arguments.H),
          "T, B, N, H: expected sizes from 1 whose T*B, N and 4H fit 32 bits, got " + std::to_string(rows.T) +
              ", " + std::to_string(rows.B) + ", " + std::to_string(rows.N) + ", " +
              std::to_string(arguments.H));
}

// A plan for these sizes: no kernel may reach beyond its shared memory or its words.
template <class Pass>
void check_plan(const Pass& pass, const CnnlstmPlan& plan, bool backward, const void* exchange) {
  const Layout layout = layout_of(plan, backward, pass.number);
  const int64_t part = int64_t{plan.tiles} * kPiece / layout.number_bytes;
  require(plan.way == CNNLSTM_BLOCK || plan.way == CNNLSTM_CLUSTER || plan.way == CNNLSTM_GRID,
          "plan: its way has no kernel of its own");
  const bool block = plan.way == CNNLSTM_BLOCK;
  require(plan.groups > 0 && plan.splits > 0 && plan.blocks > 0 && layout.units >= pass.H &&
              plan.splits * part >= pass.H && (plan.tiles == 8 || (block && plan.tiles == 4)) &&
              (block ? plan.splits == 1 && plan.blocks == 1 : plan.splits > 1) &&
              (!backward || plan.groups % 2 == 0) && plan.threads == 32 * plan.groups * plan.splits &&
              plan.threads <= most_threads(pass.number) && plan.shared_bytes == layout.shared_bytes &&
              plan.tiles_at_once > 0 && plan.batch_tiles == (pass.rows.B + kSequences - 1) / kSequences &&
              plan.exchange_bytes == layout.exchange_bytes(pass.D, plan.batch_tiles),
          "plan: it is not one of this pass's");
  require(exchange != nullptr, "exchange: expected memory, got NULL");
}

template <class Pass>
void run(const Pass& pass, const CnnlstmPlan& plan, bool backward, void* exchange, void* stream) {
  check_sizes(pass);
  check_plan(pass, plan, backward, exchange);
  switch (plan.way) {
    case CNNLSTM_BLOCK:
      return run_way<CNNLSTM_BLOCK>(pass, plan, exchange, stream);
    case CNNLSTM_CLUSTER:
      return run_way<CNNLSTM_CLUSTER>(pass, plan, exchange, stream);
    default:
      return run_way<CNNLSTM_GRID>(pass, plan, exchange, stream);
  }
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
    require(0 <= pass->begin && pass->begin < pass->end && pass->end <= pass->rows.T,
            "begin, end: expected steps of the call, got " + std::to_string(pass->begin) + ", " +
                std::to_string(pass->end));
    run(*pass, *plan, false, exchange, stream);
  });
}

extern "C" int cnnlstm_backward(const CnnlstmBackward* pass, const CnnlstmPlan* plan, void* exchange,
                                void* stream, char* message, size_t message_size) {
  return guarded(message, message_size, [&] { run(*pass, *plan, true, exchange, stream); });
}

extern "C" int cnnlstm_forward_step(const CnnlstmForwardStep* step, void* stream, char* message,
                                    size_t message_size) {
  return guarded(message, message_size, [&] {
    const CnnlstmForward& pass = step->pass;
    check_sizes(pass);
    with_number(pass.number, [&](auto number) {
      launch<ForwardStep<decltype(number)>>(elementwise(pass.rows.B, blocks_for(pass.H), pass.D), *step,
                                            stream);
    });
  });
}

extern "C" int cnnlstm_backward_step(const CnnlstmBackwardStep* step, void* stream, char* message,
                                     size_t message_size) {
  return guarded(message, message_size, [&] {
    const CnnlstmBackward& pass = step->pass;
    check_sizes(pass);
    with_number(pass.number, [&](auto number) {
      launch<BackwardStep<decltype(number)>>(elementwise(pass.rows.B, blocks_for(pass.H), pass.D), *step,
                                             stream);
    });
  });
}

extern "C" int cnnlstm_entering(const CnnlstmEntering* arguments, void* stream, char* message,
                                size_t message_size) {
  return guarded(message, message_size, [&] {
    check_sizes(*arguments);
    with_number(arguments->number, [&](auto number) {
      const LaunchShape shape =
          elementwise(arguments->rows.T, std::min(arguments->rows.B, kMostY), arguments->D);
      launch<Entering<decltype(number)>>(shape, *arguments, stream);
    });
  });
}

extern "C" int cnnlstm_states(const CnnlstmStates* arguments, void* stream, char* message,
                              size_t message_size) {
  return guarded(message, message_size, [&] {
    require(arguments->N > 0 && arguments->N <= std::numeric_limits<int32_t>::max(),
            "N: expected a number of rows that fits 32 bits, got " + std::to_string(arguments->N));
    with_number(arguments->number, [&](auto number) {
      launch<States<decltype(number)>>(elementwise(arguments->N, 1, arguments->D), *arguments, stream);
    });
  });
}
