#include <algorithm>
#include <climits>
#include <stdexcept>
#include <string>

#include "benchmarks/exchanges.cuh"
#include "benchmarks/measure.cuh"
#include "benchmarks/micro.h"
#include "cuda/cell.cuh"
#include "cuda/guarded.h"
#include "cuda/launch.cuh"

namespace cnnlstm::micro {

constexpr int kWarps = kMostThreads / 32;
constexpr int kUnrolled = 8;  // iterations of a loop, so that counting them costs nothing

// The arguments of every kernel here. It writes a sum that depends on all its work, else the compiler would
// remove it.
struct Rounds {
  int rounds;
  float* sink;
};

struct OneBlock {
  using Arguments = Rounds;
  static constexpr int kThreads = kMostThreads;
  static constexpr bool kCluster = false;
  CNNLSTM_DEVICE static void keep(const Rounds& arguments, float sum) {
    device::store(arguments.sink + device::thread(), sum);
  }
};

// Products of pieces in kChains chains.
template <class T, int kChains>
struct Pieces : OneBlock {
  CNNLSTM_DEVICE static void run(const Rounds& arguments) {
    const uint32_t a[4] = {}, b = device::thread();
    float sums[kChains][4] = {};
    for (int i = 0; i < arguments.rounds; ++i) {
      CNNLSTM_UNROLL
      for (int k = 0; k < kUnrolled; ++k) device::mma<T>(sums[k % kChains], a, b, b);
    }
    float sum = 0;
    for (const auto& chain : sums)
      for (const float x : chain) sum += x;
    keep(arguments, sum);
  }
};

// The same in float32: a lane's share of a piece are 32 products, whose sums are apart.
template <>
struct Pieces<float, 32> : OneBlock {
  CNNLSTM_DEVICE static void run(const Rounds& arguments) {
    const float a = device::thread() * 1e-9f;
    float sums[32];
    CNNLSTM_UNROLL
    for (int n = 0; n < 32; ++n) sums[n] = a * n;
    for (int i = 0; i < arguments.rounds; ++i) {
      CNNLSTM_UNROLL
      for (int k = 0; k < kUnrolled; ++k) {
        CNNLSTM_UNROLL
        for (int n = 0; n < 32; ++n) sums[n] += a * sums[n];
      }
    }
    float sum = 0;
    CNNLSTM_UNROLL
    for (int n = 0; n < 32; ++n) sum += sums[n];
    keep(arguments, sum);
  }
};

struct Special : OneBlock {
  CNNLSTM_DEVICE static void run(const Rounds& arguments) {
    float x[kUnrolled];
    CNNLSTM_UNROLL
    for (int k = 0; k < kUnrolled; ++k) x[k] = device::thread() + k;
    for (int i = 0; i < arguments.rounds; ++i) {
      CNNLSTM_UNROLL
      for (int k = 0; k < kUnrolled; ++k) x[k] = device::exp2_fast(x[k]);
    }
    float sum = 0;
    CNNLSTM_UNROLL
    for (int k = 0; k < kUnrolled; ++k) sum += x[k];
    keep(arguments, sum);
  }
};

struct Cells : OneBlock {
  CNNLSTM_DEVICE static void run(const Rounds& arguments) {
    Cell<Bf16>::State now = {};
    now.h = device::thread();
    for (int i = 0; i < arguments.rounds; ++i) now = Cell<Bf16>::forward(now.h, now.h, now.h, now.h, now.c);
    keep(arguments, now.h);
  }
};

struct Matrices : OneBlock {
  static constexpr int kRowBytes = kUnrolled * 64 + 16;  // as in a tile: rows in different banks

  CNNLSTM_DEVICE static void run(const Rounds& arguments) {
    const int lane = device::thread() % 32;
    const char* const rows = device::shared_memory() + lane % 8 * kRowBytes + lane / 8 * 16;
    uint32_t all = 0;
    for (int i = 0; i < arguments.rounds; ++i) {
      CNNLSTM_UNROLL
      for (int k = 0; k < kUnrolled; ++k) {
        uint32_t r[4];
        device::load_matrices(r, rows + 64 * k);
        all ^= r[0] ^ r[1] ^ r[2] ^ r[3];
      }
    }
    keep(arguments, static_cast<float>(all));
  }
};

struct ReadL2 {
  struct Arguments {
    Rounds common;
    const float4* from;
    int count;
  };
  static constexpr int kThreads = kMostThreads;
  static constexpr bool kCluster = false;

  CNNLSTM_DEVICE static void run(const Arguments& arguments) {
    float sum = 0;
    for (int i = 0; i < arguments.common.rounds; ++i) {
      // each block begins elsewhere, since reading the same line at once would measure contention
      int at = (device::block_x() * 37 * kMostThreads + device::thread()) % arguments.count;
      for (int done = 0; done < arguments.count; done += kUnrolled * kMostThreads) {
        float4 found[kUnrolled];
        CNNLSTM_UNROLL
        for (int k = 0; k < kUnrolled; ++k) {
          found[k] = __ldcg(arguments.from + at);  // not from L1
          at += kMostThreads;
          if (at >= arguments.count) at -= arguments.count;
        }
        CNNLSTM_UNROLL
        for (int k = 0; k < kUnrolled; ++k) sum += found[k].x + found[k].y + found[k].z + found[k].w;
      }
    }
    OneBlock::keep(arguments.common, sum);
  }
};

struct Nothing : OneBlock {
  CNNLSTM_DEVICE static void run(const Rounds&) {}
};

inline LaunchShape one_block(int threads, size_t shared_bytes) {
  return {1, 1, 1, threads, shared_bytes, false, false};
}

// Nanoseconds that one of `rounds` takes of a kernel in one block.
template <class Kernel>
double round_of(int rounds, int threads, size_t shared_bytes = 0) {
  const Buffer sink(kMostThreads * sizeof(float));
  const Rounds arguments = {std::max(rounds, 1), sink.as<float>()};
  return nanoseconds([&] { launch<Kernel>(one_block(threads, shared_bytes), arguments, nullptr); }) /
         arguments.rounds;
}

template <class Kernel>
void require_cluster(int blocks) {
  if (attribute(cudaDevAttrComputeCapabilityMajor) < 9)
    throw std::runtime_error("a cluster needs compute capability 9.0");
  cudaFuncAttributes code;
  CNNLSTM_CHECK(cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(&entry<Kernel>)));
  if (code.ptxVersion < 90)
    throw std::runtime_error(
        "a cluster needs compute capability 9.0, and this build has no such code for this GPU: add its "
        "architecture to "
        "CNNLSTM_CUDA_ARCHS");
  if (blocks > 16)
    throw std::runtime_error("blocks: a cluster has at most 16, got " + std::to_string(blocks));
}

// Nanoseconds of a round; `silent_from`: exchanges.cuh.
template <int kAlgorithm, class Value>
double exchange_round(int groups, int blocks, int rounds, int silent_from = INT_MAX) {
  using Kernel = Exchanges<kAlgorithm, Value>;
  if (Kernel::kCluster) require_cluster<Kernel>(blocks);
  const CnnlstmPlan plan = Kernel::plan(groups, blocks, attribute(cudaDevAttrMultiProcessorCount));
  typename Kernel::Arguments arguments = {};
  arguments.layout = layout_of(plan, Kernel::kBackward, CNNLSTM_BFLOAT16);
  arguments.rounds = std::max(rounds, 1);
  arguments.silent_from = silent_from;
  const Buffer words(8 * arguments.layout.words_of_tile() + 16),
      sums(Kernel::sums(blocks) * sizeof(uint32_t));
  arguments.tiles = {words.as<uint64_t>(), static_cast<int>(arguments.layout.words_of_tile()), 0, 1};
  arguments.sums = sums.as<uint32_t>();
  const LaunchShape shape = {
      blocks,           1, 1, plan.threads, static_cast<size_t>(plan.shared_bytes), Kernel::kCluster,
      !Kernel::kCluster};
  return nanoseconds([&] {
           clear(words.as<void>(), 8 * arguments.layout.words_of_tile(), nullptr);
           launch<Kernel>(shape, arguments, nullptr);
         }) /
         arguments.rounds;
}

}  // namespace cnnlstm::micro

using namespace cnnlstm;
using namespace cnnlstm::micro;

extern "C" double cnnlstm_micro_piece(int compute_type, int rounds, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    const auto round = [&] {
      switch (compute_type) {
        case CNNLSTM_FLOAT32:
          return round_of<Pieces<float, 32>>(rounds, kMostThreads);
        case CNNLSTM_TF32:
          return round_of<Pieces<float, 8>>(rounds, kMostThreads);
        case CNNLSTM_BFLOAT16:
          return round_of<Pieces<bf16, 8>>(rounds, kMostThreads);
        case CNNLSTM_FLOAT16:
          return round_of<Pieces<fp16, 8>>(rounds, kMostThreads);
      }
      throw std::runtime_error("compute_type: expected one of CnnlstmComputeType, got " +
                               std::to_string(compute_type));
    };
    return round() / (kUnrolled * kWarps);
  });
}

extern "C" double cnnlstm_micro_piece_latency(int rounds, char* message, size_t message_size) {
  return guarded(message, message_size, [&] { return round_of<Pieces<bf16, 1>>(rounds, 32) / kUnrolled; });
}

extern "C" double cnnlstm_micro_special(int rounds, char* message, size_t message_size) {
  return guarded(message, message_size,
                 [&] { return round_of<Special>(rounds, kMostThreads) / (kUnrolled * kMostThreads); });
}

extern "C" double cnnlstm_micro_cell(int rounds, char* message, size_t message_size) {
  return guarded(message, message_size, [&] { return round_of<Cells>(rounds, 32); });
}

extern "C" double cnnlstm_micro_shared(int rounds, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    constexpr double kBytes = 512.0 * kUnrolled * kWarps;
    return kBytes / round_of<Matrices>(rounds, kMostThreads, 8 * Matrices::kRowBytes);
  });
}

extern "C" double cnnlstm_micro_exchange(int cluster, int backward, int groups, int blocks, int rounds,
                                         char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    if (groups < 1 || groups > kWarps / 2 || blocks < 2)
      throw std::runtime_error("groups, blocks: expected 1 to 8 and at least 2, got " +
                               std::to_string(groups) + ", " + std::to_string(blocks));
    if (cluster)
      return backward ? exchange_round<CNNLSTM_PERSISTENT_CLUSTER, Quad<bf16>>(groups, blocks, rounds)
                      : exchange_round<CNNLSTM_PERSISTENT_CLUSTER, bf16>(groups, blocks, rounds);
    return backward ? exchange_round<CNNLSTM_PERSISTENT_GRID, Quad<bf16>>(groups, blocks, rounds)
                    : exchange_round<CNNLSTM_PERSISTENT_GRID, bf16>(groups, blocks, rounds);
  });
}

extern "C" double cnnlstm_micro_hang(int cluster, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    constexpr int kGroups = 2, kBlocks = 2, kRounds = 2,
                  kSilentFrom = 2;  // there is no limit in the first round
    return cluster ? exchange_round<CNNLSTM_PERSISTENT_CLUSTER, bf16>(kGroups, kBlocks, kRounds, kSilentFrom)
                   : exchange_round<CNNLSTM_PERSISTENT_GRID, bf16>(kGroups, kBlocks, kRounds, kSilentFrom);
  });
}

extern "C" double cnnlstm_micro_l2(int blocks, int rounds, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    constexpr int kCount = (4 << 20) / sizeof(float4);  // a multiple of what a block reads in a turn
    const Buffer from(kCount * sizeof(float4)), sink(kMostThreads * sizeof(float));
    CNNLSTM_CHECK(cudaMemset(from.as<void>(), 0, kCount * sizeof(float4)));
    const ReadL2::Arguments arguments = {{std::max(rounds, 1), sink.as<float>()}, from.as<float4>(), kCount};
    LaunchShape shape = one_block(kMostThreads, 0);
    shape.x = blocks;
    const double taken = nanoseconds([&] { launch<ReadL2>(shape, arguments, nullptr); });
    return 1.0 * blocks * arguments.common.rounds * kCount * sizeof(float4) / taken;
  });
}

extern "C" double cnnlstm_micro_launch(int rounds, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    rounds = std::max(rounds, 1);
    const double taken = nanoseconds([&] {
      for (int i = 0; i < rounds; ++i) launch<Nothing>(one_block(32, 0), Rounds{}, nullptr);
    });
    return taken / rounds;
  });
}
