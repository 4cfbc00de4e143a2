#include "cuda/plan.h"

#include <algorithm>
#include <climits>
#include <vector>

#include "cuda/arguments.h"
#include "cuda/layout.h"

namespace cnnlstm {
namespace {

constexpr int kMostTilesAtOnce = 65535;  // of a grid's second dimension
constexpr int kTiles = 8;                // where warps share a sum

int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }
int batch_tiles(int64_t B, int batch) { return static_cast<int>(ceil_div(B, batch * kSequences)); }
bool narrow(int compute_type) { return compute_type == CNNLSTM_BFLOAT16 || compute_type == CNNLSTM_FLOAT16; }

// A pass over one layer on a GPU.
struct Pass {
  const CnnlstmGpu& gpu;
  bool backward;
  int compute_type;
  int64_t H, B;
  int D;

  bool valid() const {
    constexpr int64_t kMost = INT_MAX - kSequences;
    return H >= 1 && H <= kMost && B >= 1 && B <= kMost && (D == 1 || D == 2) &&
           compute_type >= CNNLSTM_FLOAT32 && compute_type <= CNNLSTM_FLOAT16;
  }
  int64_t per_unit() const { return backward ? 4 : 1; }  // values of a unit in the product
  int most_warps() const { return most_threads(compute_type) / 32; }
  int64_t pieces() const {
    return ceil_div(H * element_bytes_of(compute_type), kPiece);
  }  // of a row of weights
};

// The blocks of these wait for each other: all have to run at once, one on each SM.
bool waits(int algorithm) { return algorithm == CNNLSTM_PERSISTENT_GRID || algorithm == CNNLSTM_STREAMING; }

// Returns whether it fits.
bool add(const Pass& pass, int algorithm, int64_t groups, int64_t splits, int tiles, int64_t turns,
         int64_t blocks, int batch, std::vector<CnnlstmPlan>& found) {
  if (pass.backward) groups = round_up(groups, 2);
  if (groups * splits > pass.most_warps()) return false;
  if (waits(algorithm) && blocks * pass.D > pass.gpu.multiprocessors) return false;
  CnnlstmPlan plan = {};
  plan.algorithm = algorithm;
  plan.groups = static_cast<int>(groups);
  plan.splits = static_cast<int>(splits);
  plan.tiles = tiles;
  plan.turns = static_cast<int>(turns);
  plan.blocks = static_cast<int>(blocks);
  plan.batch = batch;
  plan = plan_of(plan, pass.backward, pass.compute_type, pass.B, pass.D, pass.gpu.multiprocessors);
  if (plan.shared_bytes > pass.gpu.shared_bytes) return false;
  found.push_back(plan);
  return true;
}

// As many warps as these groups of a block may have, and the largest batch tile that gives them cells and
// fits.
void add_stream(const Pass& pass, int64_t of_block, std::vector<CnnlstmPlan>& found) {
  const int64_t groups = ceil_div(pass.H, kGroup), splits = pass.most_warps() / of_block;
  const int64_t turns = ceil_div(pass.pieces(), splits * kStreamTiles);
  int64_t batch = std::min<int64_t>({kMostBatch, splits / 2, batch_tiles(pass.B, 1)});
  while (batch > 0 && !add(pass, CNNLSTM_STREAMING, of_block, splits, kStreamTiles, turns,
                           ceil_div(groups, of_block), static_cast<int>(batch), found))
    --batch;
}

std::vector<CnnlstmPlan> fitting(const Pass& pass) {
  std::vector<CnnlstmPlan> found;
  const int64_t groups = ceil_div(pass.H, kGroup);
  const int64_t pieces = pass.pieces();
  if (pieces <= kTiles)
    add(pass, CNNLSTM_PERSISTENT_BLOCK, groups, 1, pieces <= kTiles / 2 ? kTiles / 2 : kTiles, 1, 1, 1,
        found);
  const int64_t splits = std::max<int64_t>(2, ceil_div(pieces, kTiles));
  if (pass.gpu.sm >= 90)
    for (int blocks = 2; blocks <= pass.gpu.largest_cluster; blocks *= 2)
      add(pass, CNNLSTM_PERSISTENT_CLUSTER, ceil_div(groups, blocks), splits, kTiles, 1, blocks, 1, found);
  const int least = pass.backward ? 2 : 1;  // groups of a block
  for (int64_t of_block = least; of_block < groups && of_block * splits <= pass.most_warps();
       of_block += least)
    add(pass, CNNLSTM_PERSISTENT_GRID, of_block, splits, kTiles, 1, ceil_div(groups, of_block), 1, found);
  for (int64_t of_block = least; of_block < groups && 2 * of_block <= pass.most_warps(); of_block += least)
    add_stream(pass, of_block, found);
  CnnlstmPlan step = {};
  step.algorithm = CNNLSTM_PER_STEP;
  step.batch = 1;
  step.batch_tiles = step.tiles_at_once = batch_tiles(pass.B, 1);
  found.push_back(step);
  return found;
}

// What a step of a plan has to do, in nanoseconds.
struct Work {
  double product, cells, exchange, rows;  // throughput of the parts of an SM
  double waiting;                         // latencies that are not hidden
  double issue;                           // time of the CPU
  int64_t rounds;                         // of as many tiles as run at once
};

double send_latency(const CnnlstmCosts& costs, int blocks) {
  return blocks <= 2 ? costs.send_2 : blocks <= 4 ? costs.send_4 : blocks <= 8 ? costs.send_8 : costs.send_16;
}

double piece_time(const CnnlstmCosts& costs, int compute_type) {
  return compute_type == CNNLSTM_FLOAT32 ? costs.piece_float32
         : compute_type == CNNLSTM_TF32  ? costs.piece_tf32
                                         : costs.piece_16;
}

// Special functions of a cell: sigmoid is tanh of a half in bfloat16, else 2^x and a reciprocal, like tanh
// (cell.cuh).
int special_functions(const Pass& pass) {
  const int each = pass.compute_type == CNNLSTM_BFLOAT16 ? 1 : 2;
  return each * (pass.backward ? 1 : 5);
}

// Bytes of global memory that a cell has in the rows of a call, at the least: forward gate inputs and h;
// backward gates, c and the gradients of the gates.
int row_bytes(const Pass& pass) {
  const int bytes = element_bytes_of(pass.compute_type);
  return pass.backward ? 9 * bytes : 4 * static_cast<int>(sizeof(float)) + bytes;
}

// What a step costs beside its parts, in cycles of an SM, fitted to the measured steps of an H100
// (docs/notes/cuda.md): latencies of addresses, partial sums and stores one after the other, and instructions
// of each warp that a scheduler has; a warp without others to share its sums with computes two cells a lane.
constexpr double kBlockCycles = 500, kClusterCycles = 800, kGridCycles = 2400, kSharedCycles = 350,
                 kOwnCycles = 700;
constexpr int kSchedulers = 4, kSpecialLanes = 16;  // of an SM

double serial(const Pass& pass, const CnnlstmPlan& plan) {
  const double cycle = kSpecialLanes * pass.gpu.costs.special;
  const bool block = plan.algorithm == CNNLSTM_PERSISTENT_BLOCK,
             cluster = plan.algorithm == CNNLSTM_PERSISTENT_CLUSTER;
  const int64_t warps = ceil_div(plan.groups * plan.splits, kSchedulers);
  return cycle * ((block     ? kBlockCycles
                   : cluster ? kClusterCycles
                             : kGridCycles) +
                  warps * (block ? kOwnCycles : kSharedCycles));
}

// Time until a block has so many words: each thread loads kWordsAtOnce at once, again and again.
double arrival(const CnnlstmCosts& costs, int64_t words, int threads) {
  constexpr int kWordsAtOnce = 4;
  return costs.word + (ceil_div(words, int64_t{kWordsAtOnce} * threads) - 1) * costs.word_turn;
}

Work persistent(const Pass& pass, const CnnlstmPlan& plan) {
  const CnnlstmCosts& costs = pass.gpu.costs;
  const Layout layout = layout_of(plan, pass.backward, pass.compute_type);
  const bool grid = plan.algorithm == CNNLSTM_PERSISTENT_GRID,
             cluster = plan.algorithm == CNNLSTM_PERSISTENT_CLUSTER;

  // Tiles that share an SM hide each other's latencies. An SM has 65536 registers. A thread takes 128, and
  // more where the weights of a float32 block need them.
  const int registers =
      plan.algorithm == CNNLSTM_PERSISTENT_BLOCK && plan.tiles == kTiles && !narrow(pass.compute_type) ? 152
                                                                                                       : 128;
  const int64_t resident =
      std::min<int64_t>(65536 / (registers * plan.threads), pass.gpu.shared_bytes / plan.shared_bytes);
  const int64_t room = grid ? 1 : std::max<int64_t>(1, resident);
  const int64_t beside = std::max<int64_t>(1, pass.gpu.multiprocessors / plan.blocks);  // on SMs of their own
  const int64_t all = int64_t{plan.batch_tiles} * pass.D;
  const int64_t sharing = std::min(room, ceil_div(all, beside));
  const int64_t rounds =
      grid ? ceil_div(plan.batch_tiles, plan.tiles_at_once) : ceil_div(all, beside * sharing);

  const int warps = plan.groups * plan.splits;
  const int64_t cells = int64_t{plan.groups} * kGroup * kSequences;
  const int64_t tile = layout.units * kSequences * pass.per_unit() * element_bytes_of(pass.compute_type);
  // Rows of b that each of the warp's products reads: a backward warp has half the rows of a, and twice the
  // pieces.
  const int64_t read = int64_t{warps} * plan.tiles * kPiece * kSequences * (pass.backward ? 2 : 1);

  const double busy = std::min<int64_t>(pass.gpu.multiprocessors, all * plan.blocks);
  const double l2 = std::min(costs.l2_sm, costs.l2 / busy);

  Work work = {};
  work.rounds = rounds;
  work.product =
      sharing * std::max(warps * 2 * plan.tiles * piece_time(costs, pass.compute_type), read / costs.shared);
  work.cells =
      sharing * (cells * special_functions(pass) * costs.special + 2 * layout.partial_bytes / costs.shared);
  work.rows = sharing * cells * row_bytes(pass) / l2;
  work.exchange = cluster ? sharing * tile / costs.cluster : grid ? 2 * tile / l2 : 0;
  work.waiting = plan.tiles / 2 * costs.piece_latency + costs.cell_latency + serial(pass, plan);
  if (layout.partial_bytes > 0) work.waiting += costs.block_barrier;
  work.waiting += cluster ? send_latency(costs, plan.blocks) : costs.block_barrier;
  if (grid) work.waiting += arrival(costs, layout.words_of_tile() / 2, plan.threads);
  return work;
}

// All SMs read all weights, one tile's words each, and wait in every turn for what they read.
Work streamed(const Pass& pass, const CnnlstmPlan& plan) {
  const CnnlstmCosts& costs = pass.gpu.costs;
  const Layout layout = layout_of(plan, pass.backward, pass.compute_type);
  const int64_t blocks = int64_t{plan.blocks} * pass.D * plan.tiles_at_once;
  const double l2 = std::min(costs.l2_sm, costs.l2 / blocks);
  const double packed = layout.packed_bytes(pass.D);
  const double memory = packed <= pass.gpu.l2_bytes ? l2 : std::min(l2, costs.memory / blocks);
  const int64_t sequences = std::min<int64_t>(pass.B, kSequences * plan.batch);
  const int64_t batch = ceil_div(sequences, kSequences);
  const double warp_pieces = 2.0 * layout.warps * plan.tiles * plan.turns * batch;
  const double read = warp_pieces / 2 * kPiece * kSequences * (pass.backward ? 2 : 1);
  const int64_t cells = int64_t{plan.groups} * kGroup * sequences;

  Work work = {};
  work.rounds = ceil_div(plan.batch_tiles, plan.tiles_at_once);
  work.product = std::max(warp_pieces * piece_time(costs, pass.compute_type), read / costs.shared);
  work.cells = cells * special_functions(pass) * costs.special + 2 * layout.partial_bytes / costs.shared;
  work.rows = cells * row_bytes(pass) / l2;
  work.exchange = packed / (plan.blocks * pass.D) / memory +
                  2.0 * sequences * layout.units * layout.per_unit * layout.element_bytes / l2;
  work.waiting =
      plan.turns * (costs.block_barrier + plan.tiles / 2 * costs.piece_latency) +
      arrival(costs, sequences * layout.units * layout.per_unit * layout.element_bytes / 4, plan.threads) +
      serial(pass, plan) + costs.cell_latency + costs.block_barrier;
  return work;
}

Work by_step(const Pass& pass) {
  const CnnlstmCosts& costs = pass.gpu.costs;
  const double weights = 4.0 * pass.H * pass.H * element_bytes_of(pass.compute_type) * pass.D;
  const double operations = 8.0 * pass.H * pass.H * pass.B * pass.D;
  // TF32 in a library's float32 products has a switch of its own, which is off by default.
  const double rate = narrow(pass.compute_type) ? costs.gemm_16 : costs.gemm_float32;
  const int sums = pass.backward ? 1 : 4;  // float32 values that the product writes for a cell
  const double cells = static_cast<double>(pass.B) * pass.H * pass.D;
  Work work = {};
  work.rounds = 1;
  work.product =
      std::max(operations / rate, weights / (weights <= pass.gpu.l2_bytes ? costs.l2 : costs.memory));
  work.cells = cells * special_functions(pass) * costs.special / pass.gpu.multiprocessors;
  work.rows = cells * row_bytes(pass) / costs.memory + cells * 8 * sums / costs.l2;
  work.waiting = (pass.D + 1) * costs.launch;  // a product for each direction, and the cells
  work.issue = (pass.D + 1) * costs.issue;
  return work;
}

Work work_of(const Pass& pass, const CnnlstmPlan& plan) {
  switch (plan.algorithm) {
    case CNNLSTM_PER_STEP:
      return by_step(pass);
    case CNNLSTM_STREAMING:
      return streamed(pass, plan);
    default:
      return persistent(pass, plan);
  }
}

// Rows are loaded and stored concurrently with everything else, which is sequential; the CPU runs ahead.
double seconds(const Work& work) {
  return 1e-9 * work.rounds *
         std::max({work.waiting + work.product + work.cells + work.exchange, work.rows, work.issue});
}

double floor_seconds(const Work& work) {
  return 1e-9 * work.rounds *
         std::max({work.waiting, work.product, work.cells, work.exchange, work.rows, work.issue});
}

}  // namespace

CnnlstmPlan plan_of(const CnnlstmPlan& split, bool backward, int compute_type, int64_t B, int D,
                    int multiprocessors) {
  CnnlstmPlan plan = split;
  plan.batch_tiles = batch_tiles(B, plan.batch);
  const int most = waits(plan.algorithm) ? multiprocessors / (plan.blocks * D) : kMostTilesAtOnce;
  plan.tiles_at_once = std::min({plan.batch_tiles, most, kMostTilesAtOnce});
  plan.threads = 32 * plan.groups * plan.splits;
  const Layout layout = layout_of(plan, backward, compute_type);
  plan.shared_bytes = layout.shared_bytes;
  plan.exchange_bytes = layout.exchange_bytes(D, plan.batch_tiles);
  return plan;
}

extern "C" int cnnlstm_plans(const CnnlstmGpu* gpu, int backward, int compute_type, int64_t H, int64_t B,
                             int D, CnnlstmPlan* plans, int capacity) {
  const Pass pass{*gpu, backward != 0, compute_type, H, B, D};
  if (!pass.valid()) return -1;
  const std::vector<CnnlstmPlan> found = fitting(pass);
  std::copy_n(found.begin(), std::min<size_t>(found.size(), std::max(capacity, 0)), plans);
  return static_cast<int>(found.size());
}

extern "C" int cnnlstm_plan(const CnnlstmGpu* gpu, int backward, int compute_type, int64_t H, int64_t B,
                            int D, CnnlstmPlan* plan) {
  const Pass pass{*gpu, backward != 0, compute_type, H, B, D};
  if (!pass.valid()) return -1;
  const std::vector<CnnlstmPlan> found = fitting(pass);
  // One block that holds all weights occupies one SM and waits for no other block: other plans have to be
  // expected to be a third faster.
  const auto weighed = [&](const CnnlstmPlan& candidate) {
    return seconds(work_of(pass, candidate)) * (candidate.algorithm == CNNLSTM_PERSISTENT_BLOCK ? 2 : 3);
  };
  *plan = *std::min_element(found.begin(), found.end(),
                            [&](const auto& a, const auto& b) { return weighed(a) < weighed(b); });
  return 0;
}

extern "C" double cnnlstm_step_seconds(const CnnlstmGpu* gpu, int backward, int compute_type, int64_t H,
                                       int64_t B, int D, const CnnlstmPlan* plan) {
  return seconds(work_of({*gpu, backward != 0, compute_type, H, B, D}, *plan));
}

extern "C" double cnnlstm_step_floor_seconds(const CnnlstmGpu* gpu, int backward, int compute_type, int64_t H,
                                             int64_t B, int D, const CnnlstmPlan* plan) {
  return floor_seconds(work_of({*gpu, backward != 0, compute_type, H, B, D}, *plan));
}

}  // namespace cnnlstm
