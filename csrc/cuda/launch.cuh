// Launching a kernel on a GPU, for launch.h.
#pragma once

#include <cuda_runtime.h>

#include "cuda/check.cuh"
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace cnnlstm {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1)
    entry(const __grid_constant__ typename Kernel::Arguments arguments) {
#if __CUDA_ARCH__ >= 900
  Kernel::run(arguments);
#else
  if constexpr (Kernel::kCluster) {
    __trap();  // the plan makes no clusters for such a GPU
  } else {
    Kernel::run(arguments);
  }
#endif
}

// The most shared memory that a block of the current device can have.
inline int most_shared_bytes() {
  int device = 0, bytes = 0;
  CNNLSTM_CHECK(cudaGetDevice(&device));
  CNNLSTM_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

template <class Kernel>
void launch(const LaunchShape& shape, const typename Kernel::Arguments& arguments, void* stream) {
  const auto kernel = &entry<Kernel>;
  const auto function = reinterpret_cast<const void*>(kernel);
  // These are attributes of the device's copy of the kernel, not of the launch: the same for every caller, or
  // threads would overwrite each other's.
  if (shape.shared_bytes > 48 * 1024)
    CNNLSTM_CHECK(
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared_bytes()));
  if (shape.cluster)
    CNNLSTM_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.x, shape.y, shape.z);
  config.blockDim = shape.threads;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  if (shape.cluster) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(shape.x), 1, 1};
  }
  if (shape.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  CNNLSTM_CHECK(cudaLaunchKernelEx(&config, kernel, arguments));
}

template <class Kernel>
int registers_of() {
  cudaFuncAttributes attributes = {};
  CNNLSTM_CHECK(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&entry<Kernel>)));
  return attributes.numRegs;
}

inline void clear(void* memory, size_t bytes, void* stream) {
  CNNLSTM_CHECK(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)));
}

}  // namespace cnnlstm
