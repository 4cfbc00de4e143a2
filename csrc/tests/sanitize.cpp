// Runs the CPU kernels on random shapes under the sanitizers, without PyTorch: every instruction set of this
// machine, on one thread and on teams, and several callers at once. All memory is allocated with its exact
// size, so that AddressSanitizer detects the first element beyond it, and is initialized to NaN. A kernel
// that allocates inside a team is an error: an exception there would end the process.
//
//     sanitize [calls] [seed]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/cache_size.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"

static thread_local bool in_team = false;

void* operator new(std::size_t bytes) {
  void* memory = in_team ? nullptr : std::malloc(std::max<std::size_t>(bytes, 1));
  if (memory == nullptr) {
    std::fprintf(stderr, in_team ? "a kernel allocates inside a team\n" : "out of memory\n");
    std::abort();
  }
  return memory;
}

void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return operator new(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace cnnlstm {

// With std::thread, which the sanitizers understand: OpenMP's runtime is not instrumented, and
// ThreadSanitizer would report false races.
void run_team(int wanted, void (*body)(void* context, int rank, int size), void* context) {
  const int size = std::max(wanted, 1);
  const auto run = [=](int rank) {
    in_team = true;
    body(context, rank, size);
    in_team = false;
  };
  std::vector<std::thread> others;
  for (int rank = 1; rank < size; ++rank) others.emplace_back(run, rank);
  run(0);
  for (std::thread& other : others) other.join();
}

bool is_forked_child() { return false; }

// A small one has the kernels split these small layers as they split large ones.
static int64_t weight_cache = 0;
int64_t weight_cache_bytes() { return weight_cache; }

namespace {

using Random = std::mt19937_64;

int64_t draw(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

bool chance(Random& random, double p = 0.5) { return std::bernoulli_distribution(p)(random); }

// Elements of the kernel's dtype, all NaN at first.
class Array {
 public:
  Array() = default;
  Array(int64_t count, bool is_bf16, size_t alignment = 1) : count_(count), is_bf16_(is_bf16) {
    void* memory = nullptr;
    if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), bytes()) != 0) std::abort();
    memory_.reset(static_cast<char*>(memory));
    std::memset(memory, 0xff, bytes());
  }

  int64_t size() const { return count_; }
  size_t bytes() const { return count_ * (is_bf16_ ? 2 : 4); }
  void* data(int64_t first = 0) const { return memory_.get() + first * (is_bf16_ ? 2 : 4); }

  float at(int64_t i) const {
    uint32_t bits = 0;
    std::memcpy(reinterpret_cast<char*>(&bits) + (is_bf16_ ? 2 : 0), data(i), is_bf16_ ? 2 : 4);
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }

  void set(int64_t i, float x) const {
    std::memcpy(data(i), reinterpret_cast<const char*>(&x) + (is_bf16_ ? 2 : 0), is_bf16_ ? 2 : 4);
  }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
  int64_t count_ = 0;
  bool is_bf16_ = false;
};

Array uniform(Random& random, int64_t count, bool is_bf16, double limit = 1.0) {
  Array array(count, is_bf16);
  std::uniform_real_distribution<float> values(-limit, limit);
  for (int64_t i = 0; i < count; ++i) array.set(i, values(random));
  return array;
}

// In place of ATen's BRGEMM, with the same reads: whole tiles of A, pairs of rows of B.
void multiply(int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc, const void* A,
              const void* B, float* C) {
  const auto element = [](const void* from, int64_t i) {
    uint32_t bits = 0;
    std::memcpy(reinterpret_cast<char*>(&bits) + 2, static_cast<const char*>(from) + 2 * i, 2);
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  };
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t k = 0; k < K; ++k) {
      const float a = element(A, m * lda + k);
      for (int64_t n = 0; n < N; ++n) C[m * ldc + n] += a * element(B, (k / 2 * ldb + n) * 2 + k % 2);
    }
  }
}

constexpr int kTeams[] = {2, 3, 4, 7, 8, 16};

struct DirectionData {
  Array w_ih, w_hh, b_ih, b_hh, w_hr, h0, c0, grad_output, grad_cells, grad_h_n, grad_c_n;
};

// The arguments of one layer: drawn once, read by all runs, some of which are concurrent.
struct Call {
  bool is_bf16, is_int8, projection, bias, packed_rows, training, prepacked;
  int64_t T, B, I, H, P;
  int D, threads;
  std::vector<int64_t> active, batch, rows_step, rows_row, compact_step, compact_row;
  std::unique_ptr<uint8_t[]> reset;
  int64_t rows, valid_rows, input_stride, gap;
  GemmMicrokernel microkernel{};
  Array input;
  DirectionData direction[2];

  explicit Call(Random& random) {
    is_bf16 = chance(random), projection = chance(random, 0.3), bias = chance(random, 0.7);
    packed_rows = chance(random), training = chance(random, 0.7), prepacked = chance(random, 0.3);
    is_int8 = !is_bf16 && chance(random, 0.4);
    training = training && !is_int8;
    // Many sequences are split among the threads, of which there are also more than blocks of units.
    B = draw(random, 0, chance(random, 0.1) ? 250 : chance(random, 0.2) ? 60 : 9);
    T = draw(random, 0, B > 60 ? 3 : chance(random, 0.1) ? 60 : 9);
    I = draw(random, 1, 70), H = draw(random, 1, 70), P = projection ? draw(random, 1, H) : H;
    D = int(draw(random, 1, 2)), threads = kTeams[draw(random, 0, std::size(kTeams) - 1)];
    gap = is_bf16 ? 0 : draw(random, 0, 1) * 16;
    draw_rows(random);
    if (is_bf16 && chance(random)) microkernel = {multiply, [] {}};
    const int64_t unit = microkernel.multiply != nullptr ? kMicrokernelTile : is_bf16 ? 2 : 1;
    input_stride = (I + unit - 1) / unit * unit;
    input = uniform(random, valid_rows * input_stride, is_bf16);
    for (int64_t row = 0; row < valid_rows; ++row) {
      for (int64_t i = I; i < input_stride; ++i) input.set(row * input_stride + i, 0.0f);
    }
    const double scale = 1.0 / std::sqrt(double(H));
    const auto array = [&](int64_t count, double limit) { return uniform(random, count, is_bf16, limit); };
    const auto maybe = [&](int64_t count) { return chance(random, 0.7) ? array(count, 1.0) : Array(); };
    for (int d = 0; d < D; ++d) {
      DirectionData& to = direction[d];
      to.w_ih = array(4 * H * I, scale), to.w_hh = array(4 * H * P, scale);
      if (bias) to.b_ih = array(4 * H, scale), to.b_hh = array(4 * H, scale);
      if (projection) to.w_hr = array(P * H, scale);
      to.h0 = array(B * P, 1.0), to.c0 = array(B * H, 1.0);
      to.grad_output = maybe(rows * P), to.grad_cells = maybe(rows * H);
      to.grad_h_n = maybe(B * P), to.grad_c_n = maybe(B * H);
    }
  }

  Sequences sequences() const {
    return {T,
            B,
            active.data(),
            batch.data(),
            {rows_step.data(), rows_row.data()},
            {compact_step.data(), compact_row.data()},
            reset.get()};
  }

 private:
  void draw_rows(Random& random) {
    const double full = draw(random, 0, 2) / 2.0;
    std::vector<int64_t> lengths(B);
    for (int64_t& length : lengths) length = chance(random, full) ? T : draw(random, 0, T);
    batch.resize(B), std::iota(batch.begin(), batch.end(), 0);
    std::stable_sort(batch.begin(), batch.end(),
                     [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    valid_rows = 0;
    for (int64_t t = 0; t <= T; ++t) {
      active.push_back(std::count_if(lengths.begin(), lengths.end(), [&](int64_t n) { return n > t; }));
      if (t < T) compact_step.push_back(valid_rows);
      valid_rows += active[t];
    }
    compact_row.resize(B), std::iota(compact_row.begin(), compact_row.end(), 0);
    rows = packed_rows ? valid_rows : T * B;
    rows_step = compact_step, rows_row = packed_rows ? compact_row : batch;
    for (int64_t t = 0; t < T && !packed_rows; ++t) rows_step[t] = t * B;
    if (chance(random, 0.7)) return;
    reset = std::make_unique<uint8_t[]>(rows);
    for (int64_t row = 0; row < rows; ++row) reset[row] = chance(random, 0.3);
  }
};

void fail(const std::string& text) {
  std::fprintf(stderr, "%s\n", text.c_str());
  std::exit(1);
}

const void* or_null(const Array& array) { return array.size() == 0 ? nullptr : array.data(); }

// Rows of steps that exist must have been written, all others must be unchanged.
void append_rows(std::vector<float>& to, const Array& from, int64_t width, const Call& call) {
  if (from.size() == 0) return;
  const Sequences seq = call.sequences();
  for (int64_t t = 0; t < call.T; ++t) {
    for (int64_t r = 0; r < (call.packed_rows ? seq.active[t] : call.B); ++r) {
      const int64_t row = seq.rows.step[t] + seq.rows.row[r];
      for (int64_t i = row * width; i < (row + 1) * width; ++i) {
        if (r < seq.active[t]) {
          to.push_back(from.at(i));
        } else if (!std::isnan(from.at(i))) {
          fail("a row of a step that does not exist was written");
        }
      }
    }
  }
}

void append(std::vector<float>& to, const Array& from, int64_t width, int64_t stride) {
  for (int64_t i = 0; i < from.size(); ++i) {
    if (i % stride < width) to.push_back(from.at(i));
  }
}

std::unique_ptr<uint8_t[]> quantized_input(const Kernels& kernels, const Call& call, int threads) {
  if (!call.is_int8) return nullptr;
  std::unique_ptr<uint8_t[]> rows(new uint8_t[call.valid_rows * quantized_bytes(call.I)]);
  kernels.quantize_rows(rows.get(), call.input.data(), call.valid_rows, call.I, threads);
  return rows;
}

// Runs forward, and backward for a training call; returns everything that they write.
std::vector<float> run(const Kernels& kernels, const Call& call, int threads) {
  const auto [T, B, I, H, P, D] = std::tuple{call.T, call.B, call.I, call.H, call.P, call.D};
  std::vector<float> results;
  Array output(call.rows * D * P, call.is_bf16), packed_ih[2], packed_hh[2], h_n[2], c_n[2], cells[2],
      gates[2];

  ForwardLayer forward{};
  forward.seq = call.sequences();
  const std::unique_ptr<uint8_t[]> quantized = quantized_input(kernels, call, threads);
  forward.input = call.is_int8 ? quantized.get() : call.input.data(),
  forward.input_rows = forward.seq.compact;
  forward.input_stride = call.is_int8 ? quantized_bytes(I) : call.input_stride;
  forward.microkernel = call.microkernel;
  forward.I = I, forward.H = H, forward.P = P, forward.D = D, forward.threads = threads;
  for (int d = 0; d < D; ++d) {
    const DirectionData& data = call.direction[d];
    ForwardDirection& to = forward.direction[d];
    h_n[d] = Array(B * P, call.is_bf16), c_n[d] = Array(B * H, call.is_bf16);
    if (call.training) {
      cells[d] = Array(call.rows * H, call.is_bf16), gates[d] = Array(call.rows * 4 * H, call.is_bf16);
    }
    const auto pack = [&](const Array& weight, int64_t K) {
      Array panels(kernels.packed_floats(H, K), false, 64);
      kernels.pack(static_cast<float*>(panels.data()), weight.data(), H, K, threads);
      return panels;
    };
    if (call.prepacked) packed_ih[d] = pack(data.w_ih, I), packed_hh[d] = pack(data.w_hh, P);
    to.reverse = d == 1;
    to.w_ih = data.w_ih.data(), to.w_hh = data.w_hh.data(), to.w_hr = or_null(data.w_hr);
    to.b_ih = or_null(data.b_ih), to.b_hh = or_null(data.b_hh);
    to.packed_w_ih = or_null(packed_ih[d]), to.packed_w_hh = or_null(packed_hh[d]);
    to.h0 = data.h0.data(), to.c0 = data.c0.data(), to.h_n = h_n[d].data(), to.c_n = c_n[d].data();
    to.output = output.data(d * P), to.output_rows = forward.seq.rows, to.output_stride = D * P;
    if (call.training) to.cells = cells[d].data(), to.gates = gates[d].data();
  }
  const Array workspace((kernels.forward_workspace(forward) + 3) / 4, false, 64);
  forward.workspace = workspace.data();
  kernels.forward(forward);
  append_rows(results, output, D * P, call);
  for (int d = 0; d < D; ++d) {
    append(results, h_n[d], P, P), append(results, c_n[d], H, H);
    append_rows(results, cells[d], H, call), append_rows(results, gates[d], 4 * H, call);
  }
  if (!call.training) return results;

  BackwardLayer backward{};
  Array grad_gates[2], grad_projected[2], unprojected[2], grad_h0[2], grad_c0[2];
  backward.seq = call.sequences();
  backward.H = H, backward.P = P, backward.D = D, backward.threads = threads;
  const int64_t stride = 4 * H + call.gap;
  for (int d = 0; d < D; ++d) {
    const DirectionData& data = call.direction[d];
    BackwardDirection& to = backward.direction[d];
    grad_gates[d] = Array(call.valid_rows == 0 ? 0 : call.valid_rows * stride - call.gap, call.is_bf16);
    grad_h0[d] = Array(B * P, call.is_bf16), grad_c0[d] = Array(B * H, call.is_bf16);
    if (call.projection) {
      grad_projected[d] = Array(call.valid_rows * P, call.is_bf16);
      unprojected[d] = Array(call.valid_rows * H, call.is_bf16);
      to.grad_projected = grad_projected[d].data(), to.unprojected = unprojected[d].data();
    }
    to.reverse = d == 1;
    to.w_hh = data.w_hh.data(), to.w_hr = or_null(data.w_hr), to.c0 = data.c0.data();
    to.cells = cells[d].data(), to.gates = gates[d].data();
    to.grad_output = or_null(data.grad_output), to.grad_cells = or_null(data.grad_cells);
    to.grad_output_rows = backward.seq.rows, to.grad_output_stride = P;
    to.grad_h_n = or_null(data.grad_h_n), to.grad_c_n = or_null(data.grad_c_n);
    to.grad_gates = grad_gates[d].data(), to.grad_gates_stride = stride;
    to.grad_h0 = grad_h0[d].data(), to.grad_c0 = grad_c0[d].data();
  }
  const Array scratch((kernels.backward_workspace(backward) + 3) / 4, false, 64);
  backward.workspace = scratch.data();
  kernels.backward(backward);
  for (int d = 0; d < D; ++d) {
    append(results, grad_gates[d], 4 * H, stride), append(results, grad_h0[d], P, P);
    append(results, grad_c0[d], H, H);
    append(results, grad_projected[d], P, P), append(results, unprojected[d], H, H);
  }
  return results;
}

struct Variant {
  std::string name;
  const Kernels& (*kernels)(bool is_bf16);
  const Kernels& (*int8)();

  const Kernels& of(const Call& call) const { return call.is_int8 ? int8() : kernels(call.is_bf16); }
};

std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (Isa isa : available_isas()) {
    if (isa == Isa::portable) all.push_back({"portable", kernels_portable, kernels_portable_int8});
#if defined(__x86_64__)
    if (isa == Isa::avx2) all.push_back({"avx2", kernels_avx2, kernels_avx2_int8});
    if (isa == Isa::avx512) all.push_back({"avx512", kernels_avx512, kernels_avx512_int8});
#endif
  }
  // The kernels that the package uses: with dot products of bf16 and int8 where available, or those of
  // CNNLSTM_CPU_ISA.
  all.push_back({"active", kernels, kernels_int8});
  return all;
}

void check_call(const Call& call, const std::vector<Variant>& variants, const std::string& name) {
  // With int8 products, a difference in the last bit of h may change its rounding to an integer.
  const double tolerance = call.is_bf16 ? 0.06 : call.is_int8 ? 0.02 : 1e-4;
  std::vector<float> first;
  for (const Variant& variant : variants) {
    for (int threads : {1, call.threads}) {
      const std::string where = name + ", " + variant.name + ", threads " + std::to_string(threads);
      const std::vector<float> results = run(variant.of(call), call, threads);
      if (first.empty()) first = results;
      if (results.size() != first.size()) fail(where + ": another number of results");
      for (size_t i = 0; i < results.size(); ++i) {
        const double difference = std::abs(double(results[i]) - first[i]);
        if (!(difference <= tolerance * (1.0 + std::abs(first[i])))) {
          fail(where + ": result " + std::to_string(i) + " is " + std::to_string(results[i]) + ", not " +
               std::to_string(first[i]));
        }
      }
    }
  }
}

// Concurrent callers with the same inputs and weights get the same results as one caller alone.
void check_callers(const Call& call, const std::vector<Variant>& variants, const std::string& name) {
  for (const Variant& variant : variants) {
    const Kernels& kernels = variant.of(call);
    const std::vector<float> alone = run(kernels, call, 2);
    std::vector<float> found[3];
    std::vector<std::thread> callers;
    for (std::vector<float>& results : found) {
      callers.emplace_back([&] { results = run(kernels, call, 2); });
    }
    for (std::thread& caller : callers) caller.join();
    for (const std::vector<float>& results : found) {
      if (results != alone)
        fail(name + ", " + variant.name + ": concurrent callers change each other's results");
    }
  }
}

uint64_t fingerprint_of(const Kernels& kernels, const Array& weight, int threads) {
  FingerprintSpan span{weight.data(), weight.bytes(), 1, 0};
  kernels.fingerprint(&span, 1, threads);
  return span.fingerprint;
}

void check_fingerprint(Random& random, const std::vector<Variant>& variants, const std::string& name) {
  const Array weight = uniform(random, draw(random, 0, 20000), chance(random));
  for (const Variant& variant : variants) {
    const Kernels& kernels = variant.kernels(false);
    const uint64_t before = fingerprint_of(kernels, weight, 1);
    if (fingerprint_of(kernels, weight, 3) != before) {
      fail(name + ", " + variant.name + ": the fingerprint depends on the threads");
    }
    if (weight.size() == 0) continue;
    const int64_t i = draw(random, 0, weight.size() - 1);
    weight.set(i, weight.at(i) + 1.0f);
    if (fingerprint_of(kernels, weight, 1) == before) {
      fail(name + ", " + variant.name + ": the fingerprint misses a change");
    }
  }
}

}  // namespace
}  // namespace cnnlstm

int main(int argc, char** argv) {
  const int calls = argc > 1 ? std::atoi(argv[1]) : 200;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const std::vector<cnnlstm::Variant> variants = cnnlstm::variants();
  for (int k = 0; k < calls; ++k) {
    cnnlstm::Random random(seed + k);
    const std::string name = "sanitize 1 " + std::to_string(seed + k);
    cnnlstm::weight_cache = cnnlstm::chance(random, 0.7) ? 5 << 18 : cnnlstm::draw(random, 0, 1 << 15);
    const cnnlstm::Call call(random);
    cnnlstm::check_call(call, variants, name);
    if (k % 5 == 0) cnnlstm::check_callers(call, variants, name);
    if (k % 20 == 0) cnnlstm::check_fingerprint(random, variants, name);
  }
  std::printf("%d calls from seed %llu on", calls, static_cast<unsigned long long>(seed));
  for (const cnnlstm::Variant& variant : variants) std::printf(", %s", variant.name.c_str());
  std::printf(": no fault\n");
}
