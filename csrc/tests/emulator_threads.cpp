// Tests of launches, and of the threads of a block: their order and their barriers.
#include <algorithm>
#include <cstdlib>
#include <set>
#include <vector>

#include "tests/emulator_test.h"

namespace cnnlstm::device_test {

TEST(every_thread_of_every_block_runs_once) {
  std::set<std::vector<int>> seen;
  int visits = 0;
  run({3, 4, 2, 33, 0, false, false}, {}, [&] {
    EXPECT(threads() == 33 && blocks_x() == 3 && blocks_y() == 4);
    seen.insert({block_x(), block_y(), block_z(), thread()});
    ++visits;
  });
  EXPECT(visits == 3 * 4 * 2 * 33 && static_cast<int>(seen.size()) == visits);
}

// Values rotate: every thread writes its own and reads its neighbour's.
static bool rotates(bool with_barrier) {
  bool right = true;
  run(shape_of(2, 64, 2 * 64 * 4), {}, [&] {
    float* const rows = shared_at<float>(0);
    for (int step = 0; step < 8; ++step) {
      float* const row = rows + 64 * (step % 2);
      store_shared(row + thread(), static_cast<float>(100 * step + thread()));
      if (with_barrier) block_barrier();
      if (load_shared(row + (thread() + 1) % 64) != 100 * step + (thread() + 1) % 64) right = false;
    }
  });
  return right;
}

TEST(block_barrier_holds) {
  expect_found("block barrier", [] { return rotates(true); });
}

TEST(missing_block_barrier_is_found) {
  EXPECT(good_runs([] { return rotates(false); }) == 0);
}

// Without extra switches and with many, the result is the same.
TEST(right_at_any_rate_of_switching) {
  for (const double switching : {0.0, 0.001, 0.5, 1.0}) {
    cnnlstm_emulator_seed(7, switching);
    EXPECT(rotates(true));
  }
}

TEST(warp_barrier_holds) {
  expect_found("warp barrier", [] {
    bool right = true;
    run(shape_of(1, 64, 256), {}, [&] {
      store_shared(shared_at<float>(0) + thread(), static_cast<float>(thread()));
      warp_barrier();
      if (load_shared(shared_at<float>(0) + (thread() ^ 31)) != (thread() ^ 31)) right = false;
    });
    return right;
  });
}

// A warp may be a whole step ahead of another, and is so for some seed.
TEST(warps_drift_apart) {
  int furthest = 0;
  EXPECT(good_runs([&] {
           int steps[2] = {};
           run(shape_of(1, 64), {}, [&] {
             for (int step = 0; step < 50; ++step) {
               warp_barrier();
               if (thread() % 32 == 0) ++steps[thread() / 32];
               furthest = std::max(furthest, std::abs(steps[0] - steps[1]));
             }
           });
           return true;
         }) == 40);
  EXPECT(furthest >= 40);
}

static std::vector<int> order_of(uint64_t seed) {
  cnnlstm_emulator_seed(seed, 0.05);
  std::vector<int> order;
  run({4, 2, 1, 64, 256, false, false}, {}, [&] {
    for (int step = 0; step < 4; ++step) {
      store_shared(shared_at<float>(0) + thread(), 0.0f);
      order.push_back(64 * (block_x() + 4 * block_y()) + thread());
      block_barrier();
    }
  });
  return order;
}

TEST(a_seed_repeats_a_run) {
  EXPECT(order_of(1) == order_of(1));
  EXPECT(order_of(1) != order_of(2));
}

TEST(many_threads_at_once) {
  for (int launch = 0; launch < 3; ++launch) {
    int visits = 0;
    run(grid_of(32, 512), {}, [&] {
      block_barrier();
      ++visits;
    });
    EXPECT(visits == 32 * 512);
  }
}

TEST(blocks_come_in_any_order_and_one_by_one) {
  std::set<std::vector<int>> orders;
  for (int seed = 0; seed < 20; ++seed) {
    cnnlstm_emulator_seed(seed, 0.05);
    std::vector<int> order;
    run(shape_of(4, 2), {}, [&] { order.push_back(block_x()); });
    for (int i = 0; i < 8; i += 2) EXPECT(order[i] == order[i + 1]);
    orders.insert(order);
  }
  EXPECT(orders.size() > 5);
}

TEST(barrier_that_ended_threads_miss) {
  const auto body = [] {
    if (thread() != 5) block_barrier();
  };
  EXPECT(good_runs([&] { return run(shape_of(1, 64), {}, body), true; }) == 0);
  expect_error("thread 5 of block (0, 0, 0)", shape_of(1, 64), {}, body);
  expect_error("has ended", shape_of(1, 64), {}, body);
  expect_error("has ended", cluster_of(2, 32, 0), {}, [] {
    if (block_x() == 0) cluster_barrier();
  });
}

TEST(barriers_of_two_kinds_at_once) {
  expect_error("for ever, as do all threads that have not ended (64)", shape_of(1, 64), {}, [] {
    if (thread() == 0) return warp_barrier();
    block_barrier();
  });
}

TEST(refused_launches) {
  expect_error("a launch of 513 threads in a block of a kernel for up to 512", shape_of(1, 513), {}, [] {});
  expect_error("a launch of 300000 bytes of shared memory", shape_of(1, 1, 300000), {}, [] {});
  expect_error("a launch of 17 blocks in a cluster", cluster_of(17, 1, 0), {}, [] {});
  expect_error("threads at once", grid_of(100, 512), {}, [] {});
  expect_error("a launch of 0 x 1 x 1 blocks", shape_of(0, 1), {}, [] {});
  EXPECT(cnnlstm_emulator_plant("no such fault") == -1);
}

}  // namespace cnnlstm::device_test
