// The settings of a search, on their way from the schema to the kernels. The schema forces a positional list upon them; it is spelled
// here, as text and as the code that unpacks it, and nowhere else. Python's side are SearchSpec and RefineSpec in stan/ops/types.py.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "checks.h"
#include "geometry.h"
#include "shapes.h"

// In the order of `take` below, behind the tensors, by keyword.
#define STAN_REFINE_SETTINGS                                                                                      \
  "int window, int topk, int heads, int patch, int dilation, int stride, float key_stride, str metric, bool slide"
#define STAN_SEARCH_SETTINGS STAN_REFINE_SETTINGS ", int temporal_window, str select, str self_match, bool causal, int start"

namespace stan {

inline Patch check_patch(const char* op, int64_t side, int64_t dilation) {
  const Patch patch = {check_number(op, "patch", side, 1, 255), check_number(op, "dilation", dilation, 1, 1 << 15)};
  STAN_CHECK(side % 2 == 1, op, "patch: expected an odd number, got ", side);
  return patch;
}

struct RefineSettings : Settings {};
struct SearchSettings : Settings {};

// The arguments of an op, one after the other.
class Arguments {
 public:
  explicit Arguments(StableIValue* next) : next_(next) {}

  template <typename T>
  T take() {
    if constexpr (std::is_base_of_v<Settings, T>) {
      constexpr bool kSearch = std::is_same_v<T, SearchSettings>;
      op_ = kSearch ? "search" : "refine";
      T settings;
      take_window(settings);
      if constexpr (kSearch) take_time(settings);
      return settings;
    } else {
      return torch::stable::detail::to<T>(*next_++);
    }
  }

 private:
  void take_window(Settings& s) {
    s.window = number("window", 1, 1 << 14);
    s.topk = number("topk", 1, kMaxSide);
    s.heads = number("heads", 1, kMaxSide);
    const int64_t side = take<int64_t>();
    s.patch = check_patch(op_, side, take<int64_t>());
    s.stride = number("stride", 1, kMaxSide);
    s.key_stride = take<double>();
    STAN_CHECK(s.key_stride > 0 && s.key_stride <= double(kMaxSide), op_, "key_stride: expected a number in (0, ", kMaxSide, "], got ",
               s.key_stride);
    s.metric = choice("metric", {"l2", "dot"}, {Metric::l2, Metric::dot});
    s.slide = take<bool>();
  }

  void take_time(Settings& s) {
    s.temporal_window = number("temporal_window", 0, kMaxSide);
    s.select = choice("select", {"all", "each"}, {Select::all, Select::each});
    s.self_match = choice("self_match", {"keep", "first", "exclude", "anchors"},
                          {SelfMatch::keep, SelfMatch::first, SelfMatch::exclude, SelfMatch::anchors});
    STAN_CHECK(s.self_match != SelfMatch::anchors || s.select == Select::each, op_, "self_match: 'anchors' needs select 'each'");
    s.causal = take<bool>();
    s.start = number("start", 0, kMaxSide);
  }

  int number(const char* name, int64_t low, int64_t high) { return check_number(op_, name, take<int64_t>(), low, high); }

  template <typename Value, size_t kCount>
  Value choice(const char* name, const char* const (&texts)[kCount], const Value (&values)[kCount]) {
    const std::string text = take<std::string>();
    std::string expected;
    for (size_t i = 0; i < kCount; ++i) {
      if (text == texts[i]) return values[i];
      expected += std::string(i == 0 ? "'" : i + 1 < kCount ? "', '" : "' or '") + texts[i];
    }
    fail(op_, name, ": expected ", expected, "', got '", text, "'");
  }

  StableIValue* next_;
  const char* op_ = "";
};

// TORCH_BOX for a function that takes RefineSettings or SearchSettings where the schema has STAN_REFINE_SETTINGS or
// STAN_SEARCH_SETTINGS: `m.impl("search", Unpacked<&search>::call)`.
template <auto kFunction>
struct Unpacked;
template <typename... Results, typename... Parameters, std::tuple<Results...> (*kFunction)(Parameters...)>
struct Unpacked<kFunction> {
  static void call(StableIValue* stack, uint64_t, uint64_t) {
    Arguments arguments(stack);
    std::tuple<std::decay_t<Parameters>...> taken{arguments.take<std::decay_t<Parameters>>()...};  // braces: in this order
    torch::stable::detail::box_from_tuple<Results...>(stack, std::apply(kFunction, std::move(taken)));
  }
};

}  // namespace stan
