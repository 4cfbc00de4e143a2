// cnnlstm_fast._C: what was built, what this machine has and what it can reach. Free of PyTorch, so that it
// loads where the operators' library cannot.
#include "torch/module.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "benchmarks/roofline_cpu.h"
#include "cpu/isa.h"
#ifdef CNNLSTM_CUDA
#include "benchmarks/micro.h"
#include "benchmarks/roofline_cuda.h"
#include "cuda/facts.h"
#include "cuda/recurrence.h"
#endif
#ifdef __linux__
#include <sched.h>
#include <unistd.h>
#endif

namespace py = pybind11;

namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

py::dict build_facts() {
  py::dict facts;
  facts["version"] = CNNLSTM_VERSION;
  facts["compiler"] = CNNLSTM_COMPILER;
  facts["torch"] = CNNLSTM_TORCH_VERSION;
  facts["isa_variants"] = split(CNNLSTM_ISA_VARIANTS);
#ifdef CNNLSTM_CUDA
  facts["cuda"] = CNNLSTM_CUDA_VERSION;
  facts["cuda_archs"] = split(CNNLSTM_CUDA_ARCHS);
#else
  facts["cuda"] = py::none();
  facts["cuda_archs"] = py::list();
#endif
  return facts;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(": ") + 2);
  return "unknown";
}

// The cores that this process may run on, which a container or taskset makes fewer than the machine has.
unsigned usable_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return static_cast<unsigned>(CPU_COUNT(&set));
#endif
  return std::thread::hardware_concurrency();
}

py::dict cache_bytes() {
  py::dict sizes;
#ifdef _SC_LEVEL1_DCACHE_SIZE
  const std::array<std::pair<const char*, int>, 3> levels{
      {{"l1d", _SC_LEVEL1_DCACHE_SIZE}, {"l2", _SC_LEVEL2_CACHE_SIZE}, {"l3", _SC_LEVEL3_CACHE_SIZE}}};
  for (const auto& [name, key] : levels)
    if (const long bytes = sysconf(key); bytes > 0) sizes[name] = bytes;
#endif
  return sizes;
}

py::dict feature_flags() {
  py::dict flags;
#ifdef CNNLSTM_X86
  flags["avx2"] = __builtin_cpu_supports("avx2") != 0;
  flags["fma"] = __builtin_cpu_supports("fma") != 0;
  flags["avx512f"] = __builtin_cpu_supports("avx512f") != 0;
  flags["avx512bw"] = __builtin_cpu_supports("avx512bw") != 0;
  flags["avx512vl"] = __builtin_cpu_supports("avx512vl") != 0;
  flags["avx512dq"] = __builtin_cpu_supports("avx512dq") != 0;
#endif
  flags["avx512_bf16"] = cnnlstm::has_avx512_bf16();
  return flags;
}

py::dict cpu_facts() {
  py::dict facts;
  facts["name"] = cpu_name();
  facts["cores"] = usable_cores();
  facts["cache_bytes"] = cache_bytes();
  facts["features"] = feature_flags();
  std::vector<std::string> available;
  for (const cnnlstm::Isa isa : cnnlstm::available_isas()) available.emplace_back(cnnlstm::isa_name(isa));
  facts["isas"] = available;
  facts["active_isa"] = cnnlstm::isa_name(cnnlstm::active_isa());
  return facts;
}

#ifdef CNNLSTM_CUDA
std::vector<py::dict> cuda_devices() {
  std::array<CnnlstmCudaDevice, 64> devices;
  std::array<char, 512> message{};
  const int count = cnnlstm_cuda_devices(devices.data(), devices.size(), message.data(), message.size());
  if (count < 0) throw std::runtime_error(message.data());
  std::vector<py::dict> facts(std::min<std::size_t>(count, devices.size()));
  for (std::size_t i = 0; i < facts.size(); ++i) {
    const CnnlstmCudaDevice& device = devices[i];
    facts[i]["name"] = device.name;
    facts[i]["sm"] = device.compute_major * 10 + device.compute_minor;
    facts[i]["multiprocessors"] = device.multiprocessors;
    facts[i]["memory_bytes"] = device.memory_bytes;
    facts[i]["shared_memory_per_block"] = device.shared_memory_per_block;
    facts[i]["registers_per_multiprocessor"] = device.registers_per_multiprocessor;
    facts[i]["l2_bytes"] = device.l2_bytes;
    facts[i]["clock_khz"] = device.clock_khz ? py::object(py::int_(device.clock_khz)) : py::none();
    facts[i]["memory_clock_khz"] =
        device.memory_clock_khz ? py::object(py::int_(device.memory_clock_khz)) : py::none();
    facts[i]["cooperative_launch"] = device.cooperative_launch != 0;
    facts[i]["cluster_launch"] = device.cluster_launch != 0;
  }
  return facts;
}

py::dict cuda_gpu(int index) {
  CnnlstmGpu gpu;
  std::array<char, 512> message{};
  if (cnnlstm_cuda_gpu(index, &gpu, message.data(), message.size()) != 0)
    throw std::runtime_error(message.data());
  return as_dict(gpu);
}

int cuda_registers(const py::dict& gpu, bool backward, const std::string& compute_type_name, int64_t H,
                   int64_t B, int D) {
  const int compute_type = as_compute_type(compute_type_name);
  const CnnlstmPlan plan = plan_of(gpu, backward, compute_type, H, B, D);
  int registers = 0;
  std::array<char, 512> message{};
  if (cnnlstm_registers(backward, compute_type, &plan, &registers, message.data(), message.size()) != 0)
    throw std::runtime_error(message.data());
  return registers;
}

// A function of benchmarks/roofline_cuda.h or micro.h whose error becomes an exception.
template <typename... Arguments>
auto measurement(auto* measure) {
  return [measure](Arguments... arguments) {
    std::array<char, 512> message{};
    const double found = measure(arguments..., message.data(), message.size());
    if (found < 0) throw std::runtime_error(message.data());
    return found;
  };
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What was built, what this machine has and what it can reach.";
  m.attr("build") = build_facts();
  // A function, not an attribute: a bad CNNLSTM_CPU_ISA raises here and must not make the import fail.
  m.def("cpu", &cpu_facts, "Facts about the CPU. Raises RuntimeError when CNNLSTM_CPU_ISA is wrong.");
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("read_bandwidth", &cnnlstm::read_bandwidth, py::arg("bytes"), py::arg("seconds") = 0.2, release,
        "GB/s of one core that reads a buffer of that size repeatedly.");
  m.def("fma_rate", &cnnlstm::fma_rate, py::arg("seconds") = 0.2, release,
        "GFLOP/s of one core in f32, with the widest vectors of the machine.");
  bind_plan(m);
#ifdef CNNLSTM_CUDA
  m.def("cuda_devices", &cuda_devices, "One dict a GPU; an empty list without a driver or a GPU.");
  m.def("cuda_copy_bandwidth", measurement<std::size_t, int>(&cnnlstm_cuda_copy_bandwidth),
        py::arg("bytes") = std::size_t{1} << 28, py::arg("repeats") = 20, release,
        "GB/s, read plus written, of a copy kernel on the current GPU.");
  m.def("cuda_l2_latency", measurement<std::size_t, int>(&cnnlstm_cuda_l2_latency),
        py::arg("bytes") = std::size_t{1} << 21, py::arg("hops") = 1 << 16, release,
        "Nanoseconds of a load out of L2: one thread follows pointers through a buffer that fits into it.");
  m.def("cuda_block_barrier", measurement<int, int>(&cnnlstm_cuda_block_barrier), py::arg("rounds") = 100000,
        py::arg("threads") = 256, release, "Nanoseconds of a barrier among the threads of a block.");
  m.def("cuda_cluster_barrier", measurement<int>(&cnnlstm_cuda_cluster_barrier), py::arg("rounds") = 20000,
        release, "Nanoseconds of a barrier among the 8 blocks of a cluster.");
  m.def("cuda_grid_barrier", measurement<int>(&cnnlstm_cuda_grid_barrier), py::arg("rounds") = 20000, release,
        "Nanoseconds of a barrier, through global memory, among one block for each multiprocessor.");
  m.def("cuda_gpu", &cuda_gpu, py::arg("index"), "The properties of a GPU that a plan depends on.");
  m.def(
      "cuda_registers", &cuda_registers, py::arg("gpu"), py::arg("backward"), py::arg("compute_type"),
      py::arg("H"), py::arg("B"), py::arg("D"),
      "Registers of a thread of the kernel that a plan's pass launches on the current GPU. Arguments: those "
      "of plan.");
  // On the current GPU; see benchmarks/micro.h.
  m.def("micro_piece", measurement<int, int>(&cnnlstm_micro_piece), py::arg("compute_type"),
        py::arg("rounds") = 20000, release);
  m.def("micro_piece_latency", measurement<int>(&cnnlstm_micro_piece_latency), py::arg("rounds") = 20000,
        release);
  m.def("micro_special", measurement<int>(&cnnlstm_micro_special), py::arg("rounds") = 20000, release);
  m.def("micro_cell", measurement<int>(&cnnlstm_micro_cell), py::arg("rounds") = 20000, release);
  m.def("micro_shared", measurement<int>(&cnnlstm_micro_shared), py::arg("rounds") = 20000, release);
  m.def("micro_exchange", measurement<int, int, int, int, int>(&cnnlstm_micro_exchange), py::arg("cluster"),
        py::arg("backward"), py::arg("groups"), py::arg("blocks"), py::arg("rounds") = 20000, release);
  m.def("micro_hang", measurement<int>(&cnnlstm_micro_hang), py::arg("cluster"), release);
  m.def("micro_l2", measurement<int, int>(&cnnlstm_micro_l2), py::arg("blocks"), py::arg("rounds") = 20,
        release);
  m.def("micro_launch", measurement<int>(&cnnlstm_micro_launch), py::arg("rounds") = 1000, release);
#endif
}
