#include "cuda_emulator/warp.h"

#include <string.h>

#include <bit>
#include <utility>

#include "cuda_emulator/faults.h"
#include "cuda_emulator/numbers.h"

namespace cnnlstm::emulator {
namespace {

// m16n8k16 for 16-bit types and m16n8k8 for TF32; in the terms of the PTX ISA, group = lane >> 2 and member
// = lane % 4.
constexpr int kRows = 16, kColumns = 8;

template <int kDepth>
struct Matrices {
  float a[kRows][kDepth];
  float b[kDepth][kColumns];
};

template <class T>
struct Pair {
  float low, high;
  explicit Pair(uint32_t bits)
      : low(widen(T{static_cast<uint16_t>(bits)})), high(widen(T{static_cast<uint16_t>(bits >> 16)})) {}
};

template <class T>
void gather_halves(int lane, const ProductLane& from, Matrices<16>& to) {
  const int group = lane >> 2, member = lane % 4;
  for (int i = 0; i < 8; ++i) {  // a0 .. a7, two in a register
    const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
    const int column = member * 2 + (i & 1) + (i < 4 ? 0 : 8);
    const Pair<T> pair(from.a[i / 2]);
    to.a[row][column] = i & 1 ? pair.high : pair.low;
  }
  for (int i = 0; i < 4; ++i) {  // b0 .. b3
    const int row = member * 2 + (i & 1) + (i < 2 ? 0 : 8);
    const Pair<T> pair(from.b[i / 2]);
    to.b[row][group] = i & 1 ? pair.high : pair.low;
  }
}

// The tensor cores read the upper 19 bits.
float cut_tf32(uint32_t bits) { return std::bit_cast<float>(bits & ~0x1fffu); }

void gather_tf32(int lane, const ProductLane& from, Matrices<8>& to) {
  const int group = lane >> 2, member = lane % 4;
  for (int i = 0; i < 4; ++i)
    to.a[i == 0 || i == 2 ? group : group + 8][i < 2 ? member : member + 4] = cut_tf32(from.a[i]);
  for (int i = 0; i < 2; ++i) to.b[member + 4 * i][group] = cut_tf32(from.b[i]);
}

template <int kDepth, class Gather>
void multiply_by(void* const* lanes, Gather gather) {
  Matrices<kDepth> matrices;
  for (int lane = 0; lane < kLanes; ++lane)
    gather(lane, *static_cast<const ProductLane*>(lanes[lane]), matrices);
  float product[kRows][kColumns] = {};
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < kColumns; ++column)
        product[row][column] += matrices.a[row][k] * matrices.b[k][column];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    float* const d = static_cast<const ProductLane*>(lanes[lane])->d;
    for (int i = 0; i < 4; ++i) d[i] += product[(lane >> 2) + (i < 2 ? 0 : 8)][lane % 4 * 2 + (i & 1)];
  }
}

}  // namespace

void multiply(void* const* lanes) {
  switch (static_cast<const ProductLane*>(lanes[0])->factors) {
    case Factors::kBf16:
      return multiply_by<16>(lanes, gather_halves<bf16>);
    case Factors::kFp16:
      return multiply_by<16>(lanes, gather_halves<fp16>);
    case Factors::kTf32:
      return multiply_by<8>(lanes, gather_tf32);
  }
}

void read_matrices(void* const* lanes) {
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t* const registers = static_cast<const MatricesLane*>(lanes[lane])->registers;
    for (int matrix = 0; matrix < 4; ++matrix) {
      const char* const row = static_cast<const MatricesLane*>(lanes[8 * matrix + lane / 4])->row;
      memcpy(&registers[matrix], row + 4 * (lane % 4), 4);
    }
    if (planted == Fault::kMatricesSwapped) std::swap(registers[1], registers[2]);
  }
}

void exchange(void* const* lanes) {
  float given[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) given[lane] = static_cast<const ShuffleLane*>(lanes[lane])->value;
  for (int lane = 0; lane < kLanes; ++lane) {
    ShuffleLane& mine = *static_cast<ShuffleLane*>(lanes[lane]);
    mine.value = given[(lane ^ mine.mask) % kLanes];
  }
}

}  // namespace cnnlstm::emulator
