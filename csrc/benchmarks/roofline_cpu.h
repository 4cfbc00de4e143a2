// The roofline of one core, measured on the calling thread.
#pragma once

#include <cstddef>

namespace cnnlstm {

// GB/s of reading a buffer of `bytes` repeatedly for about `seconds`: the bandwidth of the smallest cache
// that holds it, or of the memory. Throws std::bad_alloc.
double read_bandwidth(std::size_t bytes, double seconds);

// GFLOP/s of independent f32 fused multiply-adds on the widest vectors of this machine, for about `seconds`.
double fma_rate(double seconds);

}  // namespace cnnlstm
