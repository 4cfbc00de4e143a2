// Tests of the machine that runs CUDA kernels on a CPU, with kernels of a few lines. All of them, or those
// named as arguments; the exit status is 1, after a line for each, where some fail.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "cuda/device.cuh"
#include "cuda/host_faults.h"

namespace {

using namespace cnnlstm;
using namespace cnnlstm::device;

struct Test {
  const char* name;
  void (*body)();
};

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registered {
  Registered(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

#define TEST(name)                            \
  void name();                                \
  const Registered name##_test(#name, &name); \
  void name()

struct Failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

#define EXPECT(what)                                                                    \
  do {                                                                                  \
    if (!(what)) throw Failed("line " + std::to_string(__LINE__) + ": not so: " #what); \
  } while (false)

// A kernel whose body and arrays the test gives.
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

LaunchShape shape_of(int blocks, int threads, size_t shared_bytes = 0) {
  return {blocks, 1, 1, threads, shared_bytes, false, false};
}
LaunchShape cluster_of(int blocks, int threads, size_t shared_bytes) {
  return {blocks, 1, 1, threads, shared_bytes, true, false};
}
LaunchShape grid_of(int blocks, int threads, size_t shared_bytes = 0) {
  return {blocks, 1, 1, threads, shared_bytes, false, true};
}

void run(const LaunchShape& shape, const Arrays& arrays, const std::function<void()>& body) {
  if (shape.cluster) {
    launch<Tested<true>>(shape, {body, arrays}, nullptr);
  } else {
    launch<Tested<false>>(shape, {body, arrays}, nullptr);
  }
}

// The error must say this, and the machine work afterwards as before.
void expect_error(const std::string& words, const LaunchShape& shape, const Arrays& arrays,
                  const std::function<void()>& body) {
  std::string said = "nothing";
  try {
    run(shape, arrays, body);
  } catch (const std::runtime_error& error) {
    said = error.what();
  }
  if (said.find(words) == std::string::npos) throw Failed("expected \"" + words + "\", and it said: " + said);
  int visits = 0;
  run(shape_of(2, 32), {}, [&] {
    warp_barrier();
    ++visits;
  });
  EXPECT(visits == 64);
}

// How many of 40 seeds end well.
int good_runs(const std::function<bool()>& ends_well) {
  int good = 0;
  for (int seed = 0; seed < 40; ++seed) {
    cnnlstm_host_seed(seed, 0.05);
    try {
      good += ends_well();
    } catch (const std::runtime_error&) {
    }
  }
  return good;
}

// A right program ends well whatever chance does, and not so with the fault.
void expect_found(const char* fault, const std::function<bool()>& ends_well) {
  EXPECT(good_runs(ends_well) == 40);
  EXPECT(cnnlstm_host_plant(fault) == 0);
  const int good = good_runs(ends_well);
  cnnlstm_host_plant("");
  if (good > 30) throw Failed(std::string(fault) + ": " + std::to_string(good) + " of 40 runs ended well");
}

template <class T>
T* shared_at(size_t byte) {
  return reinterpret_cast<T*>(shared_memory() + byte);
}

// ---- numbers ----

double to_double(fp16 x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const double magnitude = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
  return x.bits & 0x8000 ? -magnitude : magnitude;
}

double to_double(bf16 x) {
  const int exponent = x.bits >> 7 & 255, fraction = x.bits & 127;
  const double magnitude = exponent == 0 ? ldexp(fraction, -133) : ldexp(128 + fraction, exponent - 134);
  return x.bits & 0x8000 ? -magnitude : magnitude;
}

template <class T>
void expect_conversions(int finite) {
  for (int bits = 0; bits < 65536; ++bits) {
    const T x{static_cast<uint16_t>(bits)};
    if ((bits & 0x7fff) < finite) {
      EXPECT(to_float(x) == to_double(x));
      EXPECT(from_float<T>(to_float(x)).bits == bits);
    } else if ((bits & 0x7fff) == finite) {
      EXPECT(std::isinf(to_float(x)) && std::signbit(to_float(x)) == (bits >> 15));
      EXPECT(from_float<T>(to_float(x)).bits == bits);
    } else {
      EXPECT(std::isnan(to_float(x)) && std::isnan(to_float(from_float<T>(to_float(x)))));
    }
  }
  for (int bits = 0; bits + 1 < finite; ++bits) {  // between two neighbours: the even one, or the nearer
    const double low = to_double(T{static_cast<uint16_t>(bits)}),
                 high = to_double(T{static_cast<uint16_t>(bits + 1)});
    const float middle = static_cast<float>((low + high) / 2);
    EXPECT(from_float<T>(middle).bits == (bits & 1 ? bits + 1 : bits));
    EXPECT(from_float<T>(nextafterf(middle, 0)).bits == bits);
    EXPECT(from_float<T>(-nextafterf(middle, INFINITY)).bits == (0x8000 | (bits + 1)));
  }
  EXPECT(from_float<T>(3.4e38f).bits == finite);
}

TEST(conversions_round_to_nearest_even) {
  expect_conversions<fp16>(0x7c00);
  expect_conversions<bf16>(0x7f80);
}

TEST(approximations) {
  EXPECT(round_tf32(1 + 0x1p-11f) == 1 + 0x1p-10f);  // a tie, away from zero
  EXPECT(round_tf32(-1 - 0x1p-11f) == -1 - 0x1p-10f);
  EXPECT(round_tf32(1 + 0x1p-12f) == 1);
  EXPECT(std::isinf(round_tf32(INFINITY)) && std::isnan(round_tf32(NAN)));
  float worst = 0;
  for (float x = -4; x < 4; x += 0.001f) {
    if (x != 0) worst = std::max(worst, fabsf(tanh_fast(x) / tanhf(x) - 1));
  }
  EXPECT(worst > 0x1p-13f && worst <= 0x1p-11f);
  EXPECT(exp2_fast(-3) == 0.125f && reciprocal_fast(INFINITY) == 0 && std::isnan(tanh_fast(NAN)));
}

// ---- threads and barriers ----

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

// Values go round: every thread writes its own and reads its neighbour's.
bool rotates(bool with_barrier) {
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
    cnnlstm_host_seed(7, switching);
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

std::vector<int> order_of(uint64_t seed) {
  cnnlstm_host_seed(seed, 0.05);
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
    cnnlstm_host_seed(seed, 0.05);
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

// ---- warps ----

TEST(shuffle_xor_exchanges) {
  for (const int mask : {1, 2, 5, 16, 31}) {
    run(shape_of(1, 64), {},
        [&] { EXPECT(shuffle_xor(static_cast<float>(thread()), mask) == (thread() ^ mask)); });
  }
}

bool matrices_are_right() {
  bool right = true;
  run(shape_of(1, 32, 32 * 48), {}, [&] {
    // row r of matrix m lies at 48 (8 m + r), and its byte b is 8 m + r in the upper, b in the lower digits
    for (int byte = 0; byte < 16; ++byte)
      store_shared(shared_at<uint8_t>(48 * thread() + byte), static_cast<uint8_t>(thread() << 3 ^ byte * 5));
    warp_barrier();
    uint32_t r[4];
    load_matrices(r, shared_memory() + 48 * thread());
    for (int m = 0; m < 4; ++m) {
      for (int byte = 0; byte < 4; ++byte) {
        const int row = 8 * m + thread() / 4;
        const auto expected = static_cast<uint8_t>(row << 3 ^ (4 * (thread() % 4) + byte) * 5);
        if ((r[m] >> 8 * byte & 255) != expected) right = false;
      }
    }
  });
  return right;
}

TEST(load_matrices_distributes_rows) { expect_found("matrices swapped", matrices_are_right); }

template <class T>
uint32_t packed(const std::function<double(int)>& element, int k) {
  if constexpr (sizeof(T) == 4) {
    return std::bit_cast<uint32_t>(static_cast<float>(element(k)));
  } else {
    return from_float<T>(element(k)).bits | uint32_t{from_float<T>(element(k + 1)).bits} << 16;
  }
}

// A register has 4 bytes of k: 4 / sizeof(T) numbers.
template <class T>
void expect_product() {
  constexpr int kNumbers = 4 / sizeof(T), kDepth = 8 * kNumbers;
  std::mt19937 generator(1);
  std::uniform_int_distribution<int> small(-8, 8);
  double a[16][kDepth], b[kDepth][8], sums[16][8];
  for (auto& row : a) std::generate(std::begin(row), std::end(row), [&] { return small(generator); });
  for (auto& row : b) std::generate(std::begin(row), std::end(row), [&] { return small(generator); });
  for (auto& row : sums) std::generate(std::begin(row), std::end(row), [&] { return small(generator); });
  run(shape_of(1, 32), {}, [&] {
    const int g = thread() / 4, q = thread() % 4;
    uint32_t fragment[4], column[2];
    for (int r = 0; r < 4; ++r)
      fragment[r] =
          packed<T>([&](int k) { return a[g + (r % 2 ? 8 : 0)][k]; }, kNumbers * (q + (r / 2 ? 4 : 0)));
    for (int r = 0; r < 2; ++r) column[r] = packed<T>([&](int k) { return b[k][g]; }, kNumbers * (q + 4 * r));
    float d[4];
    for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(sums[g + (i / 2 ? 8 : 0)][2 * q + i % 2]);
    mma<T>(d, fragment, column[0], column[1]);
    for (int i = 0; i < 4; ++i) {
      const int m = g + (i / 2 ? 8 : 0), n = 2 * q + i % 2;
      double expected = sums[m][n];
      for (int k = 0; k < kDepth; ++k) expected += a[m][k] * b[k][n];
      EXPECT(d[i] == expected);
    }
  });
}

TEST(mma_multiplies) {
  expect_product<bf16>();
  expect_product<fp16>();
  expect_product<float>();
}

TEST(mma_cuts_to_tf32) {
  run(shape_of(1, 32), {}, [] {
    const uint32_t fine = std::bit_cast<uint32_t>(1 + 0x1p-11f),
                   coarse = std::bit_cast<uint32_t>(1 + 0x1p-10f);
    const uint32_t one = std::bit_cast<uint32_t>(1.0f);
    float cut[4] = {}, kept[4] = {};
    mma<float>(cut, {fine, fine, fine, fine}, one, one);
    mma<float>(kept, {coarse, coarse, coarse, coarse}, one, one);
    EXPECT(cut[0] == 8 && kept[0] == 8 * (1 + 0x1p-10f));
  });
}

TEST(lanes_that_do_different_things) {
  expect_error("while thread", shape_of(1, 32), {}, [] {
    if (thread() == 7) return warp_barrier();
    shuffle_xor(0, 1);
  });
  expect_error("has ended", shape_of(1, 32), {}, [] {
    if (thread() != 7) warp_barrier();
  });
  expect_error("in a warp of 8 threads", shape_of(1, 40), {}, [] { shuffle_xor(0, 1); });
}

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

TEST(refused_launches) {
  expect_error("a launch of 513 threads in a block of a kernel for up to 512", shape_of(1, 513), {}, [] {});
  expect_error("a launch of 300000 bytes of shared memory", shape_of(1, 1, 300000), {}, [] {});
  expect_error("a launch of 17 blocks in a cluster", cluster_of(17, 1, 0), {}, [] {});
  expect_error("threads at once", grid_of(100, 512), {}, [] {});
  expect_error("a launch of 0 x 1 x 1 blocks", shape_of(0, 1), {}, [] {});
  EXPECT(cnnlstm_host_plant("no such fault") == -1);
}

TEST(clear_fills_with_zeros) {
  std::vector<float> numbers(5, 1.0f);
  clear(numbers.data(), 16, nullptr);
  EXPECT(numbers == (std::vector<float>{0, 0, 0, 0, 1}));
}

// ---- copies ----

// A ring of two stages, the next one on its way while one is read.
bool copies_arrive() {
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
  cnnlstm_host_seed(0, 0);
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

// ---- words between the blocks of a grid ----

// Blocks pass each other numbers; two planes of words take turns.
bool words_go_round() {
  constexpr int kBlocks = 3, kThreads = 32, kSteps = 6;
  std::vector<uint64_t> words(2 * kBlocks * kThreads);
  bool right = true;
  run(grid_of(kBlocks, kThreads), {words}, [&] {
    for (uint64_t step = 1; step <= kSteps; ++step) {
      uint64_t* const plane = words.data() + step % 2 * kBlocks * kThreads;
      store_word(plane + block_x() * kThreads + thread(), step << 32 | (100 * block_x() + thread()));
      for (int other = 0; other < kBlocks; ++other) {
        Watch watch;
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
    Watch watch;
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
bool sends_go_round(Ring ring = {}) {
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

int fail(const Test& test) {
  cnnlstm_host_seed(0, 0.05);
  try {
    test.body();
    return 0;
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", test.name, error.what());
    return 1;
  }
}

}  // namespace

int main(int argc, char** argv) {
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
