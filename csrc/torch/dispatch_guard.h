// While it lives, ATen calls skip autograd and autocast, which have already been applied to the operator.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>

namespace cnnlstm {

struct DispatchGuard {
  at::AutoDispatchBelowADInplaceOrView autograd;
  c10::impl::ExcludeDispatchKeyGuard autocast{c10::autocast_dispatch_keyset};
};

}  // namespace cnnlstm
