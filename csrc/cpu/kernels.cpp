#include "cpu/kernels.h"

#include "cpu/isa.h"

namespace cnnlstm {

namespace {

// The maximum number of rows that one pass over the weights handles.
constexpr int64_t kRowsPerPass = 6;

// The number of uses from which on packing a matrix (4H, K) saves time (docs/notes/cpu.md). Panels that are
// cached between calls are not free either: the weights are read for their fingerprint, which takes most of
// the time of a use where L2 does not hold them.
int64_t min_uses_to_pack(int64_t H, int64_t K) { return 4 * H * K <= 1 << 17 ? 6 : 24; }

}  // namespace

bool should_pack_input(const ForwardLayer& layer, int64_t rows) {
  return rows >= (layer.microkernel.multiply != nullptr ? 12 : 2 * min_uses_to_pack(layer.H, layer.I));
}

bool should_pack_gates(const ForwardLayer& layer) {
  const int64_t passes = layer.seq.T * ((layer.seq.B + kRowsPerPass - 1) / kRowsPerPass);
  // With few rows the micro-kernel is not faster than the other products.
  if (layer.microkernel.multiply != nullptr && layer.seq.B >= kMicrokernelMinRows) {
    if (layer.seq.B >= 8) return layer.keeps_panels || passes >= 4;
    return passes >= (layer.H * layer.P <= 1 << 16 ? 8 : 16);
  }
  return passes >= min_uses_to_pack(layer.H, layer.P);
}

// Of a matrix larger than L2, a library reads the weights once and packs them on the way. Cached panels take
// another read for the fingerprint, and unpacked weights are slow for more than a few rows.
bool should_hoist_input(const ForwardLayer& layer, int64_t rows) {
  const int64_t size = 4 * layer.H * layer.I;
  return rows >= 48 && size > (should_pack_gates(layer) ? 1 << 21 : 1 << 17);
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
