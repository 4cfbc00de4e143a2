// From a plan to the launches of one algorithm. Each pass of an algorithm is a translation unit of its own
// in instantiations/, because each takes long to compile.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/backward.cuh"
#include "cuda/backward_streamed.cuh"
#include "cuda/forward.cuh"
#include "cuda/forward_streamed.cuh"
#include "cuda/recurrence.h"
#ifdef __CUDACC__
#include "cuda/launch.cuh"
#endif

namespace cnnlstm {

template <bool kBackward>
using PassOf = std::conditional_t<kBackward, CnnlstmBackward, CnnlstmForward>;

template <int kAlgorithm, bool kBackward>
void run_algorithm(const PassOf<kBackward>& pass, const CnnlstmPlan& plan, void* exchange, void* stream);
// Of each thread of the kernel that run_algorithm launches, on the current device.
template <int kAlgorithm, bool kBackward>
int registers_of_algorithm(int compute_type, const CnnlstmPlan& plan);

// Calls f with the compute type as a C++ type.
template <class F>
void with_compute_type(int compute_type, F f) {
  switch (compute_type) {
    case CNNLSTM_FLOAT32:
      return f(Exact());
    case CNNLSTM_TF32:
      return f(Tf32());
    case CNNLSTM_BFLOAT16:
      return f(Bf16());
    case CNNLSTM_FLOAT16:
      return f(Fp16());
  }
  throw std::runtime_error("compute_type: expected one of CnnlstmComputeType, got " +
                           std::to_string(compute_type));
}

template <class Kernel_, bool kBackward, int kTiles>
struct Chosen {
  using Kernel = Kernel_;
  using Packing = Pack<typename Kernel::ComputeType, kBackward, kTiles>;
};

// Calls f with the kernel of a plan and the one that packs its weights as a type.
template <int kAlgorithm, bool kBackward, class F>
void with_kernel(int compute_type, const CnnlstmPlan& plan, F f) {
  with_compute_type(compute_type, [&](auto found) {
    using ComputeType = decltype(found);
    if constexpr (kAlgorithm == CNNLSTM_STREAMING) {
      f(Chosen<std::conditional_t<kBackward, BackwardStreamed<ComputeType>, ForwardStreamed<ComputeType>>,
               kBackward, kStreamTiles>());
    } else {
      const auto held = [&](auto tiles) {
        constexpr int kTiles = decltype(tiles)::value;
        constexpr bool kSplit = kAlgorithm != CNNLSTM_PERSISTENT_BLOCK;
        f(Chosen<std::conditional_t<kBackward, Backward<ComputeType, kAlgorithm, kTiles, kSplit>,
                                    Forward<ComputeType, kAlgorithm, kTiles, kSplit>>,
                 kBackward, kTiles>());
      };
      if constexpr (kAlgorithm == CNNLSTM_PERSISTENT_BLOCK)
        if (plan.tiles == 4) return held(std::integral_constant<int, 4>());
      held(std::integral_constant<int, 8>());
    }
  });
}

// The launches of a pass: packed weights, then batch tiles, in as many launches as the plan needs.
template <class Chosen, bool kBackward>
void launch_tiles(const PassOf<kBackward>& pass, const CnnlstmPlan& plan, void* exchange, void* stream) {
  using Kernel = typename Chosen::Kernel;
  using Packing = typename Chosen::Packing;
  const Layout layout = layout_of(plan, kBackward, pass.compute_type);
  char* const words = static_cast<char*>(exchange) + layout.packed_bytes(pass.D);

  PackArguments packing = {};
  for (int d = 0; d < pass.D; ++d) packing.weight_hh[d] = pass.weight_hh[d];
  packing.H = pass.H;
  packing.D = pass.D;
  packing.layout = layout;
  packing.packed = static_cast<uint4*>(exchange);
  launch<Packing>({plan.blocks * layout.warps, plan.turns, pass.D, Packing::kThreads, 0, false, false},
                  packing, stream);
  const int64_t all_words = layout.words_of_tile() * pass.D * plan.batch_tiles;
  if (all_words > 0) clear(words, 8 * all_words, stream);

  typename Kernel::Arguments arguments = {};
  arguments.pass = pass;
  arguments.layout = layout;
  arguments.packed = packing.packed;
  arguments.tiles.words = all_words > 0 ? reinterpret_cast<uint64_t*>(words) : nullptr;
  arguments.tiles.words_of_tile = static_cast<int>(layout.words_of_tile());
  arguments.tiles.count = plan.batch_tiles;
  LaunchShape shape = {};
  shape.x = plan.blocks;
  shape.z = pass.D;
  shape.threads = plan.threads;
  shape.shared_bytes = plan.shared_bytes;
  shape.cluster = layout.cluster;
  shape.cooperative = layout.grid || layout.stream;
  for (int first = 0; first < plan.batch_tiles; first += plan.tiles_at_once) {
    arguments.tiles.first = first;
    shape.y = std::min(plan.tiles_at_once, plan.batch_tiles - first);
    launch<Kernel>(shape, arguments, stream);
  }
}

// A pass of an algorithm, for the file that compiles it.
#define CNNLSTM_COMPILE_ALGORITHM(algorithm, backward)                                           \
  template <>                                                                                    \
  void run_algorithm<algorithm, backward>(const PassOf<backward>& pass, const CnnlstmPlan& plan, \
                                          void* exchange, void* stream) {                        \
    with_kernel<algorithm, backward>(pass.compute_type, plan, [&](auto chosen) {                 \
      launch_tiles<decltype(chosen), backward>(pass, plan, exchange, stream);                    \
    });                                                                                          \
  }                                                                                              \
  template <>                                                                                    \
  int registers_of_algorithm<algorithm, backward>(int compute_type, const CnnlstmPlan& plan) {   \
    int found = 0;                                                                               \
    with_kernel<algorithm, backward>(compute_type, plan, [&](auto chosen) {                      \
      found = registers_of<typename decltype(chosen)::Kernel>();                                 \
    });                                                                                          \
    return found;                                                                                \
  }

}  // namespace cnnlstm
