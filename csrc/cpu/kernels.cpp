#include "cpu/kernels.h"

#include <cstdlib>
#include "cpu/isa.h"

namespace cnnlstm {

bool pays_to_pack_input(const ForwardLayer& layer, int64_t rows) {
  if (layer.engine.multiply != nullptr) return rows >= 24;
  static const int kept=getenv("R0")?atoi(getenv("R0")):4;
  return rows >= (layer.keeps_weights ? kept : 96);
}

bool pays_to_pack_gates(const ForwardLayer& layer) {
  const Sequences& seq = layer.seq;
  // six rows are one pass over W_hh
  const int64_t passes = seq.T * ((seq.B + 5) / 6);
  if (layer.engine.multiply != nullptr && seq.B >= kEngineRows) return passes >= 4;
  static const int kept=getenv("P0")?atoi(getenv("P0")):4;
  return passes >= (layer.keeps_weights ? kept : 48);
}

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
