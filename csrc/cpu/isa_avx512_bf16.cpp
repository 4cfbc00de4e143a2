#if defined(__x86_64__)

#include "cpu/backward.h"
#include "cpu/prepack.h"

namespace cnnlstm {

const Kernels& kernels_avx512_bf16() { return kKernels<bf16>; }

}  // namespace cnnlstm

#endif
