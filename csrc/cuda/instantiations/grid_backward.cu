#include "cuda/recurrence.cuh"

namespace cnnlstm {

CNNLSTM_COMPILE_WAY(CNNLSTM_GRID, true)

}  // namespace cnnlstm
