#include "cpu/kernels.h"

#include "cpu/isa.h"

namespace cnnlstm {

const Kernels& kernels(bool is_bf16) {
  switch (active_isa()) {
#if defined(__x86_64__)
    case Isa::avx512:
      return is_bf16 && has_avx512_bf16() ? kernels_avx512_bf16() : kernels_avx512(is_bf16);
    case Isa::avx2:
      return kernels_avx2(is_bf16);
#endif
    default:
      return kernels_portable(is_bf16);
  }
}

}  // namespace cnnlstm
