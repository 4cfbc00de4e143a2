// Tests of the kernels' C ABI: the calls that it rejects, and their messages.
#include <array>
#include <string>
#include <vector>

#include "cuda/recurrence.h"
#include "tests/emulator_test.h"

namespace cnnlstm::device_test {
namespace {

// A valid call for a plan of a GPU with few multiprocessors: T=2, B=3, H=20, float32.
struct Call {
  static constexpr int64_t kT = 2, kB = 3, kH = 20;

  explicit Call(int algorithm) {
    CnnlstmGpu gpu = {};
    gpu.sm = 90, gpu.multiprocessors = 16, gpu.shared_bytes = 227 << 10, gpu.largest_cluster = 16;
    cnnlstm_costs("", gpu.sm, &gpu.costs);
    std::array<CnnlstmPlan, 256> plans;
    const int count = cnnlstm_plans(&gpu, 0, CNNLSTM_FLOAT32, kH, kB, 1, plans.data(), plans.size());
    for (int i = count - 1; i >= 0; --i)
      if (plans[i].algorithm == algorithm) plan = plans[i];
    exchange.resize(plan.exchange_bytes + 16);
    pass.compute_type = CNNLSTM_FLOAT32;
    pass.D = 1, pass.H = kH;
    pass.rows.T = kT, pass.rows.B = kB, pass.rows.N = kT * kB;
    pass.end = kT;
    pass.gate_inputs_rows[0] = kT * kB, pass.gate_inputs_stride = 4 * kH;
  }

  // Of the call on its own arrays.
  std::string said() {
    pass.gate_inputs[0] = gate_inputs.data();
    pass.weight_hh[0] = weights.data();
    pass.h_in = pass.c_in = zeros.data();
    pass.h_out = h.data(), pass.c_out = c.data();
    pass.output = output.data();
    void* const aligned =
        reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(exchange.data()) + 15) / 16 * 16);
    return cnnlstm_forward(&pass, &plan, aligned, nullptr, message.data(), message.size()) == 0
               ? "nothing"
               : message.data();
  }

  CnnlstmForward pass = {};
  CnnlstmPlan plan = {};
  std::vector<char> exchange;
  alignas(16) std::array<float, kT * kB * 4 * kH> gate_inputs = {};
  std::array<float, 4 * kH * kH> weights = {};
  std::array<float, kB * kH> zeros = {}, h, c;
  std::array<float, kT * kB * kH> output;
  std::array<char, 512> message = {};
};

void expect_said(const std::string& words, Call call) {
  const std::string said = call.said();
  if (said.find(words) == std::string::npos) throw Failed("expected \"" + words + "\", got: " + said);
}

}  // namespace

TEST(right_calls_are_run) {
  for (const int algorithm :
       {CNNLSTM_PERSISTENT_BLOCK, CNNLSTM_PERSISTENT_CLUSTER, CNNLSTM_PERSISTENT_GRID, CNNLSTM_STREAMING}) {
    Call call(algorithm);
    EXPECT(call.said() == "nothing");
    for (const float x : call.output) EXPECT(x == 0);  // of gates that are all sigmoid(0) or tanh(0)
  }
}

TEST(sizes_that_make_no_sense_are_refused) {
  const auto with = [](auto change) {
    Call call(CNNLSTM_PERSISTENT_BLOCK);
    change(call.pass);
    return call;
  };
  expect_said("D: expected 1 or 2, got 3", with([](CnnlstmForward& pass) { pass.D = 3; }));
  expect_said("H: expected a size from 1", with([](CnnlstmForward& pass) { pass.H = 0; }));
  expect_said("T, B, N: expected sizes", with([](CnnlstmForward& pass) { pass.rows.B = -1; }));
  expect_said("T, B, N: expected sizes", with([](CnnlstmForward& pass) { pass.rows.T = int64_t{1} << 31; }));
  expect_said("begin, end: expected steps of the call, got 1, 1",
              with([](CnnlstmForward& pass) { pass.begin = pass.end = 1; }));
  expect_said("begin, end: expected steps", with([](CnnlstmForward& pass) { pass.end = 3; }));
  expect_said("compute_type: expected one of CnnlstmComputeType, got 7",
              with([](CnnlstmForward& pass) { pass.compute_type = 7; }));
}

TEST(plans_of_other_calls_are_refused) {
  for (const int algorithm :
       {CNNLSTM_PERSISTENT_BLOCK, CNNLSTM_PERSISTENT_CLUSTER, CNNLSTM_PERSISTENT_GRID, CNNLSTM_STREAMING}) {
    const auto with = [&](auto change) {
      Call call(algorithm);
      change(call.plan);
      return call;
    };
    const char* const words = "plan: it is not one of this pass's";
    expect_said(words, with([](CnnlstmPlan& plan) { plan.blocks = 0; }));
    expect_said(words, with([](CnnlstmPlan& plan) { plan.groups = 1, plan.blocks = 1; }));
    expect_said(words, with([](CnnlstmPlan& plan) { plan.tiles = 3; }));
    expect_said(words, with([](CnnlstmPlan& plan) { plan.turns = 0; }));
    expect_said(words, with([](CnnlstmPlan& plan) { plan.batch = 5; }));
    expect_said(words, with([](CnnlstmPlan& plan) { plan.threads = 1024; }));
    expect_said(words, with([](CnnlstmPlan& plan) { plan.batch_tiles = 2; }));
    expect_said(words, with([](CnnlstmPlan& plan) { plan.shared_bytes -= 16; }));
    expect_said(words, with([](CnnlstmPlan& plan) { plan.exchange_bytes -= 16; }));
    expect_said("no kernel of its own", with([](CnnlstmPlan& plan) { plan.algorithm = CNNLSTM_PER_STEP; }));
  }
}

TEST(steps_of_other_calls_are_refused) {
  Call call(CNNLSTM_PERSISTENT_BLOCK);
  std::array<char, 512> message;
  CnnlstmForwardStep step = {call.pass, {}};
  EXPECT(cnnlstm_forward_step(&step, nullptr, message.data(), message.size()) == -1);
  EXPECT(std::string(message.data()) == "end: expected begin + 1, got 2");
  CnnlstmBackwardStep back = {};
  back.pass.D = 1, back.pass.H = Call::kH, back.pass.rows = call.pass.rows;
  for (const int64_t wrong : {int64_t{-2}, Call::kT}) {
    back.step = wrong;
    EXPECT(cnnlstm_backward_step(&back, nullptr, message.data(), message.size()) == -1);
    EXPECT(std::string(message.data()) ==
           "step: expected one of the call or -1, got " + std::to_string(wrong));
  }
  CnnlstmStates states = {};
  states.D = 1, states.H = Call::kH;
  EXPECT(cnnlstm_states(&states, nullptr, message.data(), message.size()) == -1);
  EXPECT(std::string(message.data()) == "N: expected a number of rows from 1 that fits 32 bits, got 0");
  int registers = 0;
  EXPECT(cnnlstm_registers(0, CNNLSTM_FLOAT32, &call.plan, &registers, message.data(), message.size()) == -1);
}

}  // namespace cnnlstm::device_test
