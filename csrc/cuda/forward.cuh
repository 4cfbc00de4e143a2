// The recurrence of one layer, forward, both directions in one launch.
//
// Blocks (unit block, batch tile, direction). A warp computes the four gates of a group of 8 units for the 8
// sequences of its tile, or its part of their sum over k; the lanes of the first one or two warps of a group
// then own the cells (fragments.h) and keep their c and h in registers for the whole sequence.
#pragma once

#include "cuda/cell.cuh"
#include "cuda/exchange.cuh"
#include "cuda/fragments.h"
#include "cuda/launch.h"
#include "cuda/pack.cuh"
#include "cuda/product.cuh"
#include "cuda/rows.cuh"

namespace cnnlstm {

// The results of a step. Addresses are recomputed at each store, because a kernel that holds its weights has
// few registers to spare.
template <class ComputeType>
class ForwardResults {
  using T = typename ComputeType::Stored;

 public:
  CNNLSTM_DEVICE ForwardResults(const CnnlstmForward& pass, int direction)
      : pass_(pass), direction_(direction) {}

  // Zeros where the sequence does not run.
  CNNLSTM_DEVICE void store(int64_t row, int unit, bool runs, const typename Cell<ComputeType>::State& now,
                            T h) const {
    const int64_t of_output = (row * pass_.D + direction_) * pass_.H + unit;
    device::store(static_cast<T*>(pass_.output) + of_output, runs ? h : device::from_float<T>(0));
    const int64_t at = (direction_ * pass_.rows.N + row) * pass_.H + unit;
    if (pass_.cells != nullptr)
      device::store(static_cast<T*>(pass_.cells) + at, device::from_float<T>(runs ? now.c : 0));
    if (pass_.gates != nullptr)
      device::store(static_cast<Quad<T>*>(pass_.gates) + at,
                    runs ? quad<T>(now.i, now.f, now.g, now.o) : quad<T>(0, 0, 0, 0));
  }

 private:
  const CnnlstmForward& pass_;
  const int direction_;
};

// Both biases of a unit's gates, summed up; zero where there are none.
template <class T>
CNNLSTM_DEVICE float4 load_bias(const CnnlstmForward& pass, int direction, int unit) {
  float bias[4] = {};
  if (pass.bias_ih[direction] != nullptr && unit < pass.H) {
    CNNLSTM_UNROLL
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t at = gate * pass.H + unit;
      bias[gate] = device::to_float(device::load(static_cast<const T*>(pass.bias_ih[direction]) + at)) +
                   device::to_float(device::load(static_cast<const T*>(pass.bias_hh[direction]) + at));
    }
  }
  return make_float4(bias[0], bias[1], bias[2], bias[3]);
}

template <class T>
CNNLSTM_DEVICE float load_cell(const void* cells, bool is_float, int64_t at) {
  if (is_float) return device::load(static_cast<const float*>(cells) + at);
  return device::to_float(device::load(static_cast<const T*>(cells) + at));
}

template <class T>
CNNLSTM_DEVICE void store_cell(void* cells, bool is_float, int64_t at, float c) {
  if (is_float) {
    device::store(static_cast<float*>(cells) + at, c);
  } else {
    device::store(static_cast<T*>(cells) + at, device::from_float<T>(c));
  }
}

struct ForwardArguments {
  CnnlstmForward pass;
  Layout layout;
  const uint4* packed;  // pack.cuh
  Tiles tiles;
};

template <class T, class F>
void each_array_of(const CnnlstmForward& pass, F f) {
  each_array_of_rows(pass.rows, f);
  for (int d = 0; d < pass.D; ++d) {
    f(pass.gate_inputs[d], (pass.gate_inputs_rows[d] - 1) * pass.gate_inputs_stride + 4 * pass.H);
    f(static_cast<const T*>(pass.weight_hh[d]), 4 * pass.H * pass.H);
    f(static_cast<const T*>(pass.bias_ih[d]), 4 * pass.H);
    f(static_cast<const T*>(pass.bias_hh[d]), 4 * pass.H);
  }
  const int64_t states = pass.D * pass.rows.B * pass.H, all = pass.D * pass.rows.N * pass.H;
  f(static_cast<const T*>(pass.h_in), states);
  f(static_cast<T*>(pass.h_out), states);
  f(static_cast<const char*>(pass.c_in), states * (pass.c_in_float ? 4 : int64_t{sizeof(T)}));
  f(static_cast<char*>(pass.c_out), states * (pass.c_out_float ? 4 : int64_t{sizeof(T)}));
  f(static_cast<T*>(pass.output), all);
  f(static_cast<T*>(pass.cells), all);
  f(static_cast<T*>(pass.gates), 4 * all);
}

template <class ComputeType_, int kAlgorithm, int kTiles, bool kSplit>
struct Forward {
  using ComputeType = ComputeType_;
  using T = typename ComputeType::Stored;
  using Arguments = ForwardArguments;
  static constexpr int kThreads = most_threads<ComputeType>(kAlgorithm, kTiles);
  static constexpr bool kCluster = kAlgorithm == CNNLSTM_PERSISTENT_CLUSTER;
  static constexpr int kOwned = kSplit ? 1 : 2;   // cells of an owner lane
  static constexpr int kOwners = kSplit ? 2 : 1;  // warps of a group that have cells

  using WarpProduct = Product<ComputeType, 4, kTiles>;

  template <class F>
  static void each_array(const Arguments& arguments, F f) {
    each_array_of<T>(arguments.pass, f);
    each_array_of_launch(arguments, f);
  }

  CNNLSTM_DEVICE static void run(const Arguments& arguments) {
    const CnnlstmForward& pass = arguments.pass;
    const Layout& layout = arguments.layout;
    const int H = static_cast<int>(pass.H), direction = device::block_z();
    const int tile = arguments.tiles.tile();
    const int lane = device::thread() % 32, warp = device::thread() / 32;
    const int group = warp % layout.groups, part = warp / layout.groups;
    const int unit = (device::block_x() * layout.groups + group) * kGroup + place_in_d(lane, 0).row;
    const bool owner = part < kOwners;

    constexpr int kPartBytes = kTiles * kPiece;
    Exchange<kAlgorithm, sizeof(T), kSplit> exchange(layout, arguments.tiles, unit, part);

    exchange.clear_tiles();
    device::block_barrier();
    const int64_t states = (int64_t{direction} * pass.rows.B + tile * kSequences) * H;
    const int left = static_cast<int>(pass.rows.B) - tile * kSequences,
              here = left < kSequences ? left : kSequences;
    CNNLSTM_NO_UNROLL
    for (int i = device::thread(); i < here * H; i += device::threads()) {
      const T h = device::load(static_cast<const T*>(pass.h_in) + states + i);
      device::store_shared(reinterpret_cast<T*>(exchange.row(0, i / H)) + i % H, ComputeType::factor(h));
    }

    // The lane's own cells.
    const Rows rows(pass.rows, direction);
    const int begin = static_cast<int>(pass.begin), end = static_cast<int>(pass.end);
    int length[kOwned];  // below 0 where there is no cell
    float c[kOwned];
    T h[kOwned];
    const auto column = [&](int j) { return column_of(device::anew(lane), kSplit, part, j); };
    const auto sequence = [&](int j) { return tile * kSequences + column(j); };
    CNNLSTM_UNROLL
    for (int j = 0; j < kOwned; ++j) {
      const bool exists = owner && unit < H && sequence(j) < rows.B;
      length[j] = exists ? rows.length(sequence(j)) : -1;
      const int64_t at = (int64_t{direction} * rows.B + sequence(j)) * H + unit;
      c[j] = exists ? load_cell<T>(pass.c_in, pass.c_in_float, at) : 0;
      h[j] = exists ? device::load(static_cast<const T*>(pass.h_in) + at) : device::from_float<T>(0);
    }
    const auto bias = [&] {
      float4* const biases = reinterpret_cast<float4*>(device::shared_memory() + layout.bias_at);
      return biases + device::anew(group) * kGroup + place_in_d(lane, 0).row;
    };
    if (part == 0 && lane % 4 == 0) device::store_shared(bias(), load_bias<T>(pass, direction, unit));

    // Gate inputs are loaded kStages steps ahead of their use, by each lane for itself: no barrier is needed.
    char* const ring = device::shared_memory() + layout.ring_at;
    const auto place = [&](int n, int j) {
      const int owners = 32 * layout.groups * kOwners;
      return reinterpret_cast<float4*>(ring) + ((n % kStages) * kOwned + j) * owners +
             device::anew(device::thread());
    };
    const auto ask = [&](int n) {
      const int first = rows.first(begin + n);
      CNNLSTM_UNROLL
      for (int j = 0; j < kOwned; ++j) {
        if (length[j] < 0) continue;
        const bool active = begin + n < end && rows.active(begin + n, length[j]);
        const int d = device::anew(direction);
        const int64_t row = active ? first + sequence(j) - pass.first_row[d] : 0;
        const float* const from =
            pass.gate_inputs[d] + row * pass.gate_inputs_stride + 4 * device::anew(unit);
        device::copy_async(place(n, j), from, active);
      }
      device::copy_commit();
    };
    CNNLSTM_NO_UNROLL
    for (int n = 0; n < kStages; ++n) ask(n);

    WarpProduct product;
    product.load(arguments.packed + packed_at(layout, direction, device::block_x(), warp, lane));

    exchange.start();
    CNNLSTM_NO_UNROLL
    for (int n = 0; n < end - begin; ++n) {
      const int s = begin + n;
      exchange.receive(n);
      bool active[kOwned], kept[kOwned];
      CNNLSTM_UNROLL
      for (int j = 0; j < kOwned; ++j) {
        active[j] = rows.active(s, length[j]);
        kept[j] = rows.kept(s, sequence(j), active[j]);
      }
      float sums[8] = {};
      product.multiply(lane, exchange.row(n, 0) + part * kPartBytes, layout.row_bytes, sums);
      if constexpr (kSplit) {
        // the lane's place among those of its group's warps, 8 sums each
        const auto of_part = [&](int p, int v) {
          float* const partial = reinterpret_cast<float*>(device::shared_memory() + layout.partial_at);
          return partial + ((p * layout.groups + group) * 8 + v) * 32 + lane;
        };
        CNNLSTM_UNROLL
        for (int v = 0; v < 8; ++v) device::store_shared(of_part(device::anew(part), v), sums[v]);
        device::block_barrier();
        if (owner) {
          CNNLSTM_UNROLL
          for (int gate = 0; gate < 4; ++gate) sums[sum_of(gate, 0)] = 0;
          CNNLSTM_NO_UNROLL
          for (int p = 0; p < layout.splits; ++p) {
            CNNLSTM_UNROLL
            for (int gate = 0; gate < 4; ++gate)
              sums[sum_of(gate, 0)] += device::load_shared(of_part(p, sum_of(gate, part)));
          }
        }
      }

      if (owner) {
        device::copy_wait<kStages - 1>();
        const float4 b = device::load_shared(bias());
        typename Cell<ComputeType>::State now[kOwned];
        CNNLSTM_UNROLL
        for (int j = 0; j < kOwned; ++j) {
          float a[4] = {b.x, b.y, b.z, b.w};
          if (length[j] >= 0) {
            const float4 x = device::load_shared(place(n, j));
            a[0] += x.x, a[1] += x.y, a[2] += x.z, a[3] += x.w;
          }
          CNNLSTM_UNROLL
          for (int gate = 0; gate < 4; ++gate) a[gate] += kept[j] ? sums[sum_of(gate, j)] : 0;
          now[j] = Cell<ComputeType>::forward(a[0], a[1], a[2], a[3], kept[j] ? c[j] : 0);
          if (active[j]) {
            c[j] = now[j].c;
            h[j] = device::from_float<T>(now[j].h);
          }
        }
        if (s + 1 < end) {
          CNNLSTM_UNROLL
          for (int j = 0; j < kOwned; ++j) exchange.put(n + 1, column(j), unit, ComputeType::factor(h[j]));
          exchange.publish(n + 1);
        }
        const int first = rows.first(s);
        const ForwardResults<ComputeType> results(pass, device::anew(direction));
        CNNLSTM_UNROLL
        for (int j = 0; j < kOwned; ++j) {
          if (length[j] >= 0 && (active[j] || rows.padded()))
            results.store(first + sequence(j), device::anew(unit), active[j], now[j], h[j]);
        }
      }
      ask(n + kStages);  // into the place of n, which no other lane reads
    }

    CNNLSTM_UNROLL
    for (int j = 0; j < kOwned; ++j) {
      if (length[j] < 0) continue;
      const int64_t at = (int64_t{device::anew(direction)} * rows.B + sequence(j)) * H + unit;
      device::store(static_cast<T*>(pass.h_out) + at, h[j]);
      store_cell<T>(pass.c_out, pass.c_out_float, at, c[j]);
    }
  }
};

}  // namespace cnnlstm
