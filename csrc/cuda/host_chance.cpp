#include "cuda/host_chance.h"

namespace cnnlstm::host {

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

}  // namespace cnnlstm::host

void cnnlstm_host_seed(uint64_t seed, double switching) { cnnlstm::host::chance.seed(seed, switching); }
