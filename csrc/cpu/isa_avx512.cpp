#if defined(__x86_64__)

#include "cpu/backward.h"
#include "cpu/forward.h"

namespace cnnlstm {

const Kernels& kernels_avx512(bool is_bf16) {
  static const Kernels f32{forward_workspace<float>, forward<float>, backward_workspace<float>,
                           backward<float>};
  static const Kernels low{forward_workspace<bf16>, forward<bf16>, backward_workspace<bf16>, backward<bf16>};
  return is_bf16 ? low : f32;
}

}  // namespace cnnlstm

#endif
