#if defined(__x86_64__)

#include "cpu/backward.h"
#include "cpu/prepack.h"

namespace cnnlstm {

const Kernels& kernels_avx512_vnni_int8() { return kQuantizedKernels<float>; }

}  // namespace cnnlstm

#endif
