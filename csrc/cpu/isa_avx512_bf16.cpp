#if defined(__x86_64__)

#include "cpu/backward.h"
#include "cpu/forward.h"

namespace cnnlstm {

const Kernels& kernels_avx512_bf16() {
  static const Kernels low{forward_workspace<bf16>, forward<bf16>, backward_workspace<bf16>, backward<bf16>};
  return low;
}

}  // namespace cnnlstm

#endif
