// A warp's part of the recurrent product: weights that stay in registers, times the tile.
//
// kRows rows of a lane (4 forward, 2 backward: fragments.h), kPieces pieces of 32 bytes of k. The registers
// are vectors of 16 bytes, which pack.cuh lays beside each other in global memory before a kernel loads them.
#pragma once

#include "cuda/compute_types.cuh"
#include "cuda/device.cuh"
#include "cuda/fragments.h"

namespace cnnlstm {

template <class ComputeType, int kRows, int kPieces>
class TensorProduct {
 public:
  using T = typename ComputeType::Stored;

  static constexpr int kVectors = kRows / 2 * kPieces;

  // A lane's vector, of which weight(row, k) gives the value at the lane's row and place k of the warp's
  // part.
  template <class Weight>
  CNNLSTM_DEVICE static uint4 pack(int lane, int vector, Weight weight) {
    constexpr int kValues = 4 / sizeof(T);
    const int m = vector / kPieces, p = vector % kPieces;
    T values[4][kValues];
    CNNLSTM_UNROLL
    for (int r = 0; r < 4; ++r) {
      CNNLSTM_UNROLL
      for (int n = 0; n < kValues; ++n) {
        const int k = (p * kPiece + place_in_a(lane, r).column) / static_cast<int>(sizeof(T)) + n;
        values[r][n] = ComputeType::factor(weight(2 * m + (r & 1), k));
      }
    }
    uint4 packed;
    __builtin_memcpy(&packed, values, sizeof packed);
    return packed;
  }

  CNNLSTM_DEVICE void load(const uint4* packed) {
    CNNLSTM_UNROLL
    for (int m = 0; m < kProducts; ++m) {
      CNNLSTM_UNROLL
      for (int p = 0; p < kPieces; ++p) {
        const uint4 vector = device::load(packed + (m * kPieces + p) * 32);
        __builtin_memcpy(weights_[m][p], &vector, sizeof vector);
      }
    }
  }

  // sums[sum_of(row, column)] += the product with the tile, of which `part` is the place of the warp's first
  // piece in row 0.
  CNNLSTM_DEVICE void multiply(int lane, const char* part, int64_t row_bytes,
                               float (&sums)[2 * kRows]) const {
    const Place place = place_of_matrix_row(lane);
    const char* const rows = part + place.row * row_bytes + place.column;
    // Separate sums of even and odd pieces: one chain of dependent sums would take twice as long.
    float chains[2][kProducts][4] = {};
    CNNLSTM_UNROLL
    for (int m = 0; m < kProducts; ++m) {
      CNNLSTM_UNROLL
      for (int r = 0; r < 4; ++r) chains[0][m][r] = sums[4 * m + r];
    }
    CNNLSTM_UNROLL
    for (int p = 0; p < kPieces; p += 2) {
      uint32_t b[4];
      device::load_matrices(b, rows + p * kPiece);
      CNNLSTM_UNROLL
      for (int m = 0; m < kProducts; ++m) {
        device::mma<T>(chains[0][m], weights_[m][p], b[0], b[1]);
        device::mma<T>(chains[1][m], weights_[m][p + 1], b[2], b[3]);
      }
    }
    CNNLSTM_UNROLL
    for (int m = 0; m < kProducts; ++m) {
      CNNLSTM_UNROLL
      for (int r = 0; r < 4; ++r) sums[4 * m + r] = chains[0][m][r] + chains[1][m][r];
    }
  }

 private:
  static constexpr int kProducts = kRows / 2;
  uint32_t weights_[kProducts][kPieces][4];
};

template <int kRows, int kPieces>
class ExactProduct {
 public:
  static constexpr int kVectors = kRows * kPieces / 2;

  template <class Weight>
  CNNLSTM_DEVICE static uint4 pack(int lane, int vector, Weight weight) {
    const int row = vector / kPairs, k = (2 * kPiece * (vector % kPairs) + exact_byte(lane)) / 4;
    const float values[4] = {weight(row, k), weight(row, k + 1), weight(row, k + 2), weight(row, k + 3)};
    uint4 packed;
    __builtin_memcpy(&packed, values, sizeof packed);
    return packed;
  }

  CNNLSTM_DEVICE void load(const uint4* packed) {
    CNNLSTM_UNROLL
    for (int row = 0; row < kRows; ++row) {
      CNNLSTM_UNROLL
      for (int p = 0; p < kPairs; ++p) {
        const uint4 vector = device::load(packed + (row * kPairs + p) * 32);
        __builtin_memcpy(weights_[row][p], &vector, sizeof vector);
      }
    }
  }

  CNNLSTM_DEVICE void multiply(int lane, const char* part, int64_t row_bytes,
                               float (&sums)[2 * kRows]) const {
    const char* const rows = part + exact_byte(lane);
    // Two columns at a time, those of one of a unit's four lanes: sums of more would exceed the
    // registers.
    CNNLSTM_NO_UNROLL
    for (int q = 0; q < 4; ++q) {
      float partial[kRows][2] = {};
      CNNLSTM_UNROLL
      for (int p = 0; p < kPairs; ++p) {
        CNNLSTM_UNROLL
        for (int n = 0; n < 2; ++n) {
          const char* const at = rows + (2 * q + n) * row_bytes + 2 * kPiece * p;
          const float4 h = device::load_shared(reinterpret_cast<const float4*>(at));
          CNNLSTM_UNROLL
          for (int row = 0; row < kRows; ++row) {
            partial[row][n] += weights_[row][p][0] * h.x;
            partial[row][n] += weights_[row][p][1] * h.y;
            partial[row][n] += weights_[row][p][2] * h.z;
            partial[row][n] += weights_[row][p][3] * h.w;
          }
        }
      }
      CNNLSTM_UNROLL
      for (int row = 0; row < kRows; ++row) {
        CNNLSTM_UNROLL
        for (int n = 0; n < 2; ++n) {
          float sum = partial[row][n];
          sum += device::shuffle_xor(sum, 1);
          sum += device::shuffle_xor(sum, 2);
          if (lane % 4 == q) sums[sum_of(row, n)] += sum;
        }
      }
    }
  }

 private:
  static constexpr int kPairs = kPieces / 2;
  float weights_[kRows][kPairs][4];
};

template <class ComputeType, int kRows, int kPieces>
struct ChosenProduct {
  using Type = TensorProduct<ComputeType, kRows, kPieces>;
};
template <int kRows, int kPieces>
struct ChosenProduct<Exact, kRows, kPieces> {
  using Type = ExactProduct<kRows, kPieces>;
};
template <class ComputeType, int kRows, int kPieces>
using Product = typename ChosenProduct<ComputeType, kRows, kPieces>::Type;

}  // namespace cnnlstm
