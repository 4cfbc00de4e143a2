#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace cnnlstm {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    default:
      return "portable";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas{Isa::portable};
#if defined(__x86_64__)
  // __builtin_cpu_supports also checks XGETBV, that is, the support of the operating system.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas.push_back(Isa::avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    isas.push_back(Isa::avx512);
  }
#endif
  return isas;
}

static Isa choose_isa() {
  const std::vector<Isa> isas = available_isas();
  const char* wanted = std::getenv("CNNLSTM_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return isas.back();
  std::string names;
  for (Isa isa : isas) {
    if (std::string(wanted) == isa_name(isa)) return isa;
    names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::runtime_error("CNNLSTM_CPU_ISA is '" + std::string(wanted) + "', but this machine has " + names +
                           ".");
}

Isa active_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

bool has_avx512_bf16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool has_avx512_vnni() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

}  // namespace cnnlstm
