// Tests of the machine that runs CUDA kernels on a CPU, with kernels of a few lines. All of them, or those
// named as arguments; the exit status is 1, after a line for each, where some fail.
#include "test/host_device_test.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

namespace cnnlstm::device_test {

struct Test {
  const char* name;
  void (*body)();
};

static std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registered {
  Registered(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

#define TEST(name) \
  void name();     \
  static const Registered name##_test(#name, &name)

// The names of all tests, which tests/test_host_device.py reads here.

// host_device_instructions.cpp
TEST(conversions_round_to_nearest_even);
TEST(approximations);
TEST(shuffle_xor_exchanges);
TEST(load_matrices_distributes_rows);
TEST(mma_multiplies);
TEST(mma_cuts_to_tf32);
TEST(lanes_that_do_different_things);

// host_device_memory.cpp
TEST(shared_memory_begins_as_nan);
TEST(shared_memory_has_bounds);
TEST(global_memory_has_bounds);
TEST(clear_fills_with_zeros);
TEST(copies_arrive_when_waited_for);
TEST(copies_poison_what_they_go_to);
TEST(copies_have_bounds);

// host_device_threads.cpp
TEST(every_thread_of_every_block_runs_once);
TEST(block_barrier_holds);
TEST(missing_block_barrier_is_found);
TEST(right_at_any_rate_of_switching);
TEST(warp_barrier_holds);
TEST(warps_drift_apart);
TEST(a_seed_repeats_a_run);
TEST(many_threads_at_once);
TEST(blocks_come_in_any_order_and_one_by_one);
TEST(barrier_that_ended_threads_miss);
TEST(barriers_of_two_kinds_at_once);
TEST(refused_launches);

// host_device_blocks.cpp
TEST(words_reach_other_blocks);
TEST(word_that_never_comes);
TEST(sends_reach_other_blocks);
TEST(arrivals_count);
TEST(bytes_may_come_before_they_are_expected);
TEST(send_to_a_block_that_has_ended);
TEST(mbarrier_rules);
TEST(clusters_come_one_by_one);

static int fail(const Test& test) {
  cnnlstm_host_seed(0, 0.05);
  try {
    test.body();
    return 0;
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", test.name, error.what());
    return 1;
  }
}

}  // namespace cnnlstm::device_test

using namespace cnnlstm::device_test;

int main(int argc, char** argv) {
  if (defined_tests != static_cast<int>(tests().size())) {
    std::printf("The list of host_device_test.cpp has %zu of %d tests.\n", tests().size(), defined_tests);
    return 1;
  }
  std::vector<Test> wanted = argc == 1 ? tests() : std::vector<Test>();
  for (int i = 1; i < argc; ++i) {
    const auto found = std::find_if(tests().begin(), tests().end(),
                                    [&](const Test& test) { return !strcmp(test.name, argv[i]); });
    if (found == tests().end()) {
      std::printf("There is no test %s.\n", argv[i]);
      return 1;
    }
    wanted.push_back(*found);
  }
  int failed = 0;
  for (const Test& test : wanted) failed += fail(test);
  return failed > 0;
}
