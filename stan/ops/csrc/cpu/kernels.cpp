// The CPU kernels for one processor generation. setup.py compiles this file once for each, with the flags of that generation
// and STAN_CAPABILITY set to its name.
#include "backward.h"
#include "flow.h"
#include "gather.h"
#include "gather_quick.h"
#include "kernels.h"
#include "search.h"
#include "search_blocks.h"
#include "search_rows.h"
#include "support.h"
#include "winograd.h"
#include "winograd_weights.h"

#define STAN_TEXT_OF(name) #name
#define STAN_TEXT(name) STAN_TEXT_OF(name)

namespace stan::cpu::STAN_CAPABILITY {
namespace {

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
      if (a.frames_in == nullptr && a.p.key_stride == 1.0 && fits_rows(a.p)) {
        if (fits_blocks(a.p))
          return a.p.metric == Metric::l2 ? search_blocks_with<Metric::l2, typename T::E>(a) : search_blocks_with<Metric::dot, typename T::E>(a);
        return a.p.metric == Metric::l2 ? search_rows_with<Metric::l2, typename T::E>(a) : search_rows_with<Metric::dot, typename T::E>(a);
      }
    }
    search_with<typename T::S, typename T::E>(a);
  });
}

STAN_BY_TYPE(match_backward, MatchBackwardArguments)
STAN_BY_TYPE(gather_backward, GatherBackwardArguments)

void gather(const GatherArguments& a) {
  with_types(a.type, [&](auto types) {
    using T = decltype(types);
    if constexpr (sizeof(typename T::S) == sizeof(float)) {
      if (a.p.patch.side == 1) return gather_quickly<typename T::E>(a);
    }
    gather_with<typename T::S, typename T::E>(a);
  });
}

// Flow is float32 or float64 only.
void search_flow(const FlowArguments& a) {
  a.type == Type::float64 ? search_flow_with<double>(a) : search_flow_with<float>(a);
}
void search_flow_backward(const FlowBackwardArguments& a) {
  a.type == Type::float64 ? search_flow_backward_with<double>(a) : search_flow_backward_with<float>(a);
}

}  // namespace

extern const Kernels table;
const Kernels table = {STAN_TEXT(STAN_CAPABILITY), search, match_backward, search_flow, search_flow_backward, gather, gather_backward,
                       convolve, convolve_backward};

}  // namespace stan::cpu::STAN_CAPABILITY
