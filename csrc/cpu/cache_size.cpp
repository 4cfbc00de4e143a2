#include "cpu/cache_size.h"

#include <unistd.h>

namespace cnnlstm {

namespace {

int64_t l2_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  if (const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) return bytes;
#endif
  return 1 << 20;
}

}  // namespace

int64_t weight_cache_bytes() {
  static const int64_t bytes = l2_bytes() / 8 * 5;
  return bytes;
}

}  // namespace cnnlstm
