// Which instruction sets the CPU kernels were compiled for, and which one this process uses.
// The Python module _C (`cnnlstm_fast info`) links this file and no kernels.
#pragma once

#include <vector>

namespace cnnlstm {

enum class Isa { portable, avx2, avx512 };

const char* isa_name(Isa isa);

// Those that both the CPU and the operating system support, slowest first; always includes portable.
std::vector<Isa> available_isas();

// The fastest available one, or the one named by the environment variable CNNLSTM_CPU_ISA (read once).
// Throws std::runtime_error if it names none of available_isas().
Isa active_isa();

// Whether the bf16 dot product of AVX-512 (dpbf16ps) may be executed.
bool has_avx512_bf16();

// Whether the int8 dot product of AVX-512 (vpdpbusd) may be executed.
bool has_avx512_vnni();

}  // namespace cnnlstm
