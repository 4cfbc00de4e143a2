#include "cuda/host_faults.h"

#include <string_view>
#include <utility>

namespace cnnlstm::host {

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
}  // namespace cnnlstm::host

int cnnlstm_host_plant(const char* fault) {
  for (const auto& [name, value] : cnnlstm::host::kFaults) {
    if (name == fault) {
      cnnlstm::host::planted = value;
      return 0;
    }
  }
  return -1;
}
