// Tests of what a lane and a warp compute: numbers and their conversions, shuffles, matrices, products.
#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <random>

#include "tests/emulator_test.h"

namespace cnnlstm::device_test {

// ---- numbers ----

static double to_double(fp16 x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const double magnitude = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
  return x.bits & 0x8000 ? -magnitude : magnitude;
}

static double to_double(bf16 x) {
  const int exponent = x.bits >> 7 & 255, fraction = x.bits & 127;
  const double magnitude = exponent == 0 ? ldexp(fraction, -133) : ldexp(128 + fraction, exponent - 134);
  return x.bits & 0x8000 ? -magnitude : magnitude;
}

template <class T>
static void expect_conversions(int finite) {
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

// ---- warps ----

TEST(shuffle_xor_exchanges) {
  for (const int mask : {1, 2, 5, 16, 31}) {
    run(shape_of(1, 64), {},
        [&] { EXPECT(shuffle_xor(static_cast<float>(thread()), mask) == (thread() ^ mask)); });
  }
}

static bool matrices_are_right() {
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
static uint32_t packed(const std::function<double(int)>& element, int k) {
  if constexpr (sizeof(T) == 4) {
    return std::bit_cast<uint32_t>(static_cast<float>(element(k)));
  } else {
    return from_float<T>(element(k)).bits | uint32_t{from_float<T>(element(k + 1)).bits} << 16;
  }
}

// A register has 4 bytes of k: 4 / sizeof(T) numbers.
template <class T>
static void expect_product() {
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

}  // namespace cnnlstm::device_test
