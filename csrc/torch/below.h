// The kernels call ATen below autograd and autocast: both have had their say when the operator is reached.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>

namespace cnnlstm {

struct BelowAutogradAndAutocast {
  at::AutoDispatchBelowADInplaceOrView autograd;
  c10::impl::ExcludeDispatchKeyGuard autocast{c10::autocast_dispatch_keyset};
};

}  // namespace cnnlstm
