#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

#include "cuda/facts.h"

// Leaves the calling function with `failure` and the runtime's own words.
#define CNNLSTM_CHECK(call, failure)                                                         \
  do {                                                                                       \
    const cudaError_t status = (call);                                                       \
    if (status != cudaSuccess) {                                                             \
      cudaGetLastError(); /* a sticky error must not surface in somebody else's call */      \
      std::snprintf(message, message_size, "%s: %s (%s)", #call, cudaGetErrorString(status), \
                    cudaGetErrorName(status));                                               \
      return failure;                                                                        \
    }                                                                                        \
  } while (0)

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
