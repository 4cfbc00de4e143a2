#if defined(__x86_64__)

#include "cpu/backward.h"
#include "cpu/prepack.h"

namespace cnnlstm {

const Kernels& kernels_avx2(bool is_bf16) { return is_bf16 ? kKernels<bf16> : kKernels<float>; }
const Kernels& kernels_avx2_int8() { return kQuantizedKernels<float>; }

}  // namespace cnnlstm

#endif
