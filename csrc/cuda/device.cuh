// All access of the kernels to the hardware: they call no other intrinsic, so the same source runs on a CPU,
// where cuda_emulator/device.h implements these functions differently (for tests without a GPU).
//
// A kernel is a struct with `Arguments` (plain data), `kThreads` (the most in a block), `kCluster` (whether
// it needs sm_90), `static void run(const Arguments&)`, and for the CPU `each_array(arguments, f)`, which
// calls f(pointer, count) for every array that the kernel may touch.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdio>
#include <type_traits>

#define CNNLSTM_DEVICE __device__ __forceinline__
#define CNNLSTM_EMULATOR_DEVICE __host__ __device__ __forceinline__
#define CNNLSTM_UNROLL _Pragma("unroll")
#define CNNLSTM_NO_UNROLL _Pragma("unroll 1")

namespace cnnlstm {

using bf16 = __nv_bfloat16;
using fp16 = __half;

namespace device {

// ---- indices ----
CNNLSTM_DEVICE int thread() { return threadIdx.x; }
CNNLSTM_DEVICE int threads() { return blockDim.x; }
CNNLSTM_DEVICE int block_x() { return blockIdx.x; }
CNNLSTM_DEVICE int block_y() { return blockIdx.y; }
CNNLSTM_DEVICE int block_z() { return blockIdx.z; }
CNNLSTM_DEVICE int blocks_x() { return gridDim.x; }
CNNLSTM_DEVICE int blocks_y() { return gridDim.y; }

// ---- conversions and activations' building blocks ----
CNNLSTM_DEVICE float to_float(float x) { return x; }
CNNLSTM_DEVICE float to_float(bf16 x) { return __bfloat162float(x); }
CNNLSTM_DEVICE float to_float(fp16 x) { return __half2float(x); }
template <typename T>
CNNLSTM_DEVICE T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (std::is_same<T, bf16>::value) {
    return __float2bfloat16_rn(x);
  } else {
    return __float2half_rn(x);
  }
}
// To the nearest of the 19 bits that a TF32 product reads, ties away from zero.
CNNLSTM_DEVICE float round_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}
// 2^x and 1/x to about 2 ulp; 1 / inf = 0. tanh to 2^-11 of it.
CNNLSTM_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
CNNLSTM_DEVICE float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
CNNLSTM_DEVICE float tanh_fast(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Returns its argument, opaquely for the compiler: what a loop computes from it is recomputed in every
// iteration and occupies no register for the whole loop.
CNNLSTM_DEVICE int anew(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// ---- barriers ----
CNNLSTM_DEVICE void block_barrier() { __syncthreads(); }
CNNLSTM_DEVICE void warp_barrier() { __syncwarp(); }

// ---- within a warp: every lane calls them together ----
CNNLSTM_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

// d += a b: a (16 x k) row-major, b (k x 8) column-major, d (16 x 8); k = 16 for 16-bit values, 8 for TF32.
// Which lane holds what: fragments.h.
template <typename T>
CNNLSTM_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same<T, bf16>::value) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else if constexpr (std::is_same<T, fp16>::value) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// ---- shared memory of the block: 16-byte aligned, uninitialised ----
CNNLSTM_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}
CNNLSTM_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
template <typename T>
CNNLSTM_DEVICE T load_shared(const T* p) {
  return *p;
}
template <typename T>
CNNLSTM_DEVICE void store_shared(T* p, T value) {
  *p = value;
}
// Four 8 x 8 matrices of 16-bit values (8 rows of 16 bytes each): lane l gives the address of row l % 8 of
// matrix l / 8, and gets of each matrix the 4 bytes at row l / 4, bytes 4 (l % 4).
CNNLSTM_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---- asynchronous copies ----
// 16 bytes from global to shared memory, both 16-byte aligned; zeros where not `exists`.
CNNLSTM_DEVICE void copy_async(void* to_shared, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)), "l"(from),
               "r"(exists ? 16 : 0)
               : "memory");
}
// Closes a group of the thread's copies; waits until at most `Pending` of its latest groups are in flight.
// Only the thread itself sees the data of the finished ones then.
CNNLSTM_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Pending>
CNNLSTM_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- global memory ----
template <typename T>
CNNLSTM_DEVICE T load(const T* p) {
  return *p;
}
template <typename T>
CNNLSTM_DEVICE void store(T* p, T value) {
  *p = value;
}
// Words that blocks of a grid exchange. Each is written and read in one access, so that a word of two halves
// needs no fence.
CNNLSTM_DEVICE uint64_t load_word(const uint64_t* p) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(p) : "memory");
  return word;
}
CNNLSTM_DEVICE void store_word(uint64_t* p, uint64_t word) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(word) : "memory");
}

// ---- time limit of waits ----
// Ends a kernel whose wait takes too long, since no other block will end it. A call, so that it takes no
// registers from the kernels; a text without arguments, since those would lie in local memory. Any warp may
// be the one that waits: its first waiting lane says so.
__device__ __noinline__ inline void give_up() {
  if (threadIdx.x % 32 == __ffs(__activemask()) - 1)
    printf("cnnlstm_fast: a block waited for the others for too long; the kernel ends with an error\n");
  __trap();
}
// A wait of about a second is too long, if it is `limited`: the blocks that are waited for may not have
// started yet, because another stream's kernel holds their multiprocessors.
class Watch {
 public:
  CNNLSTM_DEVICE explicit Watch(bool limited) : limited_(limited) {}

  // Called in every iteration of a loop that waits.
  CNNLSTM_DEVICE void turn() {
    uint32_t now;
    asm volatile("mov.u32 %0, %clock;" : "=r"(now));
    // Not before the loop, from where ptxas moved it into the loop (CUDA 13.0), and every wait was too long.
    if (start_ == 0) start_ = now;
    if (limited_ && now - start_ > kLimit) give_up();
  }

 private:
  static constexpr uint32_t kLimit = 1500000000;  // cycles
  const bool limited_;
  uint32_t start_ = 0;
};

// ---- clusters: blocks that write into each other's shared memory (sm_90) ----
CNNLSTM_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// An mbarrier lies in 8 bytes of shared memory. Each of its phases ends when `arrivals` have come and all
// bytes that were expected.
CNNLSTM_DEVICE void arrivals_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
CNNLSTM_DEVICE void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
CNNLSTM_DEVICE void arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// The data come from other blocks: what they wrote must be seen, hence the cluster's scope.
CNNLSTM_DEVICE void wait_phase(uint64_t* barrier, int parity) {
  Watch watch(true);
  while (true) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\nselp.u32 "
        "%0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    if (done) return;
    watch.turn();
  }
}
// Sends 16 bytes to where `own` lies in the shared memory of the cluster's block `rank`, and tells its
// barrier, given as this block's own, of the bytes.
CNNLSTM_DEVICE void send(void* own, uint4 value, uint64_t* barrier, int rank) {
  uint32_t to, of;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(own)), "r"(rank));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(of) : "r"(shared_address(barrier)), "r"(rank));
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          to),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(of)
      : "memory");
}

}  // namespace device
}  // namespace cnnlstm

#else
#include "cuda_emulator/device.h"
#endif
