// The exchanges that bench/calibrate/micro times: all blocks have the whole last tile, and nothing else.
#include <cstring>
#include <numeric>

#include "benchmarks/exchanges.cuh"
#include "tests/emulator_test.h"

namespace cnnlstm::device_test {

// The sum of a tile's 4-byte parts.
template <class Kernel>
static uint32_t sum_of_tile(int n, int units) {
  uint32_t sum = 0;
  for (int sequence = 0; sequence < kSequences; ++sequence) {
    std::vector<bf16> row;
    for (int unit = 0; unit < units; ++unit)
      row.insert(row.end(), Kernel::kBackward ? 4 : 1, from_float<bf16>(Kernel::sent(n, sequence, unit)));
    for (size_t i = 0; i < row.size(); i += 2) {
      uint32_t part;
      std::memcpy(&part, row.data() + i, sizeof part);
      sum += part;
    }
  }
  return sum;
}

template <int kAlgorithm, class Value>
static bool arrives(int groups, int blocks, int rounds, int silent_from) {
  using Kernel = micro::Exchanges<kAlgorithm, Value>;
  const CnnlstmPlan plan = Kernel::plan(groups, blocks, 132);
  const Layout layout = layout_of(plan, Kernel::kBackward, CNNLSTM_BFLOAT16);
  std::vector<uint64_t> words(layout.words_of_tile());
  std::vector<uint32_t> sums(Kernel::sums(blocks));
  const typename Kernel::Arguments arguments = {
      layout, {words.data(), static_cast<int>(words.size()), 0, 1}, rounds, silent_from, sums.data()};
  launch<Kernel>({blocks, 1, 1, plan.threads, static_cast<size_t>(plan.shared_bytes), Kernel::kCluster,
                  !Kernel::kCluster},
                 arguments, nullptr);
  const uint32_t expected = sum_of_tile<Kernel>(rounds, layout.units);
  for (int block = 0; block < blocks; ++block) {
    const auto first = sums.begin() + int64_t{block} * Kernel::kThreads;
    if (std::accumulate(first, first + Kernel::kThreads, 0u) != expected) return false;
  }
  return true;
}

template <int kAlgorithm>
static bool arrives_in_both_passes(int groups, int blocks, int rounds, int silent_from) {
  return arrives<kAlgorithm, bf16>(groups, blocks, rounds, silent_from) &&
         arrives<kAlgorithm, Quad<bf16>>(groups, blocks, rounds, silent_from);
}

TEST(exchanges_of_a_cluster_arrive) {
  for (const int blocks : {2, 5})
    for (const int groups : {1, 3})
      EXPECT(arrives_in_both_passes<CNNLSTM_PERSISTENT_CLUSTER>(groups, blocks, 5, 6));
}

TEST(exchanges_of_a_grid_arrive) {
  for (const int blocks : {2, 5})
    for (const int groups : {1, 3})
      EXPECT(arrives_in_both_passes<CNNLSTM_PERSISTENT_GRID>(groups, blocks, 5, 6));
}

template <int kAlgorithm>
static std::string said_of_silence() {
  try {
    arrives<kAlgorithm, bf16>(2, 2, 2, 2);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "nothing";
}

TEST(silent_warps_are_a_deadlock) {
  for (const std::string& said :
       {said_of_silence<CNNLSTM_PERSISTENT_CLUSTER>(), said_of_silence<CNNLSTM_PERSISTENT_GRID>()})
    if (said.find("wait") == std::string::npos) throw Failed("expected a deadlock, got: " + said);
}

}  // namespace cnnlstm::device_test
