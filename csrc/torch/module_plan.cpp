// The plans of the recurrence kernels as _C shows them: dicts in the names of cuda/plan.h. No CUDA is needed
// for them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda/arguments.h"
#include "torch/module.h"

namespace py = pybind11;

namespace {

constexpr std::pair<const char*, double CnnlstmCosts::*> kCosts[] = {
    {"piece_16", &CnnlstmCosts::piece_16},
    {"piece_tf32", &CnnlstmCosts::piece_tf32},
    {"piece_float32", &CnnlstmCosts::piece_float32},
    {"piece_latency", &CnnlstmCosts::piece_latency},
    {"special", &CnnlstmCosts::special},
    {"cell_latency", &CnnlstmCosts::cell_latency},
    {"shared", &CnnlstmCosts::shared},
    {"block_barrier", &CnnlstmCosts::block_barrier},
    {"send_2", &CnnlstmCosts::send_2},
    {"send_4", &CnnlstmCosts::send_4},
    {"send_8", &CnnlstmCosts::send_8},
    {"send_16", &CnnlstmCosts::send_16},
    {"cluster", &CnnlstmCosts::cluster},
    {"word", &CnnlstmCosts::word},
    {"word_turn", &CnnlstmCosts::word_turn},
    {"l2_sm", &CnnlstmCosts::l2_sm},
    {"l2", &CnnlstmCosts::l2},
    {"memory", &CnnlstmCosts::memory},
    {"gemm_16", &CnnlstmCosts::gemm_16},
    {"gemm_float32", &CnnlstmCosts::gemm_float32},
    {"launch", &CnnlstmCosts::launch},
    {"issue", &CnnlstmCosts::issue},
};
static_assert(sizeof(CnnlstmCosts) == std::size(kCosts) * sizeof(double), "every cost has a name");

py::dict as_dict(const CnnlstmCosts& costs) {
  py::dict found;
  for (const auto& [name, cost] : kCosts) found[name] = costs.*cost;
  return found;
}

CnnlstmGpu as_gpu(const py::dict& facts) {
  CnnlstmGpu gpu = {};
  gpu.sm = facts["sm"].cast<int>();
  gpu.multiprocessors = facts["multiprocessors"].cast<int>();
  gpu.shared_bytes = facts["shared_bytes"].cast<int64_t>();
  gpu.largest_cluster = facts["largest_cluster"].cast<int>();
  gpu.l2_bytes = facts["l2_bytes"].cast<int64_t>();
  gpu.measured = facts["measured"].cast<bool>();
  const auto costs = facts["costs"].cast<py::dict>();
  for (const auto& [name, cost] : kCosts) gpu.costs.*cost = costs[name].cast<double>();
  return gpu;
}

// The best plan alone, or all.
std::vector<py::dict> plans(const py::dict& facts, bool backward, const std::string& compute_type_name,
                            int64_t H, int64_t B, int D, bool all) {
  const CnnlstmGpu gpu = as_gpu(facts);
  const int compute_type = as_compute_type(compute_type_name);
  std::vector<CnnlstmPlan> found{plan_of(facts, backward, compute_type, H, B, D)};
  if (all) {
    found.resize(cnnlstm_plans(&gpu, backward, compute_type, H, B, D, nullptr, 0));
    cnnlstm_plans(&gpu, backward, compute_type, H, B, D, found.data(), static_cast<int>(found.size()));
  }
  std::vector<py::dict> results;
  for (const CnnlstmPlan& plan : found) {
    py::dict result;
    result["algorithm"] = kCnnlstmAlgorithmNames[plan.algorithm];
    result["groups"] = plan.groups;
    result["splits"] = plan.splits;
    result["tiles"] = plan.tiles;
    result["turns"] = plan.turns;
    result["blocks"] = plan.blocks;
    result["batch"] = plan.batch;
    result["batch_tiles"] = plan.batch_tiles;
    result["tiles_at_once"] = plan.tiles_at_once;
    result["threads"] = plan.threads;
    result["shared_bytes"] = plan.shared_bytes;
    result["exchange_bytes"] = plan.exchange_bytes;
    result["step_seconds"] = cnnlstm_step_seconds(&gpu, backward, compute_type, H, B, D, &plan);
    result["floor_seconds"] = cnnlstm_step_floor_seconds(&gpu, backward, compute_type, H, B, D, &plan);
    results.push_back(result);
  }
  return results;
}

}  // namespace

int as_compute_type(const std::string& name) {
  const char* const names[] = {"float32", "tf32", "bfloat16", "float16"};
  for (int compute_type = 0; compute_type < 4; ++compute_type)
    if (name == names[compute_type]) return compute_type;
  throw std::invalid_argument("compute_type: expected float32, tf32, bfloat16 or float16, got '" + name +
                              "'");
}

CnnlstmPlan plan_of(const py::dict& gpu, bool backward, int compute_type, int64_t H, int64_t B, int D) {
  const CnnlstmGpu facts = as_gpu(gpu);
  CnnlstmPlan plan;
  if (cnnlstm_plan(&facts, backward, compute_type, H, B, D, &plan) != 0)
    throw std::invalid_argument("H, B, D: expected sizes from 1 on, and 1 or 2 directions, got " +
                                std::to_string(H) + ", " + std::to_string(B) + ", " + std::to_string(D));
  return plan;
}

py::dict as_dict(const CnnlstmGpu& gpu) {
  py::dict facts;
  facts["sm"] = gpu.sm;
  facts["multiprocessors"] = gpu.multiprocessors;
  facts["shared_bytes"] = gpu.shared_bytes;
  facts["largest_cluster"] = gpu.largest_cluster;
  facts["l2_bytes"] = gpu.l2_bytes;
  facts["measured"] = gpu.measured != 0;
  facts["costs"] = as_dict(gpu.costs);
  return facts;
}

void bind_plan(py::module_& m) {
  m.def(
      "gpu_costs",
      [](const std::string& name, int sm) {
        CnnlstmCosts costs;
        cnnlstm_costs(name.c_str(), sm, &costs);
        return as_dict(costs);
      },
      py::arg("name"), py::arg("sm"),
      "What the parts of a step cost on GPUs of that name and architecture (90 for 9.0), as cuda/plan.h "
      "lists "
      "them: measured, or guessed.");
  m.def(
      "plan",
      [](const py::dict& gpu, bool backward, const std::string& compute_type, int64_t H, int64_t B, int D) {
        return plans(gpu, backward, compute_type, H, B, D, false)[0];
      },
      py::arg("gpu"), py::arg("backward"), py::arg("compute_type"), py::arg("H"), py::arg("B"), py::arg("D"),
      "How a recurrence is split into blocks and warps on a GPU (the dict of cuda_gpu). compute_type: "
      "float32, tf32, bfloat16 or float16.");
  m.def(
      "plans",
      [](const py::dict& gpu, bool backward, const std::string& compute_type, int64_t H, int64_t B, int D) {
        return plans(gpu, backward, compute_type, H, B, D, true);
      },
      py::arg("gpu"), py::arg("backward"), py::arg("compute_type"), py::arg("H"), py::arg("B"), py::arg("D"),
      "All plans that fit, among which plan chooses.");
}
