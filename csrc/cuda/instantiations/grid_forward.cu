#include "cuda/recurrence.cuh"

namespace cnnlstm {

CNNLSTM_COMPILE_WAY(CNNLSTM_GRID, false)

}  // namespace cnnlstm
