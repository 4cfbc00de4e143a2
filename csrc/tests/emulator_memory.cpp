// Tests of memory: its bounds, its initial values, and asynchronous copies.
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "tests/emulator_test.h"

namespace cnnlstm::device_test {

// ---- memory ----

TEST(shared_memory_begins_as_nan) {
  run(shape_of(2, 8, 64), {}, [] {
    EXPECT(reinterpret_cast<uintptr_t>(shared_memory()) % 16 == 0);
    for (int i = 0; i < 2; ++i) EXPECT(std::isnan(load_shared(shared_at<float>(0) + 8 * i + thread())));
    block_barrier();
    store_shared(shared_at<float>(0) + thread(), 1.0f);
  });
}

TEST(shared_memory_has_bounds) {
  const auto at = [](size_t byte) { return [=] { load_shared(shared_at<float>(byte)); }; };
  run(shape_of(3, 1, 100), {}, at(96));
  expect_error("thread 0 of block (0, 0, 0): it reads 4 bytes at byte 100 of 100 bytes of shared memory",
               shape_of(1, 1, 100), {}, at(100));
  expect_error("at byte -4 of 100", shape_of(1, 1, 100), {}, at(-4));
  expect_error("it reads 4 bytes at byte 6 of shared memory, which is not a multiple of 4",
               shape_of(1, 1, 100), {}, at(6));
  expect_error("it writes 16 bytes at byte 8 of shared memory, which is not a multiple of 16",
               shape_of(1, 1, 100), {}, [] { store_shared(shared_at<float4>(8), make_float4(0, 0, 0, 0)); });
  expect_error("it reads 16 bytes at byte 496 of 500", shape_of(1, 32, 500), {}, [] {
    uint32_t r[4];
    load_matrices(r, shared_memory() + 16 * thread());
  });
  expect_error("it writes 16 bytes at byte 16 of 16", cluster_of(2, 32, 16), {},
               [] { send(shared_memory() + 16, make_uint4(0, 0, 0, 0), shared_at<uint64_t>(0), 1); });
}

TEST(global_memory_has_bounds) {
  alignas(16) float memory[64] = {};
  float* const numbers = memory + 16;
  const std::span<float> array(numbers, 16), other(memory + 40, 8);
  const std::span<const float> constant(numbers, 16);
  const auto reads = [=](int i) { return [=] { load(numbers + i); }; };
  const auto writes = [&] { store(numbers, 1.0f); };
  run(shape_of(1, 16), {array}, [&] { store(numbers + thread(), load(numbers + thread()) + 1); });
  EXPECT(std::accumulate(array.begin(), array.end(), 0.0f) == 16);
  run(shape_of(1, 1), {constant, array}, writes);
  expect_error("it writes 4 bytes of array number 0, which is const", shape_of(1, 1), {constant}, writes);
  expect_error("it reads 4 bytes at byte 64 of the nearest array, number 1, which has 64", shape_of(1, 1),
               {other, array}, reads(16));
  expect_error("at byte -4 of the nearest array", shape_of(1, 1), {array}, reads(-1));
  expect_error("of which it has no array", shape_of(1, 1), {}, reads(0));
  expect_error("it reads 16 bytes at byte 4 of array number 0, an address that is not a multiple of 16",
               shape_of(1, 1), {array}, [&] { load(reinterpret_cast<const float4*>(numbers + 1)); });
}

TEST(clear_fills_with_zeros) {
  std::vector<float> numbers(5, 1.0f);
  clear(numbers.data(), 16, nullptr);
  EXPECT(numbers == (std::vector<float>{0, 0, 0, 0, 1}));
}

// ---- copies ----

// A ring of two stages: one is loaded while the other is read.
static bool copies_arrive() {
  alignas(16) static float source[8][4 * 32];
  for (int i = 0; i < 8 * 4 * 32; ++i) source[i / 128][i % 128] = static_cast<float>(i);
  bool right = true;
  run(shape_of(1, 32, 2 * 512), {std::span<const float>(source[0], 8 * 128)}, [&] {
    const auto ask = [&](int step) {
      if (step < 8)
        copy_async(shared_memory() + 512 * (step % 2) + 16 * thread(), &source[step][4 * thread()],
                   step != 5);
      copy_commit();
    };
    ask(0);
    for (int step = 0; step < 8; ++step) {
      ask(step + 1);
      copy_wait<1>();
      const float4 x = load_shared(shared_at<float4>(512 * (step % 2)) + thread());
      const float expected = step == 5 ? 0 : source[step][4 * thread() + 3];
      if (x.w != expected) right = false;
    }
  });
  return right;
}

TEST(copies_arrive_when_waited_for) { expect_found("copy wait", copies_arrive); }

TEST(copies_poison_what_they_go_to) {
  alignas(16) float source[4] = {1, 2, 3, 4};
  cnnlstm_emulator_seed(0, 0);
  run(shape_of(1, 1, 16), {std::span<const float>(source)}, [&] {
    store_shared(shared_at<float>(0), 7.0f);
    copy_async(shared_memory(), source, true);
    EXPECT(std::isnan(load_shared(shared_at<float>(0))));
    copy_commit();
    copy_wait<1>();
    EXPECT(std::isnan(load_shared(shared_at<float>(0))));
    copy_wait<0>();
    EXPECT(load_shared(shared_at<float>(0)) == 1);
  });
  // some time before that at the earliest
  const int early = good_runs([&] {
    bool seen = false;
    run(shape_of(1, 1, 16), {std::span<const float>(source)}, [&] {
      copy_async(shared_memory(), source, true);
      for (int i = 0; i < 20; ++i) seen = seen || load_shared(shared_at<float>(0)) == 1;
    });
    return seen;
  });
  EXPECT(early > 0 && early < 40);
}

TEST(copies_have_bounds) {
  alignas(16) float source[8] = {};
  const Arrays arrays = {std::span<const float>(source)};
  const auto copy = [&](int to, int from, bool exists) {
    return [=, p = &source[0]] { copy_async(shared_memory() + to, p + from, exists); };
  };
  run(shape_of(1, 1, 32), arrays, copy(16, 4, true));
  run(shape_of(1, 1, 32), arrays, copy(16, 400, false));
  expect_error("shared memory", shape_of(1, 1, 32), arrays, copy(32, 0, true));
  expect_error("shared memory", shape_of(1, 1, 32), arrays, copy(8, 0, true));
  expect_error("nearest array", shape_of(1, 1, 32), arrays, copy(0, 5, true));
  expect_error("array number 0", shape_of(1, 1, 32), arrays, copy(0, 1, true));
}

}  // namespace cnnlstm::device_test
