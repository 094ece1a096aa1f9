// Chooses the instruction-set path once, at the first use.
#include "kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace etude {

namespace portable { extern const Kernels table; }
#if ETUDE_X86
namespace avx2 { extern const Kernels table; }
namespace avx512 { extern const Kernels table; }
#endif

static bool runs_here(const std::string& name) {
#if ETUDE_X86
  if (name == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return name == "portable";
}

static const Kernels& choose() {
  static const Kernels* const all[] = {
#if ETUDE_X86
      &avx512::table, &avx2::table,
#endif
      &portable::table};
  const char* forced = std::getenv("ETUDE_ISA");
  std::string names;
  for (const Kernels* path : all) {
    if (!runs_here(path->name)) continue;
    if (!forced || std::string(forced) == path->name) return *path;
    names += (names.empty() ? "" : ", ") + std::string(path->name);
  }
  throw std::runtime_error("ETUDE_ISA=" + std::string(forced) + " cannot run on this machine; it has: " + names +
                           ". Unset ETUDE_ISA to take the best one.");
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace etude
