// From a plan to the launches of one way. Each pass of a way is a translation unit of its own
// (recurrence_block.cu
// ...), for they take long to compile.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/backward.cuh"
#include "cuda/forward.cuh"
#include "cuda/recurrence.h"
#ifdef __CUDACC__
#include "cuda/launch.cuh"
#endif

namespace cnnlstm {

template <int kWay>
void run_way(const CnnlstmForward& pass, const CnnlstmPlan& plan, void* exchange, void* stream);
template <int kWay>
void run_way(const CnnlstmBackward& pass, const CnnlstmPlan& plan, void* exchange, void* stream);

// Calls f with the kind of numbers as a type.
template <class F>
void with_number(int number, F f) {
  switch (number) {
    case CNNLSTM_FLOAT32:
      return f(Exact());
    case CNNLSTM_TF32:
      return f(Tf32());
    case CNNLSTM_BFLOAT16:
      return f(Bf16());
    case CNNLSTM_FLOAT16:
      return f(Fp16());
  }
  throw std::runtime_error("number: expected one of CnnlstmNumber, got " + std::to_string(number));
}

// The launches of a pass: packed weights, then batch tiles in as many goes as the plan wants.
template <class Kernel, bool kBackward, int kTiles, class Pass>
void launch_tiles(const Pass& pass, const CnnlstmPlan& plan, void* exchange, void* stream) {
  const Layout layout = layout_of(plan, kBackward, pass.number);
  char* const words = static_cast<char*>(exchange) + layout.packed_bytes(pass.D);

  using Packing = Pack<typename Kernel::Number, kBackward, kTiles>;
  PackArguments packing = {};
  for (int d = 0; d < pass.D; ++d) packing.weight_hh[d] = pass.weight_hh[d];
  packing.H = pass.H;
  packing.D = pass.D;
  packing.layout = layout;
  packing.packed = static_cast<uint4*>(exchange);
  launch<Packing>({plan.blocks * layout.warps, 1, pass.D, Packing::kThreads, 0, false, false}, packing,
                  stream);
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
  shape.cooperative = layout.grid;
  for (int first = 0; first < plan.batch_tiles; first += plan.tiles_at_once) {
    arguments.tiles.first = first;
    shape.y = std::min(plan.tiles_at_once, plan.batch_tiles - first);
    launch<Kernel>(shape, arguments, stream);
  }
}

// A pass of a way, for the file that compiles it.
#define CNNLSTM_COMPILE_WAY(way, Pass, Kernel, backward)                                                  \
  template <>                                                                                             \
  void run_way<way>(const Pass& pass, const CnnlstmPlan& plan, void* exchange, void* stream) {            \
    with_number(pass.number, [&](auto number) {                                                           \
      using Number = decltype(number);                                                                    \
      constexpr bool kSplit = way != CNNLSTM_BLOCK;                                                       \
      if constexpr (!kSplit) {                                                                            \
        if (plan.tiles == 4)                                                                              \
          return launch_tiles<Kernel<Number, way, 4, kSplit>, backward, 4>(pass, plan, exchange, stream); \
      }                                                                                                   \
      launch_tiles<Kernel<Number, way, 8, kSplit>, backward, 8>(pass, plan, exchange, stream);            \
    });                                                                                                   \
  }

}  // namespace cnnlstm
