#include "cuda/recurrence.cuh"

namespace cnnlstm {

CNNLSTM_COMPILE_ALGORITHM(CNNLSTM_PERSISTENT_GRID, true)

}  // namespace cnnlstm
