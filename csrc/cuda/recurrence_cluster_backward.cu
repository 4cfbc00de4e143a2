#include "cuda/recurrence.cuh"

namespace cnnlstm {

CNNLSTM_COMPILE_WAY(CNNLSTM_CLUSTER, CnnlstmBackward, Backward, true)

}  // namespace cnnlstm
