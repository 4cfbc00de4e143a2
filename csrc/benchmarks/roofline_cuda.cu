#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <random>
#include <stdexcept>
#include <vector>

#include "benchmarks/measure.cuh"
#include "benchmarks/roofline_cuda.h"
#include "cuda/guarded.h"

using namespace cnnlstm;

namespace {

constexpr int kThreads = 256;
constexpr int kClusterBlocks = 8;  // the largest size that every GPU with clusters grants
constexpr size_t kLine = 128;      // bytes of a cache line

__global__ void copy_kernel(const float4* __restrict__ from, float4* __restrict__ to, size_t count) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) to[i] = from[i];
}

// Each line of the buffer begins with the address of the next one.
using Address = unsigned long long;

__global__ void chase_kernel(Address first, int hops, Address* last) {
  Address at = first;
  for (int i = 0; i < hops; ++i) at = __ldcg(reinterpret_cast<const Address*>(at));
  *last = at;  // otherwise nothing would have to be loaded
}

__global__ void block_barrier_kernel(int rounds) {
  for (int i = 0; i < rounds; ++i) __syncthreads();
}

__global__ void cluster_barrier_kernel(int rounds) {
#if __CUDA_ARCH__ >= 900
  for (int i = 0; i < rounds; ++i) cooperative_groups::this_cluster().sync();
#endif
}

// The counter only grows, so that no round has to reset it. All blocks are resident: no block waits for one
// that cannot start.
__global__ void grid_barrier_kernel(int rounds, unsigned* counter) {
  for (unsigned i = 1; i <= static_cast<unsigned>(rounds); ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
      unsigned arrived = 0;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(counter) : "memory");
      } while (arrived < i * gridDim.x);
    }
    __syncthreads();
  }
}

// The lines of a buffer at `base` as one ring in random order, so that no prefetcher knows the next.
std::vector<Address> ring(Address base, size_t lines) {
  std::vector<size_t> order(lines);
  for (size_t i = 0; i < lines; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937(0));
  constexpr size_t kStep = kLine / sizeof(Address);
  std::vector<Address> links(lines * kStep);
  for (size_t i = 0; i < lines; ++i) links[order[i] * kStep] = base + order[(i + 1) % lines] * kLine;
  return links;
}

}  // namespace

extern "C" double cnnlstm_cuda_copy_bandwidth(size_t bytes, int repeats, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    const size_t count = std::max<size_t>(bytes / sizeof(float4), 1);
    repeats = std::max(repeats, 1);
    const int blocks = 8 * attribute(cudaDevAttrMultiProcessorCount);
    const Buffer from(count * sizeof(float4)), to(count * sizeof(float4));
    CNNLSTM_CHECK(cudaMemset(from.as<void>(), 0, count * sizeof(float4)));
    const double taken = nanoseconds([&] {
      for (int i = 0; i < repeats; ++i) {
        copy_kernel<<<blocks, kThreads>>>(from.as<float4>(), to.as<float4>(), count);
        CNNLSTM_CHECK(cudaGetLastError());
      }
    });
    return 2.0 * count * sizeof(float4) * repeats / taken;
  });
}

extern "C" double cnnlstm_cuda_l2_latency(size_t bytes, int hops, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    const size_t lines = std::max<size_t>(bytes / kLine, 1);
    hops = std::max(hops, 1);
    const Buffer buffer(lines * kLine), last(sizeof(Address));
    const auto base = reinterpret_cast<Address>(buffer.as<void>());
    const std::vector<Address> links = ring(base, lines);
    CNNLSTM_CHECK(cudaMemcpy(buffer.as<void>(), links.data(), lines * kLine, cudaMemcpyHostToDevice));
    const double taken = nanoseconds([&] {
      chase_kernel<<<1, 1>>>(base, hops, last.as<Address>());
      CNNLSTM_CHECK(cudaGetLastError());
    });
    return taken / hops;
  });
}

extern "C" double cnnlstm_cuda_block_barrier(int rounds, int threads, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    rounds = std::max(rounds, 1);
    const double taken = nanoseconds([&] {
      block_barrier_kernel<<<1, threads>>>(rounds);
      CNNLSTM_CHECK(cudaGetLastError());
    });
    return taken / rounds;
  });
}

extern "C" double cnnlstm_cuda_cluster_barrier(int rounds, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    rounds = std::max(rounds, 1);
    if (attribute(cudaDevAttrComputeCapabilityMajor) < 9)
      throw std::runtime_error("a cluster barrier needs compute capability 9.0");
    // PTX of an older architecture runs here, too, but its loop is empty.
    cudaFuncAttributes code;
    CNNLSTM_CHECK(cudaFuncGetAttributes(&code, cluster_barrier_kernel));
    if (code.ptxVersion < 90)
      throw std::runtime_error(
          "a cluster barrier needs compute capability 9.0, and this build has no such code "
          "for this GPU: add its architecture to CNNLSTM_CUDA_ARCHS");
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {kClusterBlocks, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = kClusterBlocks;
    config.blockDim = kThreads;
    config.attrs = &cluster;
    config.numAttrs = 1;
    const double taken =
        nanoseconds([&] { CNNLSTM_CHECK(cudaLaunchKernelEx(&config, cluster_barrier_kernel, rounds)); });
    return taken / rounds;
  });
}

extern "C" double cnnlstm_cuda_grid_barrier(int rounds, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    rounds = std::max(rounds, 1);
    const int blocks = attribute(cudaDevAttrMultiProcessorCount);
    const Buffer counter(sizeof(unsigned));
    unsigned* address = counter.as<unsigned>();
    void* arguments[] = {&rounds, &address};
    const double taken = nanoseconds([&] {
      CNNLSTM_CHECK(cudaMemsetAsync(address, 0, sizeof(unsigned)));
      CNNLSTM_CHECK(cudaLaunchCooperativeKernel(grid_barrier_kernel, blocks, kThreads, arguments));
    });
    return taken / rounds;
  });
}
