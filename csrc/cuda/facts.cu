#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

#include "cuda/check.cuh"
#include "cuda/facts.h"
#include "cuda/guarded.h"
#include "cuda/layout.h"

namespace {

// A block that has a multiprocessor for itself, like the largest of a recurrence.
__global__ void __launch_bounds__(cnnlstm::kMostThreads) cluster_probe() {}

// Of the current device.
int largest_cluster() {
  cudaFuncAttributes code;
  CNNLSTM_CHECK(cudaFuncGetAttributes(&code, cluster_probe));
  if (code.ptxVersion < 90) return 0;  // PTX of an older architecture runs here, too, but without clusters
  CNNLSTM_CHECK(cudaFuncSetAttribute(cluster_probe, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  int device = 0, shared_bytes = 0;
  CNNLSTM_CHECK(cudaGetDevice(&device));
  CNNLSTM_CHECK(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  CNNLSTM_CHECK(
      cudaFuncSetAttribute(cluster_probe, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  cudaLaunchConfig_t config = {};
  config.dynamicSmemBytes = shared_bytes;
  config.gridDim = 16;
  config.blockDim = cnnlstm::kMostThreads;
  int blocks = 0;
  CNNLSTM_CHECK(cudaOccupancyMaxPotentialClusterSize(&blocks, cluster_probe, &config));
  return blocks;
}

}  // namespace

extern "C" int cnnlstm_cuda_devices(CnnlstmCudaDevice* devices, int capacity, char* message,
                                    size_t message_size) {
  return cnnlstm::guarded(message, message_size, [&] {
    int count = 0;
    const cudaError_t found = cudaGetDeviceCount(&count);
    if (found == cudaErrorNoDevice || found == cudaErrorInsufficientDriver) {
      cudaGetLastError();
      return 0;  // the static runtime reports a missing driver as an insufficient one
    }
    CNNLSTM_CHECK(found);
    for (int index = 0; index < std::min(count, capacity); ++index) {
      cudaDeviceProp properties;
      CNNLSTM_CHECK(cudaGetDeviceProperties(&properties, index));
      CnnlstmCudaDevice& device = devices[index];
      device = {};
      std::snprintf(device.name, sizeof device.name, "%s", properties.name);
      device.compute_major = properties.major;
      device.compute_minor = properties.minor;
      device.multiprocessors = properties.multiProcessorCount;
      device.memory_bytes = properties.totalGlobalMem;
      device.shared_memory_per_block = properties.sharedMemPerBlockOptin;
      device.registers_per_multiprocessor = properties.regsPerMultiprocessor;
      device.l2_bytes = static_cast<size_t>(properties.l2CacheSize);
      CNNLSTM_CHECK(cudaDeviceGetAttribute(&device.cooperative_launch, cudaDevAttrCooperativeLaunch, index));
      CNNLSTM_CHECK(cudaDeviceGetAttribute(&device.cluster_launch, cudaDevAttrClusterLaunch, index));
      // Some drivers do not report the clocks, which is not an error.
      if (cudaDeviceGetAttribute(&device.clock_khz, cudaDevAttrClockRate, index) != cudaSuccess ||
          cudaDeviceGetAttribute(&device.memory_clock_khz, cudaDevAttrMemoryClockRate, index) != cudaSuccess)
        cudaGetLastError();
    }
    return count;
  });
}

extern "C" int cnnlstm_cuda_gpu(int index, CnnlstmGpu* gpu, char* message, size_t message_size) {
  return cnnlstm::guarded(message, message_size, [&] {
    cudaDeviceProp properties;
    CNNLSTM_CHECK(cudaGetDeviceProperties(&properties, index));
    *gpu = {};
    gpu->sm = 10 * properties.major + properties.minor;
    gpu->multiprocessors = properties.multiProcessorCount;
    gpu->shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
    gpu->l2_bytes = properties.l2CacheSize;
    gpu->measured = cnnlstm_costs(properties.name, gpu->sm, &gpu->costs);
    int clusters = 0, before = 0;
    CNNLSTM_CHECK(cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, index));
    if (!clusters) return 0;
    CNNLSTM_CHECK(cudaGetDevice(&before));
    CNNLSTM_CHECK(cudaSetDevice(index));
    const int found =
        cnnlstm::guarded(message, message_size, [&] { gpu->largest_cluster = largest_cluster(); });
    CNNLSTM_CHECK(cudaSetDevice(before));
    return found;
  });
}
