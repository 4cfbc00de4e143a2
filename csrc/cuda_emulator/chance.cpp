#include "cuda_emulator/chance.h"

namespace cnnlstm::emulator {

Chance chance;

void Chance::seed(uint64_t seed, double switching) {
  generator_.seed(seed);
  switching_ = switching;
  until_switch_ = distance();
}

int64_t Chance::distance() {
  if (switching_ <= 0) return INT64_MAX;
  if (switching_ >= 1) return 1;
  return 1 + std::geometric_distribution<int64_t>(switching_)(generator_);
}

}  // namespace cnnlstm::emulator

void cnnlstm_emulator_seed(uint64_t seed, double switching) {
  cnnlstm::emulator::chance.seed(seed, switching);
}
