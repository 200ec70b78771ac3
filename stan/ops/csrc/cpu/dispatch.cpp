// Which build of the kernels this processor runs with.
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/library.h>

#include "kernels.h"

namespace stan::cpu {

namespace generic {
extern const Kernels table;
}
#ifdef STAN_X86
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

[[noreturn]] void throw_out_of_memory() { throw std::bad_alloc(); }
[[noreturn]] void throw_failed_thread() { throw std::runtime_error("stan: a worker thread of the operator failed, most likely for lack of memory"); }

static const Kernels& choose() {
#ifdef STAN_X86
  // The flags that setup.py compiles with must be those asked for here.
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  const char* wanted = std::getenv("STAN_CPU_CAPABILITY");
  const bool at_most_generic = wanted != nullptr && std::strcmp(wanted, "generic") == 0;
  const bool at_most_avx2 = wanted != nullptr && std::strcmp(wanted, "avx2") == 0;
  if (has_avx512 && !at_most_generic && !at_most_avx2) return avx512::table;
  if (has_avx2 && !at_most_generic) return avx2::table;
#endif
  return generic::table;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

static std::string cpu_capability() { return kernels().capability; }

}  // namespace stan::cpu

STABLE_TORCH_LIBRARY_IMPL(stan, CompositeExplicitAutograd, m) { m.impl("cpu_capability", TORCH_BOX(&stan::cpu::cpu_capability)); }
