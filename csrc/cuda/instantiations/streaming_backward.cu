#include "cuda/recurrence.cuh"

namespace cnnlstm {

CNNLSTM_COMPILE_ALGORITHM(CNNLSTM_STREAMING, true)

}  // namespace cnnlstm
