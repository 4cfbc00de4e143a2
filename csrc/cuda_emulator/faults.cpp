#include "cuda_emulator/faults.h"

#include <string_view>
#include <utility>

namespace cnnlstm::emulator {

Fault planted = Fault::kNone;

namespace {

constexpr std::pair<std::string_view, Fault> kFaults[] = {
    {"", Fault::kNone},
    {"block barrier", Fault::kBlockBarrier},
    {"warp barrier", Fault::kWarpBarrier},
    {"copy wait", Fault::kCopyWait},
    {"matrices swapped", Fault::kMatricesSwapped},
    {"word lost", Fault::kWordLost},
    {"send lost", Fault::kSendLost},
    {"arrival lost", Fault::kArrivalLost},
};

}  // namespace
}  // namespace cnnlstm::emulator

int cnnlstm_emulator_plant(const char* fault) {
  for (const auto& [name, value] : cnnlstm::emulator::kFaults) {
    if (name == fault) {
      cnnlstm::emulator::planted = value;
      return 0;
    }
  }
  return -1;
}
