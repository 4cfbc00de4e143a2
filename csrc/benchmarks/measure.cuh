// Timing kernels, for the files that measure a GPU.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/check.cuh"

namespace cnnlstm {

class Buffer {
 public:
  explicit Buffer(size_t bytes) { CNNLSTM_CHECK(cudaMalloc(&data_, bytes)); }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

class Event {
 public:
  Event() { CNNLSTM_CHECK(cudaEventCreate(&event_)); }
  Event(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

inline int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  CNNLSTM_CHECK(cudaGetDevice(&device));
  CNNLSTM_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

// Nanoseconds of what `launch` puts on the default stream. The best and not the mean: a limit is what the GPU
// reaches undisturbed. The untimed launch also raises the clocks.
template <typename Launch>
double nanoseconds(Launch launch) {
  constexpr int kTries = 5;
  const Event start, stop;
  launch();
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    CNNLSTM_CHECK(cudaEventRecord(start));
    launch();
    CNNLSTM_CHECK(cudaEventRecord(stop));
    CNNLSTM_CHECK(cudaEventSynchronize(stop));
    float milliseconds = 0;
    CNNLSTM_CHECK(cudaEventElapsedTime(&milliseconds, start, stop));
    best = i == 0 ? milliseconds : std::min<double>(best, milliseconds);
  }
  return 1e6 * best;
}

}  // namespace cnnlstm
