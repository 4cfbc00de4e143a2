// All randomness of kernels that run on the CPU: one generator, one seed.
#pragma once

#include <stdint.h>

#include <random>

#define CNNLSTM_EXPORT __attribute__((visibility("default")))

extern "C" {
// Seeds the generator. `switching`, from 0 to 1: the probability that a thread yields at a memory access; at
// barriers and waits threads switch in any case.
CNNLSTM_EXPORT void cnnlstm_emulator_seed(uint64_t seed, double switching);
}

namespace cnnlstm::emulator {

class Chance {
 public:
  void seed(uint64_t seed, double switching);

  std::mt19937_64& generator() { return generator_; }
  // 0 .. n-1; n is far below 2^64, so that the bias towards the lowest values is negligible
  uint64_t below(uint64_t n) { return generator_() % n; }
  bool one_in(uint64_t n) { return below(n) == 0; }

  // Whether a thread yields at a memory access.
  bool switches() {
    if (--until_switch_ > 0) return false;
    until_switch_ = distance();
    return true;
  }

 private:
  int64_t distance();

  std::mt19937_64 generator_{0};
  double switching_ = 0.02;
  int64_t until_switch_ = 1;
};

extern Chance chance;

}  // namespace cnnlstm::emulator
