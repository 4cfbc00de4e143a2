// Faults that a test plants in the machine, to see that a run with them fails.
#pragma once

#include "cuda_emulator/chance.h"

namespace cnnlstm::emulator {

enum class Fault {
  kNone,
  kBlockBarrier,     // nobody waits there
  kWarpBarrier,      // nobody waits there
  kCopyWait,         // nobody waits for copies
  kMatricesSwapped,  // the second and third matrix of load_matrices
  kWordLost,         // a word, now and then, is not stored
  kSendLost,         // 16 bytes, now and then, do not arrive
  kArrivalLost,      // an arrival at an mbarrier, now and then, is not counted
};

extern Fault planted;

// Whether something is to be lost now.
inline bool loses(Fault what) { return planted == what && chance.one_in(8); }

}  // namespace cnnlstm::emulator

extern "C" {
// "block barrier", "warp barrier", "copy wait", "matrices swapped", "word lost", "send lost", "arrival lost",
// or "" for none. Returns 0, or -1 where it knows no such fault.
CNNLSTM_EXPORT int cnnlstm_emulator_plant(const char* fault);
}
