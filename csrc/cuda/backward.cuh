// The recurrence of one layer, backward, both directions in one launch: the mirror image of forward.cuh.
//
// dh of step s takes W_hh^T times the gate gradients of step s+1, so a row of the tile holds 4H values, the
// four gates of a unit beside each other, and the rows of the product are units: 16 at once, two groups. A
// warp computes its part of the sum over k for both groups, and owns the cells of one of them, so that cells
// lie where they lie in the forward pass.
#pragma once

#include "cuda/cell.cuh"
#include "cuda/exchange.cuh"
#include "cuda/fragments.h"
#include "cuda/launch.h"
#include "cuda/pack.cuh"
#include "cuda/product.cuh"
#include "cuda/rows.cuh"

namespace cnnlstm {

struct BackwardArguments {
  CnnlstmBackward pass;
  Layout layout;
  const uint4* packed;  // pack.cuh
  Tiles tiles;
};

template <class T, class F>
void each_array_of(const CnnlstmBackward& pass, F f) {
  each_array_of_rows(pass.rows, f);
  for (int d = 0; d < pass.D; ++d) f(static_cast<const T*>(pass.weight_hh[d]), 4 * pass.H * pass.H);
  const int64_t states = pass.D * pass.rows.B * pass.H, all = pass.D * pass.rows.N * pass.H;
  for (const void* rows : {pass.cells, pass.grad_output, pass.grad_cells})
    f(static_cast<const T*>(rows), all);
  for (const void* state : {pass.c0, pass.grad_h_n, pass.grad_c_n}) f(static_cast<const T*>(state), states);
  f(static_cast<T*>(pass.grad_h0), states);
  f(static_cast<T*>(pass.grad_c0), states);
  f(static_cast<const T*>(pass.gates), 4 * all);
  f(static_cast<T*>(pass.gate_gradients), 4 * all);
}

// What a step's cell needs of the forward pass's results, and the gradient of its output.
template <class T>
struct StepBack {
  Quad<T> gates;
  T c, c_prev, d_output;
};

// A sequence's cells of a unit in one direction.
template <class T>
class BackwardRows {
 public:
  CNNLSTM_DEVICE BackwardRows(const CnnlstmBackward& pass, int direction, int unit)
      : pass_(pass), direction_(direction), unit_(unit) {}

  CNNLSTM_DEVICE int64_t state(int sequence) const {
    return (int64_t{direction_} * pass_.rows.B + sequence) * pass_.H + unit_;
  }

  // An active step at `row`; `row_prev` is that of the step before where it is active, too, else below 0.
  CNNLSTM_DEVICE StepBack<T> load(int64_t row, int64_t row_prev, int sequence) const {
    const int64_t at = (direction_ * pass_.rows.N + row) * pass_.H + unit_;
    const T* const cells = static_cast<const T*>(pass_.cells);
    StepBack<T> found;
    found.gates = device::load(static_cast<const Quad<T>*>(pass_.gates) + at);
    found.c = device::load(cells + at);
    found.c_prev = row_prev >= 0
                       ? device::load(cells + (direction_ * pass_.rows.N + row_prev) * pass_.H + unit_)
                       : device::load(static_cast<const T*>(pass_.c0) + state(sequence));
    const int64_t of_output = (row * pass_.D + direction_) * pass_.H + unit_;
    found.d_output = optional(pass_.grad_output, of_output);
    return found;
  }

  // The gradient of the cell states themselves, which is rarely used: the load is not prefetched.
  CNNLSTM_DEVICE float of_cells(int64_t row) const {
    return device::to_float(optional(pass_.grad_cells, (direction_ * pass_.rows.N + row) * pass_.H + unit_));
  }

  CNNLSTM_DEVICE T optional(const void* values, int64_t at) const {
    return values == nullptr ? device::from_float<T>(0) : device::load(static_cast<const T*>(values) + at);
  }

  CNNLSTM_DEVICE void store(int64_t row, const Quad<T>& gradients) const {
    const int64_t at = (row * pass_.D + direction_) * pass_.H + unit_;
    device::store(static_cast<Quad<T>*>(pass_.gate_gradients) + at, gradients);
  }

 private:
  const CnnlstmBackward& pass_;
  const int direction_, unit_;
};

// The gradients of the gates before their activation in an active step, and in dc that of the c that entered.
template <class ComputeType>
CNNLSTM_DEVICE Quad<typename ComputeType::Stored> retreat(const StepBack<typename ComputeType::Stored>& step,
                                                          bool kept, float dh, float& dc) {
  using device::to_float;
  const typename Cell<ComputeType>::Gradients d = Cell<ComputeType>::backward(
      to_float(step.gates.value[0]), to_float(step.gates.value[1]), to_float(step.gates.value[2]),
      to_float(step.gates.value[3]), to_float(step.c), kept ? to_float(step.c_prev) : 0,
      dh + to_float(step.d_output), dc);
  dc = kept ? d.c_prev : 0;
  return quad<typename ComputeType::Stored>(d.i, d.f, d.g, d.o);
}

template <class ComputeType_, int kAlgorithm, int kTiles, bool kSplit>
struct Backward {
  using ComputeType = ComputeType_;
  using T = typename ComputeType::Stored;
  using Arguments = BackwardArguments;
  static constexpr int kThreads = most_threads<ComputeType>(kAlgorithm, kTiles);
  static constexpr bool kCluster = kAlgorithm == CNNLSTM_PERSISTENT_CLUSTER;
  static constexpr int kOwned = kSplit ? 1 : 2;   // cells of an owner lane
  static constexpr int kOwners = kSplit ? 2 : 1;  // warps of a group that have cells

  using WarpProduct = Product<ComputeType, 2, 2 * kTiles>;

  template <class F>
  static void each_array(const Arguments& arguments, F f) {
    each_array_of<T>(arguments.pass, f);
    each_array_of_launch(arguments, f);
  }

  CNNLSTM_DEVICE static void run(const Arguments& arguments) {
    const CnnlstmBackward& pass = arguments.pass;
    const Layout& layout = arguments.layout;
    const int H = static_cast<int>(pass.H), direction = device::block_z();
    const int tile = arguments.tiles.tile();
    const int lane = device::thread() % 32, warp = device::thread() / 32;
    const int group = warp % layout.groups, part = warp / layout.groups;
    const int half = group % 2, parts = 2 * layout.splits;  // of two groups: the one whose cells the warp has
    const int unit = (device::block_x() * layout.groups + group) * kGroup + place_in_d(lane, 0).row;
    const bool owner = part < kOwners;
    const int own_part = 2 * part + half;

    constexpr int kPartBytes = 2 * kTiles * kPiece;
    Exchange<kAlgorithm, 4 * sizeof(T), kSplit> exchange(layout, arguments.tiles, unit, part);

    exchange.clear_tiles();

    // The lane's own cells.
    const Rows rows(pass.rows, direction);
    int length[kOwned];  // below 0 where there is no cell
    // Gradients of the states; where `takes`, dh comes out of the next product.
    float dh[kOwned], dc[kOwned];
    bool takes[kOwned];
    const auto column = [&](int j) { return column_of(device::anew(lane), kSplit, part, j); };
    const auto sequence = [&](int j) { return tile * kSequences + column(j); };
    CNNLSTM_UNROLL
    for (int j = 0; j < kOwned; ++j) {
      const bool exists = owner && unit < H && sequence(j) < rows.B;
      length[j] = exists ? rows.length(sequence(j)) : -1;
      takes[j] = false;
      const BackwardRows<T> own(pass, direction, unit);
      dh[j] = exists ? device::to_float(own.optional(pass.grad_h_n, own.state(sequence(j)))) : 0;
      dc[j] = exists ? device::to_float(own.optional(pass.grad_c_n, own.state(sequence(j)))) : 0;
    }
    // What a step needs is loaded while the product before it is made.
    StepBack<T> step[kOwned];
    const auto ask = [&](int s) {
      const BackwardRows<T> own(pass, device::anew(direction), device::anew(unit));
      const int first = rows.first(s), first_prev = rows.first(s - 1);
      CNNLSTM_UNROLL
      for (int j = 0; j < kOwned; ++j) {
        const bool goes_back = rows.active(s - 1, length[j]);
        if (rows.active(s, length[j]))
          step[j] = own.load(first + sequence(j), goes_back ? first_prev + sequence(j) : -1, sequence(j));
      }
    };
    ask(rows.T - 1);

    WarpProduct product;
    product.load(arguments.packed + packed_at(layout, direction, device::block_x(), warp, lane));

    exchange.start();
    const auto of_part = [&](int p, int v) {
      float* const partial = reinterpret_cast<float*>(device::shared_memory() + layout.partial_at);
      return partial + ((group / 2 * parts + p) * 4 + v) * 32 + lane;
    };
    // Tile n holds the gate gradients of the step that comes before the n-th here, tile 0 zeros; h0 comes
    // after the last step.
    CNNLSTM_NO_UNROLL
    for (int n = 0; n <= rows.T; ++n) {
      const int s = rows.T - 1 - n;
      exchange.receive(n);
      float sums[4] = {};
      product.multiply(lane, exchange.row(n, 0) + own_part * kPartBytes, layout.row_bytes, sums);
      CNNLSTM_UNROLL
      for (int v = 0; v < 4; ++v) device::store_shared(of_part(device::anew(own_part), v), sums[v]);
      device::block_barrier();
      CNNLSTM_UNROLL
      for (int j = 0; j < kOwned; ++j) {
        if (!takes[j]) continue;
        const int v = device::anew(2 * half + (kSplit ? part : j));
        float sum = 0;
        CNNLSTM_NO_UNROLL
        for (int p = 0; p < parts; ++p) sum += device::load_shared(of_part(p, v));
        dh[j] = sum;
      }
      if (n == rows.T) break;

      if (owner) {
        Quad<T> gradients[kOwned];
        CNNLSTM_UNROLL
        for (int j = 0; j < kOwned; ++j) {
          const bool active = rows.active(s, length[j]), kept = rows.kept(s, sequence(j), active);
          gradients[j] = quad<T>(0, 0, 0, 0);
          if (active) {
            const BackwardRows<T> own(pass, device::anew(direction), device::anew(unit));
            if (pass.grad_cells != nullptr) dc[j] += own.of_cells(rows.first(s) + sequence(j));
            gradients[j] = retreat<ComputeType>(step[j], kept, dh[j], dc[j]);
            dh[j] = 0;
          }
          takes[j] = kept;
          Quad<T> factors;
          CNNLSTM_UNROLL
          for (int gate = 0; gate < 4; ++gate)
            factors.value[gate] = ComputeType::factor(gradients[j].value[gate]);
          exchange.put(n + 1, column(j), unit, factors);
        }
        exchange.publish(n + 1);
        const int first = rows.first(s);
        const BackwardRows<T> own(pass, device::anew(direction), device::anew(unit));
        CNNLSTM_UNROLL
        for (int j = 0; j < kOwned; ++j) {
          if (rows.active(s, length[j]) || (rows.padded() && length[j] >= 0))
            own.store(first + sequence(j), gradients[j]);
        }
        ask(s - 1);
      }
    }

    CNNLSTM_UNROLL
    for (int j = 0; j < kOwned; ++j) {
      if (length[j] < 0) continue;
      const int64_t at =
          BackwardRows<T>(pass, device::anew(direction), device::anew(unit)).state(sequence(j));
      device::store(static_cast<T*>(pass.grad_h0) + at, device::from_float<T>(dh[j]));
      device::store(static_cast<T*>(pass.grad_c0) + at, device::from_float<T>(dc[j]));
    }
  }
};

}  // namespace cnnlstm
