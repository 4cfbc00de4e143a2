// The size of this machine's L2, by which the work is split.
#pragma once

#include <cstdint>

namespace cnnlstm {

// The bytes of a core's L2 that weights may take: 5/8, which leaves room for the state and the gate inputs.
// Of 1 MB where the size is unknown.
int64_t weight_cache_bytes();

}  // namespace cnnlstm
