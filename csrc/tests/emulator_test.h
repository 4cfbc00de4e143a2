// Shared by the tests of the machine that runs CUDA kernels on a CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "cuda/device.cuh"
#include "cuda_emulator/faults.h"

namespace cnnlstm::device_test {

using namespace device;

struct Test {
  const char* name;
  void (*body)();
};
inline std::vector<Test> tests;

struct Registered {
  Registered(const char* name, void (*body)()) { tests.push_back({name, body}); }
};

#define TEST(name)                                  \
  static void name();                               \
  static const Registered name##_test(#name, name); \
  static void name()

struct Failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

#define EXPECT(what)                                                                                       \
  do {                                                                                                     \
    if (!(what)) throw Failed(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": false: " #what); \
  } while (false)

// A kernel whose body and arrays are given by the test.
template <bool kInClusters>
struct Tested {
  struct Arguments {
    std::function<void()> body;
    std::vector<std::variant<std::span<float>, std::span<const float>, std::span<uint64_t>>> arrays;
  };
  static constexpr int kThreads = 512;
  static constexpr bool kCluster = kInClusters;
  static void run(const Arguments& arguments) { arguments.body(); }
  template <class F>
  static void each_array(const Arguments& arguments, F f) {
    for (const auto& array : arguments.arrays)
      std::visit([&](auto span) { f(span.data(), static_cast<int64_t>(span.size())); }, array);
  }
};
using Arrays = decltype(Tested<false>::Arguments::arrays);

inline LaunchShape shape_of(int blocks, int threads, size_t shared_bytes = 0) {
  return {blocks, 1, 1, threads, shared_bytes, false, false};
}
inline LaunchShape cluster_of(int blocks, int threads, size_t shared_bytes) {
  return {blocks, 1, 1, threads, shared_bytes, true, false};
}
inline LaunchShape grid_of(int blocks, int threads, size_t shared_bytes = 0) {
  return {blocks, 1, 1, threads, shared_bytes, false, true};
}

inline void run(const LaunchShape& shape, const Arrays& arrays, const std::function<void()>& body) {
  if (shape.cluster) {
    launch<Tested<true>>(shape, {body, arrays}, nullptr);
  } else {
    launch<Tested<false>>(shape, {body, arrays}, nullptr);
  }
}

// The error must contain these words, and the machine must work afterwards as before.
inline void expect_error(const std::string& words, const LaunchShape& shape, const Arrays& arrays,
                         const std::function<void()>& body) {
  std::string said = "nothing";
  try {
    run(shape, arrays, body);
  } catch (const std::runtime_error& error) {
    said = error.what();
  }
  if (said.find(words) == std::string::npos) throw Failed("expected \"" + words + "\", got: " + said);
  int visits = 0;
  run(shape_of(2, 32), {}, [&] {
    warp_barrier();
    ++visits;
  });
  EXPECT(visits == 64);
}

// How many of 40 seeds succeed.
inline int good_runs(const std::function<bool()>& ends_well) {
  int good = 0;
  for (int seed = 0; seed < 40; ++seed) {
    cnnlstm_emulator_seed(seed, 0.05);
    try {
      good += ends_well();
    } catch (const std::runtime_error&) {
    }
  }
  return good;
}

// A correct program succeeds for every seed, and fails with the fault for most.
inline void expect_found(const char* fault, const std::function<bool()>& ends_well) {
  EXPECT(good_runs(ends_well) == 40);
  EXPECT(cnnlstm_emulator_plant(fault) == 0);
  const int good = good_runs(ends_well);
  cnnlstm_emulator_plant("");
  if (good > 30) throw Failed(std::string(fault) + ": " + std::to_string(good) + " of 40 runs succeeded");
}

template <class T>
T* shared_at(size_t byte) {
  return reinterpret_cast<T*>(shared_memory() + byte);
}

}  // namespace cnnlstm::device_test
