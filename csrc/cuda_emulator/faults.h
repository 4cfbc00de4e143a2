// Faults that a test injects into the machine to check that a run with them fails.
#pragma once

#include "cuda_emulator/chance.h"

namespace cnnlstm::emulator {

enum class Fault {
  kNone,
  kBlockBarrier,     // does not wait
  kWarpBarrier,      // does not wait
  kCopyWait,         // does not wait for copies
  kMatricesSwapped,  // the second and third matrix of load_matrices
  kWordLost,         // some words are not stored
  kSendLost,         // some sends of 16 bytes do not arrive
  kArrivalLost,      // some arrivals at an mbarrier are not counted
};

extern Fault planted;

// Whether this operation is to be lost.
inline bool loses(Fault what) { return planted == what && chance.one_in(8); }

}  // namespace cnnlstm::emulator

extern "C" {
// "block barrier", "warp barrier", "copy wait", "matrices swapped", "word lost", "send lost", "arrival lost",
// or "" for none. Returns 0, or -1 for an unknown name.
CNNLSTM_EXPORT int cnnlstm_emulator_plant(const char* fault);
}
