// The CPU kernels for one processor generation. setup.py compiles this file once for each, with the flags of that generation
// and STAN_CAPABILITY set to its name.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <torch/csrc/stable/c/shim.h>

#include "kernels.h"

#ifndef STAN_CAPABILITY
#define STAN_CAPABILITY generic
#endif
#define STAN_TEXT_OF(name) #name
#define STAN_TEXT(name) STAN_TEXT_OF(name)

namespace stan::cpu {

[[noreturn]] void throw_out_of_memory();   // dispatch.cpp
[[noreturn]] void throw_failed_thread();

namespace STAN_CAPABILITY {
namespace {

#include "support.h"

#include "sample.h"

#include "selection.h"

#include "search.h"

#include "simd.h"

#include "key_rows.h"

#include "compare_rows.h"

#include "select_scores.h"

#include "search_rows.h"

#include "bands.h"

#include "backward.h"

#include "flow.h"

#include "gather.h"

// One function an op, for all element types.
#define STAN_BY_TYPE(op, Arguments)                               \
  void op(const Arguments& a) {                                   \
    with_types(a.type, [&](auto types) {                          \
      using T = decltype(types);                                  \
      op##_with<typename T::S, typename T::E>(a);                 \
    });                                                           \
  }

void search(const SearchArguments& a) {
  with_types(a.type, [&](auto types) {
    using T = decltype(types);
    if constexpr (sizeof(typename T::S) == sizeof(float)) {
      if (a.p.key_stride == 1.0 && fits_rows(a.p)) {
        return a.p.metric == Metric::l2 ? search_rows_with<Metric::l2, typename T::E>(a) : search_rows_with<Metric::dot, typename T::E>(a);
      }
    }
    search_with<typename T::S, typename T::E>(a);
  });
}

STAN_BY_TYPE(refine, RefineArguments)
STAN_BY_TYPE(match_backward, MatchBackwardArguments)
STAN_BY_TYPE(gather, GatherArguments)
STAN_BY_TYPE(gather_backward, GatherBackwardArguments)

// Flow is float32 or float64 only.
void search_flow(const FlowArguments& a) {
  a.type == Type::float64 ? search_flow_with<double>(a) : search_flow_with<float>(a);
}
void search_flow_backward(const FlowBackwardArguments& a) {
  a.type == Type::float64 ? search_flow_backward_with<double>(a) : search_flow_backward_with<float>(a);
}

}  // namespace

extern const Kernels table;
const Kernels table = {STAN_TEXT(STAN_CAPABILITY), search, refine, match_backward, search_flow, search_flow_backward, gather, gather_backward};

}  // namespace STAN_CAPABILITY
}  // namespace stan::cpu
