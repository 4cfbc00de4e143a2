// The functions of device.cuh and launch.h on a CPU, for tests without a GPU: each calls the machine of
// machine.h.
#pragma once

#include <math.h>
#include <string.h>

#include <stdexcept>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda_emulator/machine.h"
#include "cuda_emulator/numbers.h"

#define CNNLSTM_DEVICE inline
#define CNNLSTM_EMULATOR_DEVICE inline
#define CNNLSTM_UNROLL
#define CNNLSTM_NO_UNROLL

namespace cnnlstm {
namespace device {

inline int thread() { return emulator::here().thread; }
inline int threads() { return emulator::here().threads; }
inline int block_x() { return emulator::here().block_x; }
inline int block_y() { return emulator::here().block_y; }
inline int block_z() { return emulator::here().block_z; }
inline int blocks_x() { return emulator::here().blocks_x; }
inline int blocks_y() { return emulator::here().blocks_y; }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return emulator::widen(x); }
inline float to_float(fp16 x) { return emulator::widen(x); }
template <typename T>
T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (std::is_same_v<T, bf16>) {
    return emulator::narrow_bf16(x);
  } else {
    return emulator::narrow_fp16(x);
  }
}
inline float round_tf32(float x) { return emulator::round_to_bits<11>(x); }
inline float exp2_fast(float x) { return exp2f(x); }
inline float reciprocal_fast(float x) { return 1.0f / x; }
// No more accurate than the GPU's.
inline float tanh_fast(float x) { return emulator::round_to_bits<11>(tanhf(x)); }

// A hint for nvcc.
inline int anew(int value) { return value; }

inline void block_barrier() { emulator::block_barrier(); }
inline void warp_barrier() { emulator::warp_barrier(); }
inline void cluster_barrier() { emulator::cluster_barrier(); }

inline float shuffle_xor(float x, int mask) {
  emulator::ShuffleLane lane{x, mask};
  emulator::shuffle(lane);
  return lane.value;
}
template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  constexpr auto kFactors = std::is_same_v<T, bf16>   ? emulator::Factors::kBf16
                            : std::is_same_v<T, fp16> ? emulator::Factors::kFp16
                                                      : emulator::Factors::kTf32;
  emulator::ProductLane lane{kFactors, d, a, {b0, b1}};
  emulator::product(lane);
}
inline void load_matrices(uint32_t (&r)[4], const void* row) {
  emulator::MatricesLane lane{static_cast<const char*>(row), r};
  emulator::matrices(lane);
}

inline char* shared_memory() { return emulator::shared_memory(); }
template <typename T>
T load_shared(const T* p) {
  emulator::touch_shared(emulator::Access::kLoad, p, sizeof(T), alignof(T));
  return *p;
}
template <typename T>
void store_shared(T* p, T value) {
  emulator::touch_shared(emulator::Access::kStore, p, sizeof(T), alignof(T));
  *p = value;
}

inline void copy_async(void* to_shared, const void* from, bool exists) {
  emulator::copy_async(to_shared, from, exists);
}
inline void copy_commit() { emulator::copy_commit(); }
template <int Pending>
void copy_wait() {
  emulator::copy_wait(Pending);
}

template <typename T>
T load(const T* p) {
  emulator::touch_global(emulator::Access::kLoad, p, sizeof(T), alignof(T));
  return *p;
}
template <typename T>
void store(T* p, T value) {
  emulator::touch_global(emulator::Access::kStore, p, sizeof(T), alignof(T));
  *p = value;
}
inline uint64_t load_word(const uint64_t* p) { return load(p); }
inline void store_word(uint64_t* p, uint64_t word) { emulator::store_word(p, word); }

// A deadlock is detected without a clock: no thread can run.
class Watch {
 public:
  explicit Watch(bool) {}
  void turn() const { emulator::wait_for_words(); }
};

inline void arrivals_init(uint64_t* barrier, int arrivals) { emulator::arrivals_init(barrier, arrivals); }
inline void arrive(uint64_t* barrier) { emulator::arrive(barrier, 0); }
inline void arrive_expecting(uint64_t* barrier, int bytes) { emulator::arrive(barrier, bytes); }
inline void wait_phase(uint64_t* barrier, int parity) { emulator::wait_phase(barrier, parity); }
inline void send(void* own, uint4 value, uint64_t* barrier, int rank) {
  emulator::send(own, value, barrier, rank);
}

}  // namespace device

template <class Kernel>
void launch(const LaunchShape& shape, const typename Kernel::Arguments& arguments, void*) {
  std::vector<emulator::Array> arrays;
  Kernel::each_array(arguments, [&](auto* pointer, int64_t count) {
    using Element = std::remove_pointer_t<decltype(pointer)>;
    if (pointer != nullptr)
      arrays.push_back({reinterpret_cast<const char*>(pointer), count * static_cast<int64_t>(sizeof(Element)),
                        !std::is_const_v<Element>});
  });
  emulator::check_shape(shape, Kernel::kThreads, Kernel::kCluster);
  emulator::launch(shape, arrays, [&] { Kernel::run(arguments); });
}

inline void clear(void* memory, size_t bytes, void*) { memset(memory, 0, bytes); }

template <class Kernel>
int registers_of() {
  throw std::runtime_error("a kernel that is compiled for the CPU has no number of registers");
}

}  // namespace cnnlstm
