// stan::search and stan::refine on the GPU.
#include "launch.h"
#include "search_tile.cuh"

namespace stan::cuda {
namespace {

struct Found {
  Tensor scores, offsets, frames, parents;
};

Found make_outputs(const Tensor& query, const Sizes& z, int matches, bool parents) {
  const std::vector<int64_t> shape = matches_shape(z, matches);
  std::vector<int64_t> vectors = shape;
  vectors.push_back(2);
  const ScalarType type = arithmetic_type(query.scalar_type());
  return {uninitialised(query, shape, type), uninitialised(query, vectors, type), uninitialised(query, shape, ScalarType::Int),
          uninitialised(query, parents ? shape : std::vector<int64_t>{0}, ScalarType::Int)};
}

int64_t all_queries(const Sizes& z) { return z.batch * z.heads * z.frames * queries_of(z); }

template <typename S>
void run_general(const char* op, const Device& device, SearchProblem<S> p) {
  const size_t lists = kGeneralWarps * size_t(p.topk) * (sizeof(S) + sizeof(int32_t));
  p.shared_lists = lists <= 32 * 1024;
  launch(op, device, search_general_kernel<S>, (p.queries + kGeneralWarps - 1) / kGeneralWarps, kGeneralWarps * kWarp,
         p.shared_lists ? lists : 0, p);
}

// ------------------------------------------------------------------------------------------------------ the quick search

// Whether the settings are those of the quick search; the rest depends on shared memory.
bool is_quick(const SearchParameters& a, ScalarType type) {
  return type != ScalarType::Double && a.patch.side == 1 && a.key_stride == 1 && a.window % 2 == 1 && a.window >= 3 && a.window <= 13 &&
         a.topk <= 32 && int64_t(a.slots) * a.window * a.window < (1 << 16);
}

// Threads of a block, and the shared memory it takes; none where the tile with its surroundings fits in no way.
struct TilePlan {
  int threads = 0, capacity = 0;
  size_t shared = 0;
};

// Two blocks a multiprocessor if possible, so that one computes while the other copies.
TilePlan plan_tile(const Device& device, const SearchParameters& a, int pitch) {
  constexpr int kSlack = 3;  // pixels by which flow may differ within a tile that all sizes must provide for
  const size_t most = size_t(device.shared_per_block()), half = size_t(device.shared_per_processor() / 2 - 1024);
  for (const size_t budget : {half < most ? half : most, most}) {
    for (const int threads : {kTileThreads, kTileThreads / 2}) {
      const size_t overhead = box_start(threads, a.topk, a.window);
      if (overhead >= budget) continue;
      const int capacity = int((budget - overhead) / (pitch * sizeof(float)));
      const auto side = [&](int queries) { return int64_t(queries - 1) * a.sizes.stride + a.window + 1 + kSlack; };
      if (capacity >= side(kTileWidth) * side(threads / kTileWidth)) {
        return {threads, capacity, overhead + size_t(capacity) * pitch * sizeof(float)};
      }
    }
  }
  return {};
}

template <int kWindow>
void launch_tile(const Device& device, const TileProblem& p, const TilePlan& plan, int64_t blocks) {
  const bool l2 = p.search.metric == Metric::l2, sixteen = p.search.key.channels == 16;
  const auto kernel = l2 ? (sixteen ? search_tile_kernel<kWindow, true, 4> : search_tile_kernel<kWindow, true, 0>)
                         : (sixteen ? search_tile_kernel<kWindow, false, 4> : search_tile_kernel<kWindow, false, 0>);
  launch("search", device, kernel, blocks, plan.threads, plan.shared, p);
}

void run_tile(const Device& device, const SearchProblem<float>& search, const TilePlan& plan, int pitch) {
  const Sizes& z = search.sizes;
  const int tile_height = plan.threads / kTileWidth;
  const int tiles_x = (z.query_width + kTileWidth - 1) / kTileWidth, tiles_y = (z.query_height + tile_height - 1) / tile_height;
  const TileProblem p = {search, tiles_x, tiles_y, tile_height, plan.capacity, pitch};
  const int64_t images = z.batch * z.heads * z.frames, blocks = images * tiles_x * tiles_y;
  if (search.metric == Metric::l2) {
    const int64_t pixels = images * z.key_height * z.key_width;
    launch("search", device, gram_kernel<float>, (pixels + 255) / 256, 256, 0, search.key, pixels);
  }
  switch (search.window) {
    case 3: return launch_tile<3>(device, p, plan, blocks);
    case 5: return launch_tile<5>(device, p, plan, blocks);
    case 7: return launch_tile<7>(device, p, plan, blocks);
    case 9: return launch_tile<9>(device, p, plan, blocks);
    case 11: return launch_tile<11>(device, p, plan, blocks);
    default: return launch_tile<13>(device, p, plan, blocks);
  }
}

// ---------------------------------------------------------------------------------------------------------------- the ops

std::tuple<Tensor, Tensor, Tensor> search(const Tensor& query, const Tensor& key, const std::optional<Tensor>& flow, int64_t window,
                                          int64_t temporal_window, int64_t topk, int64_t heads, int64_t patch, int64_t dilation,
                                          int64_t stride, double key_stride, const std::string& metric, const std::string& select,
                                          const std::string& self_match, bool slide, bool causal) {
  const SearchParameters a = check_search(query, key, flow, window, temporal_window, topk, heads, patch, dilation, stride, key_stride,
                                          metric, select, self_match, slide, causal);
  const Device device(query);
  const Found out = make_outputs(query, a.sizes, a.matches, false);
  const int64_t queries = all_queries(a.sizes);
  if (queries == 0) return {out.scores, out.offsets, out.frames};
  const Tensor shifts = flow ? dense(*flow) : nothing(query);
  with_arithmetic(query.scalar_type(), [&](auto number) {
    using S = decltype(number);
    const S* const flow_data = flow && a.slots > 1 ? input<S>(shifts) : nullptr;
    const Targets<S> targets = {a.slots, flow_data, a.flow_heads, a.temporal_window, a.causal, nullptr, nullptr};
    const Records<S> own = packed<S>("search", device, query, a.sizes.heads);
    const int quads = padded(a.sizes.channels) / 4 + (a.metric == Metric::l2 ? kGram / 4 : 0), pitch = 4 * (quads | 1);
    const TilePlan plan = is_quick(a, query.scalar_type()) ? plan_tile(device, a, pitch) : TilePlan();
    const Records<S> other = packed<S>("search", device, key, a.sizes.heads, plan.threads > 0 && a.metric == Metric::l2 ? kGram : 0);
    const SearchProblem<S> problem = {
        a.sizes,  a.patch,      own.pixels,         other.pixels,          targets,  queries,  a.window,
        a.topk,   a.matches,    S(a.key_stride),    a.metric,              a.select, a.self_match, a.slide,
        true,     data<S>(out.scores), data<S>(out.offsets), data<int32_t>(out.frames), nullptr};
    if constexpr (std::is_same_v<S, float>) {
      if (plan.threads > 0) return run_tile(device, problem, plan, pitch);
    }
    run_general<S>("search", device, problem);
  });
  return {out.scores, out.offsets, out.frames};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> refine(const Tensor& query, const Tensor& key, const Tensor& offsets, const Tensor& frames,
                                                  int64_t window, int64_t topk, int64_t patch, int64_t dilation, int64_t stride,
                                                  double key_stride, const std::string& metric, bool slide) {
  const RefineParameters a = check_refine(query, key, offsets, frames, window, topk, patch, dilation, stride, key_stride, metric, slide);
  const Device device(query);
  const Found out = make_outputs(query, a.sizes, a.matches, true);
  const int64_t queries = all_queries(a.sizes);
  if (queries == 0) return {out.scores, out.offsets, out.frames, out.parents};
  const Tensor shifts = dense(offsets), where = dense(frames);
  with_arithmetic(query.scalar_type(), [&](auto number) {
    using S = decltype(number);
    const Targets<S> targets = {a.incoming, nullptr, 0, 0, false, input<S>(shifts), input<int32_t>(where)};
    const Records<S> own = packed<S>("refine", device, query, a.sizes.heads);
    const Records<S> other = packed<S>("refine", device, key, a.sizes.heads);
    run_general<S>("refine", device,
                   {a.sizes, a.patch, own.pixels, other.pixels, targets, queries, a.window, a.matches, a.matches, S(a.key_stride),
                    a.metric, Select::all, SelfMatch::keep, a.slide, true, data<S>(out.scores), data<S>(out.offsets),
                    data<int32_t>(out.frames), data<int32_t>(out.parents)});
  });
  return {out.scores, out.offsets, out.frames, out.parents};
}

}  // namespace
}  // namespace stan::cuda

STAN_CUDA_LIBRARY(m) {
  m.impl("search", TORCH_BOX(&stan::cuda::search));
  m.impl("refine", TORCH_BOX(&stan::cuda::refine));
}
