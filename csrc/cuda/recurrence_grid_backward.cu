#include "cuda/recurrence.cuh"

namespace cnnlstm {

CNNLSTM_COMPILE_WAY(CNNLSTM_GRID, CnnlstmBackward, Backward, true)

}  // namespace cnnlstm
