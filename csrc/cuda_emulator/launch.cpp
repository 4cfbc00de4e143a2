#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cuda_emulator/blocks.h"
#include "cuda_emulator/chance.h"

namespace cnnlstm::emulator {
namespace {

// The limits of any GPU; for the resident threads, what the mappings of their stacks allow.
constexpr int kMostThreads = 1024, kMostBlocksYZ = 65535, kMostCluster = 16, kMostAtOnce = 16384;
constexpr size_t kMostShared = 227 * 1024;

[[noreturn]] void refuse(const std::string& what, int64_t got) {
  throw std::runtime_error("a launch of " + std::to_string(got) + " " + what);
}

}  // namespace

void check_shape(const LaunchShape& shape, int most_threads, bool makes_clusters) {
  const int64_t blocks = int64_t{shape.x} * shape.y * shape.z;
  if (shape.x < 1 || shape.y < 1 || shape.z < 1 || shape.y > kMostBlocksYZ || shape.z > kMostBlocksYZ)
    throw std::runtime_error("a launch of " + std::to_string(shape.x) + " x " + std::to_string(shape.y) +
                             " x " + std::to_string(shape.z) + " blocks");
  if (shape.threads < 1 || shape.threads > std::min(most_threads, kMostThreads))
    refuse("threads in a block of a kernel for up to " + std::to_string(most_threads), shape.threads);
  if (shape.shared_bytes > kMostShared) refuse("bytes of shared memory in a block", shape.shared_bytes);
  if (shape.cluster != makes_clusters)
    throw std::runtime_error(shape.cluster ? "a launch in clusters of a kernel without"
                                           : "a launch without clusters of a kernel that needs them");
  if (shape.cluster && shape.x > kMostCluster) refuse("blocks in a cluster", shape.x);
  const int64_t at_once = (shape.cooperative ? blocks : shape.cluster ? shape.x : 1) * shape.threads;
  if (at_once > kMostAtOnce) refuse("threads at once, more than a CPU is asked to hold", at_once);
}

void launch(const LaunchShape& shape, const std::vector<Array>& arrays, const std::function<void()>& kernel) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  std::vector<std::vector<BlockPlace>> parties;  // blocks that run at once
  for (int z = 0; z < shape.z; ++z) {
    for (int y = 0; y < shape.y; ++y) {
      for (int x = 0; x < shape.x; ++x) {
        const bool joins = shape.cooperative || (shape.cluster && x > 0);
        if (!joins || parties.empty()) parties.emplace_back();
        parties.back().push_back({x, y, z});
      }
    }
  }
  std::shuffle(parties.begin(), parties.end(), chance.generator());
  for (const std::vector<BlockPlace>& places : parties) {
    Blocks now(shape, arrays, places);
    blocks = &now;
    now.run(kernel);
  }
}

}  // namespace cnnlstm::emulator
