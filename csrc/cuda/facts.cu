#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

#include "cuda/facts.h"

namespace {

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

__global__ void copy_kernel(const float4* __restrict__ from, float4* __restrict__ to, size_t count) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) to[i] = from[i];
}

// Frees what was taken, whichever way the function is left.
struct Resources {
  void* from = nullptr;
  void* to = nullptr;
  cudaEvent_t start = nullptr;
  cudaEvent_t stop = nullptr;
  ~Resources() {
    if (start) cudaEventDestroy(start);
    if (stop) cudaEventDestroy(stop);
    cudaFree(from);
    cudaFree(to);
  }
};

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

extern "C" double cnnlstm_cuda_copy_bandwidth(size_t bytes, int repeats, char* message, size_t message_size) {
  const size_t count = std::max<size_t>(bytes / sizeof(float4), 1);
  repeats = std::max(repeats, 1);
  Resources held;
  int device = 0, multiprocessors = 0;
  CNNLSTM_CHECK(cudaGetDevice(&device), -1);
  CNNLSTM_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), -1);
  CNNLSTM_CHECK(cudaMalloc(&held.from, count * sizeof(float4)), -1);
  CNNLSTM_CHECK(cudaMalloc(&held.to, count * sizeof(float4)), -1);
  CNNLSTM_CHECK(cudaMemset(held.from, 0, count * sizeof(float4)), -1);
  CNNLSTM_CHECK(cudaEventCreate(&held.start), -1);
  CNNLSTM_CHECK(cudaEventCreate(&held.stop), -1);
  const int blocks = multiprocessors * 8;
  const auto launch = [&] {
    copy_kernel<<<blocks, 256>>>(static_cast<const float4*>(held.from), static_cast<float4*>(held.to), count);
    return cudaGetLastError();
  };
  CNNLSTM_CHECK(launch(), -1);
  CNNLSTM_CHECK(cudaEventRecord(held.start), -1);
  for (int i = 0; i < repeats; ++i) CNNLSTM_CHECK(launch(), -1);
  CNNLSTM_CHECK(cudaEventRecord(held.stop), -1);
  CNNLSTM_CHECK(cudaEventSynchronize(held.stop), -1);
  float milliseconds = 0;
  CNNLSTM_CHECK(cudaEventElapsedTime(&milliseconds, held.start, held.stop), -1);
  return 2.0 * count * sizeof(float4) * repeats / (milliseconds * 1e6);
}
