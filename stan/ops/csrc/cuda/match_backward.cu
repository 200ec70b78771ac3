// stan::search_backward and stan::refine_backward on the GPU.
#include "match_backward.cuh"

#include <optional>
#include <tuple>
#include <vector>

#include "../parameters.h"
#include "../settings.h"
#include "launch.h"

namespace stan::cuda {
namespace {

// What both ops share; the shifts are the flow or the incoming offsets.
struct Arrivals {
  const char* op;
  const Tensor &grad_scores, &grad_offsets, &query, &key, &offsets, &frames;
  const Tensor* shifts;   // null: zero flow
  const Tensor* parents;  // null: a search
  bool need_query, need_key, need_shift, deterministic;
};

int lanes_for(int channels) {
  int lanes = 1;
  while (lanes < kWarp && 4 * lanes < channels) lanes *= 2;
  return lanes;
}

template <typename S>
std::tuple<Tensor, Tensor, Tensor> match_backward(const SearchParameters& p, const Arrivals& a) {
  const Device device(a.query);
  const Sizes& z = p.sizes;
  const bool over_heads = a.parents == nullptr && p.flow_heads == 1 && z.heads > 1 && a.need_shift;
  const int64_t queries = z.batch * z.heads * z.frames * queries_of(z);
  const Tensor grad_scores = dense(a.grad_scores), grad_offsets = dense(a.grad_offsets);
  const Tensor offsets = dense(a.offsets), frames = dense(a.frames);
  const Tensor shifts = a.shifts != nullptr ? dense(*a.shifts) : nothing(a.query);
  const Tensor parents = a.parents != nullptr ? dense(*a.parents) : nothing(a.query);
  const bool refines = a.parents != nullptr;

  const Records<S> query = packed<S>(a.op, device, a.query, z.heads);
  const Records<S> key = packed<S>(a.op, device, a.key, z.heads);
  const bool own_pixels = p.patch.side == 1;  // then each query pixel gets its gradient from one query
  const Tensor query_rows = zeros(a.query, {a.need_query && own_pixels ? query.memory.numel() : 0}, arithmetic_type(a.query.scalar_type()));
  Tensor grad_shift = nothing(a.query);
  if (a.need_shift && a.shifts != nullptr) {
    std::vector<int64_t> shape;
    for (int64_t i = 0; i < shifts.dim(); ++i) shape.push_back(shifts.size(i));
    grad_shift = zeros(shifts, shape, shifts.scalar_type());
  }

  MatchBackward<S> m;
  static_cast<SearchParameters&>(m) = p;
  m.query = query.pixels;
  m.key = key.pixels;
  const S* const flow = !refines && a.shifts != nullptr ? input<S>(shifts) : nullptr;
  m.targets = {flow, refines ? input<S>(shifts) : nullptr, nullptr};
  m.items = over_heads ? queries / z.heads : queries;
  m.lanes = lanes_for(z.channels);
  m.over_heads = over_heads;
  m.need_key = a.need_key;
  m.grad_scores = input<S>(grad_scores);
  m.grad_offsets = input<S>(grad_offsets);
  m.stored_offsets = input<S>(offsets);
  m.stored_frames = input<int32_t>(frames);
  m.parents = refines ? input<int32_t>(parents) : nullptr;
  m.query_rows = own_pixels ? data<S>(query_rows) : nullptr;
  m.need_query = a.need_query;
  m.grad_shift = a.need_shift && a.shifts != nullptr ? data<S>(grad_shift) : nullptr;

  // Every match of every query of the clip may meet in one key pixel, with each of its patch pixels.
  const double factor = p.metric == Metric::l2 ? 2 : 1;
  const double meeting = 4.0 * double(z.frames) * double(queries_of(z)) * p.matches * p.patch.side * p.patch.side;
  const std::vector<Tensor> magnitudes = {grad_scores, query.memory, key.memory};
  const Sum<S> grad_key(a.op, device, a.query, a.need_key ? key.memory.numel() : 0, a.deterministic, factor, magnitudes, meeting);
  const Sum<S> grad_query(a.op, device, a.query, a.need_query && !own_pixels ? query.memory.numel() : 0, a.deterministic, factor, magnitudes,
                          meeting);
  Tensor out_query = nothing(a.query), out_key = nothing(a.key);
  grad_key.with(grad_query, [&](const auto& key_sink, const auto& query_sink) {
    launch(a.op, device, match_backward_kernel<S, std::decay_t<decltype(key_sink)>>, (m.items + kBackwardWarps - 1) / kBackwardWarps,
           kBackwardWarps * kWarp, 0, m, key_sink, query_sink);
    if (a.need_query && own_pixels) {
      out_query = unpacked<S>(a.op, device, FloatSink<S>{data<S>(query_rows)}, query.pixels, a.query, z.heads);
    } else if (a.need_query) {
      out_query = unpacked<S>(a.op, device, query_sink, query.pixels, a.query, z.heads);
    }
    if (a.need_key) out_key = unpacked<S>(a.op, device, key_sink, key.pixels, a.key, z.heads);
  });
  return {out_query, out_key, grad_shift};
}

std::tuple<Tensor, Tensor, Tensor> run(const SearchParameters& p, const Arrivals& a) {
  if (a.query.scalar_type() == ScalarType::Double) return match_backward<double>(p, a);
  return match_backward<float>(p, a);
}

std::tuple<Tensor, Tensor, Tensor> search_backward(const Tensor& grad_scores, const Tensor& grad_offsets, const Tensor& query,
                                                   const Tensor& key, const std::optional<Tensor>& flow, const Tensor& offsets,
                                                   const Tensor& frames, bool need_query, bool need_key, bool need_flow,
                                                   bool deterministic, const SearchSettings& settings) {
  return run(check_search_backward(grad_scores, grad_offsets, query, key, flow, offsets, frames, need_flow, settings),
             {"search_backward", grad_scores, grad_offsets, query, key, offsets, frames, flow ? &*flow : nullptr, nullptr, need_query,
              need_key, need_flow, deterministic});
}

std::tuple<Tensor, Tensor, Tensor> refine_backward(const Tensor& grad_scores, const Tensor& grad_offsets, const Tensor& query,
                                                   const Tensor& key, const Tensor& offsets_in, const Tensor& offsets,
                                                   const Tensor& frames, const Tensor& parents, bool need_query, bool need_key,
                                                   bool need_offsets, bool deterministic, const RefineSettings& settings) {
  return run(check_refine_backward(grad_scores, grad_offsets, query, key, offsets_in, offsets, frames, parents, settings),
             {"refine_backward", grad_scores, grad_offsets, query, key, offsets, frames, &offsets_in, &parents, need_query, need_key,
              need_offsets, deterministic});
}

}  // namespace
}  // namespace stan::cuda

STAN_CUDA_LIBRARY(m) {
  m.impl("search_backward", stan::Unpacked<&stan::cuda::search_backward>::call);
  m.impl("refine_backward", stan::Unpacked<&stan::cuda::refine_backward>::call);
}
