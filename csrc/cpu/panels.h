// Weights packed for the recurrence, and the product that reads them.
//
// A panel holds the weights of 4 vectors of W outputs for the whole reduction, in the order in which the
// product reads them: for each word k, 4 vectors of W words. A word is 32 bits: one float, or two consecutive
// bf16 of the reduction (the last one padded with zero).
#pragma once

#include "cpu/vec.h"

namespace cnnlstm {
namespace {

// Rows of the state in one register tile, with 4 accumulators per row.
#if defined(__AVX512F__)
constexpr int kTileRows = 6;
#elif defined(__AVX2__)
constexpr int kTileRows = 3;
#else
constexpr int kTileRows = 2;
#endif

// How many words ahead of its reads packing prefetches.
constexpr int kPackPrefetchWords = 8 * 16;

template <class T>
constexpr int kPerWord = 4 / sizeof(T);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
inline int64_t words(int64_t K) {
  return ceil_div(K, kPerWord<T>);
}

template <int N>
struct Int {
  static constexpr int value = N;
};

// Calls f(Int<M>{}, r) for tiles of M rows, M <= kTileRows and as even as possible, that cover [begin, end).
template <class F>
inline void for_row_tiles(int64_t begin, int64_t end, F f) {
  for (int64_t tiles = ceil_div(end - begin, kTileRows); tiles > 0; --tiles) {
    const int64_t rows = ceil_div(end - begin, tiles);
    switch (rows) {
#if defined(__AVX512F__)
      case 6:
        f(Int<6>{}, begin);
        break;
      case 5:
        f(Int<5>{}, begin);
        break;
      case 4:
        f(Int<4>{}, begin);
        break;
#endif
#if defined(__AVX2__)
      case 3:
        f(Int<3>{}, begin);
        break;
#endif
      case 2:
        f(Int<2>{}, begin);
        break;
      default:
        f(Int<1>{}, begin);
    }
    begin += rows;
  }
}

// W words of a row of K elements from word k on, zero beyond the row.
template <class T>
CNNLSTM_INLINE vf load_words(const T* row, int64_t k, int64_t K) {
  const T* from = row + k * kPerWord<T>;
  const int64_t n = K - k * kPerWord<T>;
  vf x{};
  if (n >= W * kPerWord<T>) {
    std::memcpy(&x, from, sizeof x);
    return x;
  }
  if constexpr (sizeof(T) == 4) return load(from, n);
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_loadu_epi16(n <= 0 ? 0 : (1u << n) - 1, from);
#else
  if (n > 0) std::memcpy(&x, from, n * sizeof(T));
  return x;
#endif
}

// Four vectors of outputs that are rows of a matrix of K columns: vector v is the W rows from
// matrix + v * stride on, of which the first count - v * shrink exist.
template <class T>
void pack_rows(float* panel, const T* matrix, int64_t K, int64_t stride, int64_t count, int64_t shrink) {
  const int64_t n = words<T>(K);
  for (int v = 0; v < 4; ++v, count -= shrink) {
    const T* rows = matrix + v * stride * K;
    int64_t k = 0;
    if (count >= W) {
      for (; k + W <= K / kPerWord<T>; k += W) {
        vf x[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
          const T* from = rows + i * K + k * kPerWord<T>;
          // The hardware prefetcher does not follow so many rows at once.
          __builtin_prefetch(from + kPackPrefetchWords * kPerWord<T>);
          std::memcpy(&x[i], from, sizeof x[i]);
        }
        transpose(x);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(panel + ((k + i) * 4 + v) * W, x[i]);
      }
    }
    for (; k < n; k += W) {
      vf x[W];
      for (int i = 0; i < W; ++i) x[i] = i < count ? load_words(rows + i * K, k, K) : zero();
      transpose(x);
      for (int i = 0; i < W && k + i < n; ++i) store(panel + ((k + i) * 4 + v) * W, x[i]);
    }
  }
}

template <class T>
void transpose_matrix(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t rows,
                      int64_t columns) {
  for (int64_t r = 0; r < rows; r += W) {
    for (int64_t c = 0; c < columns; c += W) {
      vf x[W];
      for (int i = 0; i < W; ++i) {
        const T* row = static_cast<const T*>(from) + (r + i) * from_stride + c;
        x[i] = r + i < rows ? load(row, columns - c) : zero();
      }
      transpose(x);
      for (int i = 0; i < W && c + i < columns; ++i)
        store(static_cast<T*>(to) + (c + i) * to_stride + r, rows - r, x[i]);
    }
  }
}

// Outputs that are the columns first + (0..4W-1) of a (K, N) matrix.
template <class T>
void pack_columns(float* panel, const T* matrix, int64_t K, int64_t N, int64_t first) {
  for (int64_t k = 0; k < words<T>(K); ++k) {
    for (int v = 0; v < 4; ++v) {
      const int64_t column = first + v * W;
      const int64_t row = k * kPerWord<T>;
      vf x = load(matrix + row * N + column, N - column);
      if constexpr (sizeof(T) == 2) {
        const vf odd = row + 1 < K ? load(matrix + (row + 1) * N + column, N - column) : zero();
        x = (vf)((vu)x >> 16 | (vu)odd);
      }
      store(panel + (k * 4 + v) * W, x);
    }
  }
}

// acc + w * x, by words of T: for bf16 the sum of two products.
template <class T>
CNNLSTM_INLINE vf multiply_add(vf w, vf x, vf acc) {
  if constexpr (sizeof(T) == 4) return fma(w, x, acc);
#if defined(__AVX512BF16__)
  return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)x);
#else
  acc = fma((vf)((vu)w << 16), (vf)((vu)x << 16), acc);
  return fma((vf)((vu)w & 0xffff0000u), (vf)((vu)x & 0xffff0000u), acc);
#endif
}

// One word in every lane.
template <class T>
CNNLSTM_INLINE vf splat_word(const T* x) {
  float word;
  std::memcpy(&word, x, 4);
  return splat(word);
}

// M rows of four vectors, `stride` floats from row to row.
template <int M>
CNNLSTM_INLINE void load_tile(vf (&acc)[M][4], const float* from, int64_t stride) {
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) acc[m][v] = load(from + m * stride + v * W);
  }
}

template <int M>
CNNLSTM_INLINE void store_tile(const vf (&acc)[M][4], float* to, int64_t stride) {
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) store(to + m * stride + v * W, acc[m][v]);
  }
}

// The part of the next panel that one of several passes over a panel of n words prefetches. A pass of M rows
// takes longer to compute than L3 takes to deliver that part; without prefetching, the first pass over each
// panel would wait for the whole panel.
struct Prefetch {
  const float* from = nullptr;
  int64_t step;  // floats to prefetch with each word

  Prefetch() = default;
  Prefetch(const float* next, int64_t n, int64_t pass, int64_t passes) : step(passes < 4 ? 2 * W : W) {
    if (next != nullptr && passes > 1 && pass * step < 4 * W) from = next + pass * n * step;
  }
};

// acc[m][v] += sum over the n words k of panel[k][v] * x[m][k]. Each x[m] must be readable to the last word.
template <int M, class T>
CNNLSTM_INLINE void multiply(vf (&acc)[M][4], const float* panel, const T* const (&x)[M], int64_t n,
                             Prefetch prefetch = {}) {
  int64_t k = 0;
  if constexpr (M == 1) {  // eight chains of dependent additions, since four would be bound by latency
    vf odd[4] = {};
    for (; k + 1 < n; k += 2) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        acc[0][v] =
            multiply_add<T>(load(panel + (k * 4 + v) * W), splat_word(x[0] + k * kPerWord<T>), acc[0][v]);
        odd[v] = multiply_add<T>(load(panel + (k * 4 + 4 + v) * W), splat_word(x[0] + (k + 1) * kPerWord<T>),
                                 odd[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) acc[0][v] += odd[v];
  }
  // Two loops, since the branch in a single loop costs up to 3 %.
  const auto rest = [&](auto prefetches) {
    for (; k < n; ++k) {
      if constexpr (prefetches.value) {
        __builtin_prefetch(prefetch.from + k * prefetch.step, 0, 2);
        __builtin_prefetch(prefetch.from + (k + 1) * prefetch.step - W, 0, 2);
      }
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const vf w = load(panel + (k * 4 + v) * W);
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m)
          acc[m][v] = multiply_add<T>(w, splat_word(x[m] + k * kPerWord<T>), acc[m][v]);
      }
    }
  };
  if constexpr (M >= 4) {
    if (prefetch.from != nullptr) return rest(Int<1>{});
  }
  rest(Int<0>{});
}

// The same with x[m] = first + m * stride.
template <int M, class T>
CNNLSTM_INLINE void multiply(vf (&acc)[M][4], const float* panel, const T* first, int64_t stride, int64_t n) {
  const T* x[M];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) x[m] = first + m * stride;
  multiply<M, T>(acc, panel, x, n);
}

// acc[m][v] += the products of x[m] (K) with the rows of a matrix of K columns as it lies in memory: lane i
// of vector v is row v * stride + i, the first `count` exist. Slower than a panel but without packing, for
// weights that are read only a few times.
template <int M, class T>
CNNLSTM_INLINE void multiply_unpacked(vf (&acc)[M][4], const T* matrix, int64_t stride, int64_t count,
                                      const T* const (&x)[M], int64_t K) {
  constexpr int R = M == 1 && W >= 8 ? 8 : 4;  // rows at a time: enough independent sums to hide the latency
  for (int v = 0; v < 4; ++v) {
    vf sums[M][W];
    for (int i = 0; i < W; i += R) {
      const T* rows[R];
#pragma GCC unroll 8
      for (int j = 0; j < R; ++j) rows[j] = matrix + (v * stride + (i + j < count ? i + j : count - 1)) * K;
      vf part[M][R] = {};
      for (int64_t k = 0; k < words<T>(K); k += W) {
        vf w[R];
#pragma GCC unroll 8
        for (int j = 0; j < R; ++j) w[j] = load_words(rows[j], k, K);
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m) {
          const vf values = load_words(x[m], k, K);
#pragma GCC unroll 8
          for (int j = 0; j < R; ++j) part[m][j] = multiply_add<T>(w[j], values, part[m][j]);
        }
      }
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int j = 0; j < R; ++j) sums[m][i + j] = part[m][j];
      }
    }
    for (int m = 0; m < M; ++m) acc[m][v] += sum_lanes(sums[m]);
  }
}

}  // namespace
}  // namespace cnnlstm
