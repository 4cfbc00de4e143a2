#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

#include "cuda/facts.h"
#include "cuda/layout.h"

// Leaves the calling function with `failure` and the runtime's own words.
#define CNNLSTM_CHECK(call, failure)                                                         \
  do {                                                                                       \
    const cudaError_t status = (call);                                                       \
    if (status != cudaSuccess) {                                                             \
      cudaGetLastError(); /* or it would surface in somebody else's call */                  \
      std::snprintf(message, message_size, "%s: %s (%s)", #call, cudaGetErrorString(status), \
                    cudaGetErrorName(status));                                               \
      return failure;                                                                        \
    }                                                                                        \
  } while (0)

namespace {

// A block that has a multiprocessor for itself, like the largest of a recurrence.
__global__ void __launch_bounds__(cnnlstm::kMostThreads) cluster_probe() {}

// Of the current device.
int find_largest_cluster(int* blocks, char* message, size_t message_size) {
  *blocks = 0;
  cudaFuncAttributes code;
  CNNLSTM_CHECK(cudaFuncGetAttributes(&code, cluster_probe), -1);
  if (code.ptxVersion < 90)
    return 0;  // PTX of an older architecture runs here, too, but the kernels lack their clusters
  CNNLSTM_CHECK(cudaFuncSetAttribute(cluster_probe, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), -1);
  int device = 0, shared_bytes = 0;
  CNNLSTM_CHECK(cudaGetDevice(&device), -1);
  CNNLSTM_CHECK(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), -1);
  CNNLSTM_CHECK(
      cudaFuncSetAttribute(cluster_probe, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), -1);
  cudaLaunchConfig_t config = {};
  config.dynamicSmemBytes = shared_bytes;
  config.gridDim = 16;
  config.blockDim = cnnlstm::kMostThreads;
  CNNLSTM_CHECK(cudaOccupancyMaxPotentialClusterSize(blocks, cluster_probe, &config), -1);
  return 0;
}

}  // namespace

extern "C" int cnnlstm_cuda_devices(CnnlstmCudaDevice* devices, int capacity, char* message,
                                    size_t message_size) {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found == cudaErrorNoDevice || found == cudaErrorInsufficientDriver) {
    cudaGetLastError();
    return 0;  // the static runtime reports a missing driver as an insufficient one
  }
  CNNLSTM_CHECK(found, -1);
  for (int index = 0; index < std::min(count, capacity); ++index) {
    cudaDeviceProp properties;
    CNNLSTM_CHECK(cudaGetDeviceProperties(&properties, index), -1);
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
    CNNLSTM_CHECK(cudaDeviceGetAttribute(&device.cooperative_launch, cudaDevAttrCooperativeLaunch, index),
                  -1);
    CNNLSTM_CHECK(cudaDeviceGetAttribute(&device.cluster_launch, cudaDevAttrClusterLaunch, index), -1);
    // Some drivers do not tell the clocks: no reason to fail.
    if (cudaDeviceGetAttribute(&device.clock_khz, cudaDevAttrClockRate, index) != cudaSuccess ||
        cudaDeviceGetAttribute(&device.memory_clock_khz, cudaDevAttrMemoryClockRate, index) != cudaSuccess)
      cudaGetLastError();
  }
  return count;
}

extern "C" int cnnlstm_cuda_gpu(int index, CnnlstmGpu* gpu, char* message, size_t message_size) {
  cudaDeviceProp properties;
  CNNLSTM_CHECK(cudaGetDeviceProperties(&properties, index), -1);
  *gpu = {};
  gpu->sm = 10 * properties.major + properties.minor;
  gpu->multiprocessors = properties.multiProcessorCount;
  gpu->shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  gpu->l2_bytes = properties.l2CacheSize;
  gpu->measured = cnnlstm_costs(properties.name, gpu->sm, &gpu->costs);
  int clusters = 0, before = 0;
  CNNLSTM_CHECK(cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, index), -1);
  if (!clusters) return 0;
  CNNLSTM_CHECK(cudaGetDevice(&before), -1);
  CNNLSTM_CHECK(cudaSetDevice(index), -1);
  const int found = find_largest_cluster(&gpu->largest_cluster, message, message_size);
  CNNLSTM_CHECK(cudaSetDevice(before), -1);
  return found;
}
