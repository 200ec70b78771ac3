// stan::search and stan::refine on the GPU.
#include <optional>
#include <tuple>
#include <vector>

#include "../parameters.h"
#include "../settings.h"
#include "launch.h"
#include "search_tile.cuh"

namespace stan::cuda {
namespace {

using Found = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // scores, offsets, frames, parents

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
         a.topk <= 32 && int64_t(a.windows) * a.window * a.window < (1 << 16);
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
    const int64_t pixels = z.batch * z.heads * z.key_frames * z.key_height * z.key_width;
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

// Search and refine: `flow` is of a search, `offsets` and `frames` are of a refinement.
Found run(const char* op, const SearchParameters& a, const Tensor& query, const Tensor& key, const std::optional<Tensor>& flow,
          const std::optional<Tensor>& offsets, const std::optional<Tensor>& frames) {
  const Device device(query);
  const bool refines = frames.has_value();
  const Found out = make_outputs(query, a.sizes, a.matches, refines);
  const Tensor &scores = std::get<0>(out), &new_offsets = std::get<1>(out), &new_frames = std::get<2>(out), &parents = std::get<3>(out);
  const int64_t queries = all_queries(a.sizes);
  if (queries == 0) return out;
  const Tensor shifts = flow ? dense(*flow) : refines ? dense(*offsets) : nothing(query);
  const Tensor where = refines ? dense(*frames) : nothing(query);
  with_arithmetic(query.scalar_type(), [&](auto number) {
    using S = decltype(number);
    const S* const data_in = input<S>(shifts);
    const Targets<S> targets = {flow && a.windows > 1 ? data_in : nullptr, refines ? data_in : nullptr,
                                refines ? input<int32_t>(where) : nullptr};
    const Records<S> own = packed<S>(op, device, query, a.heads);
    const int quads = padded(a.sizes.channels) / 4 + (a.metric == Metric::l2 ? kGram / 4 : 0), pitch = 4 * (quads | 1);
    const TilePlan plan = !refines && is_quick(a, query.scalar_type()) ? plan_tile(device, a, pitch) : TilePlan();
    const Records<S> other = packed<S>(op, device, key, a.heads, plan.threads > 0 && a.metric == Metric::l2 ? kGram : 0);
    const SearchProblem<S> problem = {a,
                                      own.pixels,
                                      other.pixels,
                                      targets,
                                      queries,
                                      S(a.key_stride),
                                      true,
                                      data<S>(scores),
                                      data<S>(new_offsets),
                                      data<int32_t>(new_frames),
                                      refines ? data<int32_t>(parents) : nullptr};
    if constexpr (std::is_same_v<S, float>) {
      if (plan.threads > 0) return run_tile(device, problem, plan, pitch);
    }
    run_general<S>(op, device, problem);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> search(const Tensor& query, const Tensor& key, const std::optional<Tensor>& flow,
                                          const SearchSettings& settings) {
  const auto [scores, offsets, frames, _] =
      run("search", check_search(query, key, flow, settings), query, key, flow, std::nullopt, std::nullopt);
  return {scores, offsets, frames};
}

Found refine(const Tensor& query, const Tensor& key, const Tensor& offsets, const Tensor& frames, const RefineSettings& settings) {
  return run("refine", check_refine(query, key, offsets, frames, settings), query, key, std::nullopt, offsets, frames);
}

}  // namespace
}  // namespace stan::cuda

STAN_CUDA_LIBRARY(m) {
  m.impl("search", stan::Unpacked<&stan::cuda::search>::call);
  m.impl("refine", stan::Unpacked<&stan::cuda::refine>::call);
}
