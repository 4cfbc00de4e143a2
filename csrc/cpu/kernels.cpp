#include "cpu/kernels.h"

#include "cpu/isa.h"

namespace cnnlstm {

namespace {

// Rows that one pass over the weights serves, at most.
constexpr int64_t kRowsPerPass = 6;

// From how many uses on packing a matrix (4H, K) pays (docs/notes/cpu.md). Panels kept from call to call cost
// a reading of the weights, to see that they are the same; where L2 does not hold them, that is most of a
// use.
int64_t worthwhile_uses(int64_t H, int64_t K) { return 4 * H * K <= 1 << 17 ? 6 : 24; }

}  // namespace

bool pays_to_pack_input(const ForwardLayer& layer, int64_t rows) {
  return rows >= (layer.engine.multiply != nullptr ? 12 : 2 * worthwhile_uses(layer.H, layer.I));
}

bool pays_to_pack_gates(const ForwardLayer& layer) {
  const int64_t passes = layer.seq.T * ((layer.seq.B + kRowsPerPass - 1) / kRowsPerPass);
  // With few rows the engine gains no more than other products.
  if (layer.engine.multiply != nullptr) {
    return passes >= (layer.seq.B >= 8 ? 4 : layer.H * layer.P <= 1 << 16 ? 8 : 16);
  }
  return passes >= worthwhile_uses(layer.H, layer.P);
}

// A library reads a matrix that no L2 holds once and packs as it goes. Panels cost another reading to see
// that they are still right, and unpacked weights are slow for more than a few rows.
bool pays_to_hoist_input(const ForwardLayer& layer, int64_t rows) {
  const int64_t size = 4 * layer.H * layer.I;
  return rows >= 48 && size > (pays_to_pack_gates(layer) ? 1 << 21 : 1 << 17);
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

const Kernels& kernels_int8() {
  switch (active_isa()) {
#if defined(__x86_64__)
    case Isa::avx512:
      return has_avx512_vnni() ? kernels_avx512_vnni_int8() : kernels_avx512_int8();
    case Isa::avx2:
      return kernels_avx2_int8();
#endif
    default:
      return kernels_portable_int8();
  }
}

}  // namespace cnnlstm
