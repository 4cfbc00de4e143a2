// Tests of blocks that wait for each other: the words of a grid, the sends and mbarriers of a cluster.
#include <span>
#include <vector>

#include "tests/emulator_test.h"

namespace cnnlstm::device_test {

// ---- words between the blocks of a grid ----

// Blocks exchange values; two planes of words alternate.
static bool words_go_round() {
  constexpr int kBlocks = 3, kThreads = 32, kSteps = 6;
  std::vector<uint64_t> words(2 * kBlocks * kThreads);
  bool right = true;
  run(grid_of(kBlocks, kThreads), {words}, [&] {
    for (uint64_t step = 1; step <= kSteps; ++step) {
      uint64_t* const plane = words.data() + step % 2 * kBlocks * kThreads;
      store_word(plane + block_x() * kThreads + thread(), step << 32 | (100 * block_x() + thread()));
      for (int other = 0; other < kBlocks; ++other) {
        Watch watch(true);
        uint64_t word;
        while ((word = load_word(plane + other * kThreads + thread())) >> 32 != step) {
          if (word >> 32 > step) right = false;
          watch.turn();
        }
        if (static_cast<int>(word & 0xffffffffu) != 100 * other + thread()) right = false;
      }
    }
  });
  return right;
}

TEST(words_reach_other_blocks) { expect_found("word lost", words_go_round); }

TEST(word_that_never_comes) {
  uint64_t word = 0;
  const auto body = [&] {
    Watch watch(true);
    while (load_word(&word) == 0) watch.turn();
  };
  expect_error("it waits in a loop that watches words for ever, as do all threads that have not ended (64)",
               grid_of(2, 32), {std::span<uint64_t>(&word, 1)}, body);
  // and where it would come from a block that has not begun
  const auto chain = [&] {
    if (block_x() == 1) return store_word(&word, 1);
    body();
  };
  EXPECT(good_runs([&] {
           return word = 0, run(grid_of(2, 32), {std::span<uint64_t>(&word, 1)}, chain), true;
         }) == 40);
  const int lucky =
      good_runs([&] { return word = 0, run(shape_of(2, 32), {std::span<uint64_t>(&word, 1)}, chain), true; });
  EXPECT(lucky > 0 && lucky < 40);
}

// ---- clusters ----

struct Ring {
  bool expects_first = true, ends_together = true;
};

// Every block sends a row to every other one in each step.
static bool sends_go_round(Ring ring = {}) {
  constexpr int kBlocks = 4, kSteps = 6, kRow = 32 * 16, kTile = kBlocks * kRow;
  bool right = true;
  run(cluster_of(kBlocks, 32, 2 * kTile + 16), {}, [&] {
    const auto barrier = [](int step) { return shared_at<uint64_t>(2 * kTile) + step % 2; };
    const auto expect = [&](int step) { arrive_expecting(barrier(step), (kBlocks - 1) * kRow); };
    if (thread() == 0) {
      for (int i = 0; i < 2; ++i) arrivals_init(barrier(i), 2);
      if (ring.expects_first) expect(0);
      if (ring.expects_first) expect(1);
    }
    cluster_barrier();
    for (int step = 0; step < kSteps; ++step) {
      char* const tile = shared_memory() + step % 2 * kTile;
      uint4* const own = reinterpret_cast<uint4*>(tile + block_x() * kRow) + thread();
      const uint32_t number = 1000 * step + 100 * block_x() + thread();
      store_shared(own, make_uint4(number, number, number, number));
      for (int other = 1; other < kBlocks; ++other)
        send(own, make_uint4(number, number, number, number), barrier(step), (block_x() + other) % kBlocks);
      warp_barrier();
      if (thread() == 0) arrive(barrier(step));
      if (!ring.expects_first && thread() == 0) expect(step);
      wait_phase(barrier(step), step / 2 % 2);
      if (ring.expects_first && thread() == 0) expect(step + 2);
      for (int block = 0; block < kBlocks; ++block) {
        const uint4 x = load_shared(reinterpret_cast<const uint4*>(tile + block * kRow) + thread());
        if (x.w != 1000u * step + 100 * block + thread()) right = false;
      }
    }
    if (ring.ends_together) cluster_barrier();
  });
  return right;
}

TEST(sends_reach_other_blocks) {
  expect_found("send lost", [] { return sends_go_round(); });
}

TEST(arrivals_count) {
  expect_found("arrival lost", [] { return sends_go_round(); });
}

TEST(bytes_may_come_before_they_are_expected) {
  EXPECT(good_runs([] { return sends_go_round({.expects_first = false}); }) == 40);
}

TEST(send_to_a_block_that_has_ended) {
  expect_error("which has ended", cluster_of(2, 32, 32), {}, [] {
    if (thread() == 0) arrivals_init(shared_at<uint64_t>(16), 1);
    cluster_barrier();
    if (block_x() == 0) send(shared_memory(), make_uint4(1, 2, 3, 4), shared_at<uint64_t>(16), 1);
  });
}

TEST(mbarrier_rules) {
  const LaunchShape shape = cluster_of(2, 1, 32);
  const auto barrier = [] { return shared_at<uint64_t>(16); };
  expect_error("before that is initialised", shape, {}, [&] { arrive(barrier()); });
  expect_error("before that is initialised", shape, {}, [&] {
    send(shared_memory(), make_uint4(0, 0, 0, 0), barrier(), 1 - block_x());
    cluster_barrier();
    wait_phase(barrier(), 0);
  });
  expect_error("a second time", shape, {}, [&] {
    arrivals_init(barrier(), 1);
    arrivals_init(barrier(), 1);
  });
  expect_error("all arrivals of the phase have come", shape, {}, [&] {
    arrivals_init(barrier(), 1);
    arrive_expecting(barrier(), 16);
    arrive(barrier());
  });
  expect_error("it waits in wait_phase for ever", shape, {}, [&] {
    arrivals_init(barrier(), 2);
    arrive(barrier());
    wait_phase(barrier(), 0);
  });
  expect_error("to block 2 of a cluster of 2", shape, {}, [&] {
    arrivals_init(barrier(), 1);
    send(shared_memory(), make_uint4(0, 0, 0, 0), barrier(), 2);
  });
  expect_error("it writes 4 bytes at byte 20 of shared memory, where an mbarrier lies", shape, {}, [&] {
    arrivals_init(barrier(), 1);
    store_shared(shared_at<float>(20), 0.0f);
  });
  expect_error("it uses an mbarrier of 8 bytes at byte 12 of shared memory, which is not a multiple of 8",
               shape, {}, [] { arrivals_init(shared_at<uint64_t>(12), 1); });
  run(shape, {}, [&] {
    arrivals_init(barrier(), 1);
    wait_phase(barrier(), 1);  // the phase before the first counts as ended
    arrive(barrier());
    wait_phase(barrier(), 0);
    arrive(barrier());
    wait_phase(barrier(), 1);
  });
}

// Clusters do not run at the same time, though their blocks do.
TEST(clusters_come_one_by_one) {
  std::vector<int> order;
  run({2, 3, 1, 1, 0, true, false}, {}, [&] {
    cluster_barrier();
    order.push_back(block_y());
  });
  EXPECT(order.size() == 6);
  for (int i = 0; i < 6; i += 2) EXPECT(order[i] == order[i + 1]);
}

}  // namespace cnnlstm::device_test
