// How a layer is partitioned among the threads of a team, and the allocation of its scratch memory.
#pragma once

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/kernels.h"
#include "cpu/panels.h"
#include "cpu/threads.h"

namespace cnnlstm {
namespace {

// Allocates 64-byte aligned pieces one after the other; with base == nullptr it only counts their bytes.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += ceil_div(count * int64_t(sizeof(T)), 64) * 64;
    return piece;
  }

  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// The part of one direction that one thread computes. Either the sequences are split (each thread runs all
// steps without a barrier and reads all weights) or the units are (a thread's weights stay in its cache, and
// a barrier ends each step).
struct ThreadPartition {
  int rank;
  int size;
  bool split_rows;
  int64_t row_begin, row_end;
  Barrier* barrier;

  void wait() const { barrier->wait(size); }

  // Between two steps: threads read each other's part of h only where the units are split.
  void wait_step() const {
    if (!split_rows) barrier->wait(size);
  }

  int64_t begin(int64_t n) const { return n * rank / size; }
  int64_t end(int64_t n) const { return n * (rank + 1) / size; }

  // Of n panels of outputs, the range that this thread computes at every step.
  int64_t panel_begin(int64_t n) const { return split_rows ? 0 : begin(n); }
  int64_t panel_end(int64_t n) const { return split_rows ? n : end(n); }
};

// The index r for which the sequences before r have about part / parts of all active rows.
inline int64_t row_boundary(const Sequences& seq, int64_t part, int64_t parts) {
  if (part == 0) return 0;
  if (part == parts) return seq.B;
  int64_t total = 0;
  for (int64_t t = 0; t < seq.T; ++t) total += seq.active[t];
  int64_t before = 0, r = 0;
  for (int64_t t = seq.T; r < seq.B; ++r) {
    while (t > 0 && seq.active[t - 1] <= r) --t;  // t is now the length of the r-th sequence
    before += t;
    if (before * parts > total * part) break;
  }
  return r;
}

// To split the rows, each thread needs enough of them for full tiles, and an L2 that holds all weights.
inline int64_t most_threads_by_rows(const Sequences& seq, int64_t weight_bytes) {
  return weight_bytes <= weight_cache_bytes() ? seq.B / (2 * kTileRows) : 1;
}

inline ThreadPartition make_partition(const Sequences& seq, int64_t weight_bytes, int rank, int size,
                                      Barrier* barrier) {
  const bool split_rows = size > 1 && size <= most_threads_by_rows(seq, weight_bytes);
  ThreadPartition partition{rank, size, split_rows, 0, seq.B, barrier};
  if (split_rows) {
    partition.row_begin = row_boundary(seq, rank, size);
    partition.row_end = row_boundary(seq, rank + 1, size);
  }
  return partition;
}

// Runs body(layer, direction index, partition) for each direction, both directions at the same time if there
// are enough threads. A direction has `panels` panels of outputs: more threads than that, or than can split
// its rows, would only wait.
template <class Layer, class Body>
void run_partitioned(const Layer& layer, int64_t panels, int64_t weight_bytes, Body body) {
  struct Context {
    const Layer& layer;
    int64_t weight_bytes;
    Body body;
    // Otherwise one direction runs after the other: more threads share the weights of each.
    bool together;
    Barrier barriers[2];
  } context{layer, weight_bytes, body, layer.D == 2 && weight_bytes <= weight_cache_bytes(), {}};
  const int64_t useful = std::max(panels, most_threads_by_rows(layer.seq, weight_bytes));
  run_team(
      int(std::min<int64_t>(layer.threads, context.together ? 2 * useful : useful)),
      [](void* pointer, int rank, int size) {
        Context& c = *static_cast<Context*>(pointer);
        const auto run = [&](int d, int rank, int size) {
          c.body(c.layer, d, make_partition(c.layer.seq, c.weight_bytes, rank, size, &c.barriers[d]));
        };
        if (c.layer.D == 1) return run(0, rank, size);
        if (size == 1 || !c.together) return run(0, rank, size), run(1, rank, size);
        const int first = (size + 1) / 2;
        return rank < first ? run(0, rank, first) : run(1, rank - first, size - first);
      },
      &context);
}

// Whether sequence r is reset before step t.
inline bool is_reset(const Sequences& seq, int64_t t, int64_t r) {
  return seq.reset != nullptr && seq.reset[seq.rows.step[t] + seq.rows.row[r]] != 0;
}

// Whether sequence r, active at t, has another step after t in the direction's order of time.
inline bool has_next(const Sequences& seq, bool reverse, int64_t t, int64_t r) {
  return reverse ? t > 0 : r < seq.active[t + 1];
}

inline int64_t length(const Sequences& seq, int64_t r) {
  int64_t t = 0;
  while (t < seq.T && seq.active[t] > r) ++t;
  return t;
}

template <class T>
inline const T* row(const void* matrix, int64_t index, int64_t width) {
  return static_cast<const T*>(matrix) + index * width;
}

template <class T>
inline T* row(void* matrix, int64_t index, int64_t width) {
  return static_cast<T*>(matrix) + index * width;
}

inline int64_t at(const RowMap& map, int64_t t, int64_t r) { return map.step[t] + map.row[r]; }

}  // namespace
}  // namespace cnnlstm
