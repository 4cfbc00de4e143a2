// What the parts of a step cost on the GPUs known so far.
#include <cstring>
#include <initializer_list>

#include "cuda/plan.h"

namespace {

// A GPU on which `python -m bench.calibrate.micro` measured them; the command prints the row.
struct Measured {
  const char* name;  // as cudaGetDeviceProperties returns it
  CnnlstmCosts costs;
};
constexpr std::initializer_list<Measured> kMeasured = {
    {"NVIDIA H100 80GB HBM3",
     {0.8726, 0.8787, 4.09, 13.34, 0.03114, 30.75, 983.4, 22.57,     260.5,     277.8, 318.7,
      268.7,  27.05,  402,  270,   117,     5500,  2770,  8.502e+05, 5.196e+04, 2891,  8049}},
};

// Guesses for an architecture, by clock cycles of an SM.
struct Family {
  int sm;
  double clock;  // cycles per nanosecond
  double piece;  // cycles between pieces
  double float32_lanes, special_lanes;
  double l2_sm;                  // bytes a cycle
  double l2, memory;             // bytes per nanosecond, of all
  double gemm_16, gemm_float32;  // operations per nanosecond, of all
  double far;                    // cycles that a cluster's exchange takes with two blocks, 0 without clusters
};

// NOT MEASURED. Clock (boost), memory bandwidth and dense rates with float32 sums are those of the data
// sheets of A100 SXM, RTX 3090, RTX 4090, H100 SXM, B200 and RTX 5090; rates of an SM follow from them (a
// piece is 4096 operations in 16 bits), except that mma.sync is taken to reach two thirds of wgmma's rate on
// sm_90 and the rate of sm_80 on sm_100. Lanes: CUDA C++ Programming Guide, "Throughput of Native Arithmetic
// Instructions". Latencies and the bandwidths of L2 and of clusters have no data sheet: they are rounded from
// what is usually reported for these chips.
constexpr Family kFamilies[] = {
    {80, 1.41, 2.0, 64, 16, 64, 4000, 2039, 312e3, 19.5e3, 0},
    {86, 1.70, 8.0, 128, 16, 64, 2000, 936, 71e3, 35.6e3, 0},
    {89, 2.52, 8.0, 128, 16, 64, 4000, 1008, 165e3, 82.6e3, 0},
    {90, 1.83, 1.5, 128, 16, 64, 5500, 3350, 989e3, 67e3, 200},
    {100, 1.85, 2.0, 128, 16, 64, 8000, 8000, 2250e3, 75e3, 200},
    {120, 2.41, 8.0, 128, 16, 64, 5000, 1792, 209e3, 105e3, 200},
};

CnnlstmCosts guessed(const Family& family) {
  const auto cycles = [&](double n) { return n / family.clock; };
  const double far = cycles(family.far);
  CnnlstmCosts costs = {};
  costs.piece_16 = costs.piece_tf32 = cycles(family.piece);
  costs.piece_float32 = cycles(16 * 8 * 8 / family.float32_lanes);
  costs.piece_latency = cycles(33);
  costs.special = cycles(1 / family.special_lanes);
  costs.cell_latency = cycles(250);
  costs.shared = 128 * family.clock;
  costs.block_barrier = cycles(40);
  costs.send_2 = far;
  costs.send_4 = 1.1 * far;
  costs.send_8 = 1.25 * far;
  costs.send_16 = 1.5 * far;
  costs.cluster = far ? 16 * family.clock : 0;
  costs.word = cycles(900);  // a store to L2 and a load that finds it, plus one iteration of a polling loop
  costs.word_turn = cycles(500);
  costs.l2_sm = family.l2_sm * family.clock;
  costs.l2 = family.l2;
  costs.memory = family.memory;
  costs.gemm_16 = family.gemm_16;
  costs.gemm_float32 = family.gemm_float32;
  costs.launch = 2000;
  costs.issue = 8000;
  return costs;
}

}  // namespace

extern "C" int cnnlstm_costs(const char* name, int sm, CnnlstmCosts* costs) {
  for (const Measured& gpu : kMeasured)
    if (std::strcmp(gpu.name, name) == 0) {
      *costs = gpu.costs;
      return 1;
    }
  const Family* nearest = kFamilies;
  for (const Family& family : kFamilies)
    if (family.sm <= sm) nearest = &family;
  *costs = guessed(*nearest);
  return 0;
}
