// From tensors and numbers to the structs of shapes.h: the `check_*` functions raise on anything a kernel could not handle; after
// them no index can leave its tensor. Used by the CPU and the CUDA entry points alike.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "checks.h"
#include "geometry.h"
#include "settings.h"
#include "shapes.h"

namespace stan {

inline int grid_side(int64_t side, int64_t stride) { return side == 0 ? 0 : int((side - 1) / stride + 1); }

inline void check_video(const char* op, const char* name, const Tensor& video) {
  check_rank(op, name, video, 5, "(B, T, C, H, W)");
  check_features(op, name, video);
  for (int64_t dim = 1; dim < 5; ++dim)
    STAN_CHECK(video.size(dim) <= kMaxSide, op, name, ": expected at most ", kMaxSide, " in dimension ", dim, ", got shape ",
               shape_text(video));
}

// Checks query against key; `start` is the frame of the key that the query begins with, -1 where both have the same frames.
inline Sizes check_pair(const char* op, const Tensor& query, const Tensor& key, const Settings& settings, int start = -1) {
  check_video(op, "query", query);
  check_video(op, "key", key);
  check_type(op, "key", key, query.scalar_type());
  check_device(op, "key", key, "query", query);
  check_size(op, "key", key, 0, query.size(0), "batch size");
  check_size(op, "key", key, 2, query.size(2), "channels");
  if (start < 0) check_size(op, "key", key, 1, query.size(1), "frames");
  STAN_CHECK(start < 0 || start <= key.size(1) - query.size(1), op, "start: ", query.size(1), " frames from frame ", start,
             " on are not in a key of ", key.size(1));
  Sizes s;
  s.heads = settings.heads;
  s.stride = settings.stride;
  STAN_CHECK(query.size(2) % s.heads == 0 && query.size(2) > 0, op, "heads: expected a divisor of the ", query.size(2),
             " channels, got ", s.heads);
  s.batch = query.size(0);
  s.frames = int(query.size(1));
  s.key_frames = int(key.size(1));
  s.channels = int(query.size(2) / s.heads);
  s.height = int(query.size(3));
  s.width = int(query.size(4));
  s.key_height = int(key.size(3));
  s.key_width = int(key.size(4));
  s.query_height = grid_side(s.height, s.stride);
  s.query_width = grid_side(s.width, s.stride);
  STAN_CHECK(s.frames >= 1, op, "query: expected at least one frame, got shape ", shape_text(query));
  STAN_CHECK(s.key_height >= 1 && s.key_width >= 1, op, "key: expected at least one pixel, got shape ", shape_text(key));
  return s;
}

inline int check_slots(const char* op, int64_t temporal_window, bool causal, int frames) {
  check_number(op, "temporal_window", temporal_window, 0, kMaxSide);
  const int slots = slots_of(int(temporal_window), causal);
  STAN_CHECK(causal || frames >= slots, op, "temporal_window: ", temporal_window, " searches ", slots, " frames, but the video has ",
             frames);
  return slots;
}

inline std::vector<int64_t> matches_shape(const Sizes& s, int matches) {
  return {s.batch, s.heads, s.frames, s.query_height, s.query_width, matches};
}

// The last axis of a tensor of matches.
inline int matches_of(const char* op, const char* name, const Tensor& tensor) {
  check_rank(op, name, tensor, 6, "(B, HD, T, Hq, Wq, K)");
  STAN_CHECK(tensor.size(5) >= 1 && tensor.size(5) <= kMaxSide, op, name, ": expected 1 to ", kMaxSide,
             " matches in dimension 5, got shape ", shape_text(tensor));
  return int(tensor.size(5));
}

// Flow of a search, (B, 1 or HD, T, S-1, 2, Hq, Wq); returns its head axis, 0 for none.
inline int check_flow(const char* op, const std::optional<Tensor>& flow, const Tensor& query, const Sizes& s, int slots) {
  if (!flow) return 0;
  check_rank(op, "flow", *flow, 7, "(B, 1 or HD, T, W_t-1, 2, Hq, Wq)");
  check_type(op, "flow", *flow, arithmetic_type(query.scalar_type()));
  check_device(op, "flow", *flow, "query", query);
  const int64_t heads = flow->size(1);
  STAN_CHECK(heads == 1 || heads == s.heads, op, "flow: expected 1 or ", s.heads, " heads in dimension 1, got shape ", shape_text(*flow));
  const int64_t expected[] = {s.batch, heads, s.frames, slots - 1, 2, s.query_height, s.query_width};
  const char* names[] = {"batch size", "heads", "frames", "other searched frames", "components", "query rows", "query columns"};
  for (int64_t dim = 0; dim < 7; ++dim) check_size(op, "flow", *flow, dim, expected[dim], names[dim]);
  return int(heads);
}

// `windows` are those whose candidates compete for the topk places.
inline void check_candidates(const char* op, const Settings& s, int windows) {
  const int64_t candidates = int64_t(s.window) * s.window * windows;
  STAN_CHECK(candidates < (int64_t{1} << 31), op, "window: ", s.window, " gives ", candidates, " candidates, more than 2^31");
  STAN_CHECK(s.topk <= candidates, op, "topk: expected 1 to ", candidates, ", the number of candidates, got ", s.topk);
}

inline SearchParameters parameters_of(const Settings& settings) {
  SearchParameters p;
  static_cast<Settings&>(p) = settings;
  return p;
}

// What search and its backward have in common, up to the number of matches.
inline SearchParameters check_search_inputs(const char* op, const Tensor& query, const Tensor& key, const std::optional<Tensor>& flow,
                                            const SearchSettings& settings) {
  SearchParameters p = parameters_of(settings);
  p.sizes = check_pair(op, query, key, p, p.start);
  p.windows = check_slots(op, p.temporal_window, p.causal, p.sizes.key_frames);
  p.flow_heads = check_flow(op, flow, query, p.sizes, p.windows);
  return p;
}

inline SearchParameters check_search(const Tensor& query, const Tensor& key, const std::optional<Tensor>& flow,
                                     const SearchSettings& settings) {
  SearchParameters p = check_search_inputs("search", query, key, flow, settings);
  check_candidates("search", p, p.select == Select::all ? p.windows : 1);
  const int64_t matches = int64_t(p.topk) * (p.select == Select::all ? 1 : p.windows);
  STAN_CHECK(matches <= kMaxSide, "search", "topk: expected at most ", kMaxSide, " matches in all, got ", matches);
  p.matches = int(matches);
  return p;
}

// Where matches lie and what arrives at them.
inline void check_arrivals(const char* op, const SearchParameters& p, const Tensor& query, const Tensor& grad_scores,
                           const Tensor& grad_offsets, const Tensor& offsets, const Tensor& frames) {
  const ScalarType type = arithmetic_type(query.scalar_type());
  const std::vector<int64_t> shape = matches_shape(p.sizes, p.matches);
  check_matches(op, "frames", frames, shape, false, ScalarType::Int, query);
  check_matches(op, "offsets", offsets, shape, true, type, query);
  check_matches(op, "grad_scores", grad_scores, shape, false, type, query);
  check_matches(op, "grad_offsets", grad_offsets, shape, true, type, query);
}

inline SearchParameters check_search_backward(const Tensor& grad_scores, const Tensor& grad_offsets, const Tensor& query,
                                              const Tensor& key, const std::optional<Tensor>& flow, const Tensor& offsets,
                                              const Tensor& frames, bool need_flow, const SearchSettings& settings) {
  const char* op = "search_backward";
  SearchParameters p = check_search_inputs(op, query, key, flow, settings);
  p.matches = matches_of(op, "frames", frames);
  check_arrivals(op, p, query, grad_scores, grad_offsets, offsets, frames);
  STAN_CHECK(flow || !need_flow, op, "need_flow: expected false without a flow");
  return p;
}

inline SearchParameters check_refine(const Tensor& query, const Tensor& key, const Tensor& offsets, const Tensor& frames,
                                     const RefineSettings& settings) {
  const char* op = "refine";
  SearchParameters p = parameters_of(settings);
  p.windows = matches_of(op, "frames", frames);
  p.sizes = check_pair(op, query, key, p);
  check_candidates(op, p, p.windows);
  p.matches = p.topk;
  const std::vector<int64_t> shape = matches_shape(p.sizes, p.windows);
  check_matches(op, "frames", frames, shape, false, ScalarType::Int, query);
  check_matches(op, "offsets", offsets, shape, true, arithmetic_type(query.scalar_type()), query);
  return p;
}

inline SearchParameters check_refine_backward(const Tensor& grad_scores, const Tensor& grad_offsets, const Tensor& query,
                                              const Tensor& key, const Tensor& offsets_in, const Tensor& offsets,
                                              const Tensor& frames, const Tensor& parents, const RefineSettings& settings) {
  const char* op = "refine_backward";
  SearchParameters p = parameters_of(settings);
  p.matches = matches_of(op, "frames", frames);
  p.sizes = check_pair(op, query, key, p);
  check_arrivals(op, p, query, grad_scores, grad_offsets, offsets, frames);
  check_matches(op, "parents", parents, matches_shape(p.sizes, p.matches), false, ScalarType::Int, query);
  check_rank(op, "offsets_in", offsets_in, 7, "(B, HD, T, Hq, Wq, K, 2)");
  STAN_CHECK(offsets_in.size(5) >= 1 && offsets_in.size(5) <= kMaxSide, op, "offsets_in: expected 1 to ", kMaxSide,
             " matches in dimension 5, got shape ", shape_text(offsets_in));
  p.windows = int(offsets_in.size(5));
  check_matches(op, "offsets_in", offsets_in, matches_shape(p.sizes, p.windows), true, arithmetic_type(query.scalar_type()), query);
  return p;
}

inline FlowParameters check_search_flow(const char* op, const Tensor& forward, const Tensor& backward, int64_t temporal_window,
                                        int64_t stride, bool causal) {
  check_video(op, "forward", forward);
  check_video(op, "backward", backward);
  const ScalarType type = forward.scalar_type();
  STAN_CHECK(type == arithmetic_type(type), op, "forward: expected float32 or float64, got ", type_name(type));
  check_type(op, "backward", backward, type);
  check_device(op, "backward", backward, "forward", forward);
  STAN_CHECK(forward.size(2) == 2, op, "forward: expected 2 components in dimension 2, got shape ", shape_text(forward));
  const char* names[] = {"batch size", "frames", "components", "rows", "columns"};
  for (int64_t dim = 0; dim < 5; ++dim) check_size(op, "backward", backward, dim, forward.size(dim), names[dim]);
  for (int64_t dim = 1; dim < 5; ++dim)
    STAN_CHECK(forward.size(dim) >= 1, op, "forward: expected at least one frame and one pixel, got shape ", shape_text(forward));
  FlowParameters p;
  p.batch = forward.size(0);
  p.frames = int(forward.size(1));
  p.height = int(forward.size(3));
  p.width = int(forward.size(4));
  p.stride = check_number(op, "stride", stride, 1, kMaxSide);
  p.query_height = grid_side(p.height, stride);
  p.query_width = grid_side(p.width, stride);
  p.slots = check_slots(op, temporal_window, causal, p.frames);
  p.temporal_window = int(temporal_window);
  p.causal = causal;
  return p;
}

// Shape of what search_flow returns, and of its gradient.
inline std::vector<int64_t> flow_shape(const FlowParameters& p) {
  return {p.batch, p.frames, p.slots - 1, 2, p.query_height, p.query_width};
}

// Shape of the weights of a gather, and of its frames.
inline std::vector<int64_t> weights_shape(const GatherParameters& p) { return matches_shape(p.block_sizes(), p.matches); }

inline GatherParameters check_gather(const char* op, const Tensor& value, const Tensor& weights, const Tensor& offsets,
                                     const Tensor& frames, int64_t patch, int64_t dilation, int64_t stride, int64_t block) {
  GatherParameters p;
  check_video(op, "value", value);
  p.matches = matches_of(op, "weights", weights);
  Sizes& s = p.sizes;
  s.heads = check_number(op, "weights: heads", weights.size(1), 1, kMaxSide);
  STAN_CHECK(value.size(2) % s.heads == 0 && value.size(2) > 0, op, "value: expected channels that the ", s.heads,
             " heads of weights divide, got shape ", shape_text(value));
  s.batch = value.size(0);
  s.frames = check_number(op, "weights: frames", weights.size(2), 1, kMaxSide);
  s.key_frames = check_number(op, "value: frames", value.size(1), 1, kMaxSide);
  s.channels = int(value.size(2) / s.heads);
  s.key_height = check_number(op, "value: rows", value.size(3), 1, kMaxSide);
  s.key_width = check_number(op, "value: columns", value.size(4), 1, kMaxSide);
  s.stride = check_number(op, "stride", stride, 1, kMaxSide);
  p.block = check_number(op, "block", block, 1, kMaxSide);
  p.block_rows = check_number(op, "weights: query rows", weights.size(3), 0, kMaxSide / stride + 1);
  p.block_columns = check_number(op, "weights: query columns", weights.size(4), 0, kMaxSide / stride + 1);
  if (block == 1) {
    s.query_height = p.block_rows;
    s.query_width = p.block_columns;
  } else {  // weights leave the last block's size open: the grid is that of the value
    s.query_height = grid_side(s.key_height, stride);
    s.query_width = grid_side(s.key_width, stride);
    check_size(op, "weights", weights, 3, grid_side(s.query_height, block), "rows of blocks");
    check_size(op, "weights", weights, 4, grid_side(s.query_width, block), "columns of blocks");
  }
  const int longest = s.query_height > s.query_width ? s.query_height : s.query_width;
  if (p.block > longest && longest > 0) p.block = longest;  // which changes nothing, and block * stride stays small
  p.patch = check_patch(op, patch, dilation);
  const ScalarType type = arithmetic_type(value.scalar_type());
  const std::vector<int64_t> shape = weights_shape(p);
  check_matches(op, "weights", weights, shape, false, type, value);
  check_matches(op, "offsets", offsets, shape, true, type, value);
  check_matches(op, "frames", frames, shape, false, ScalarType::Int, value);
  return p;
}

// Shape of what gather (stack false) or gather_stack (stack true) returns, and of its gradient.
inline std::vector<int64_t> gathered_shape(const GatherParameters& p, bool stack) {
  const Sizes& s = p.sizes;
  if (stack) return {s.batch, s.heads, p.matches, s.frames, s.channels, s.query_height, s.query_width};
  return {s.batch, s.frames, int64_t(s.heads) * s.channels, s.query_height, s.query_width};
}

// The gradient that arrives at an output must have its shape, type and device.
inline void check_gradient(const char* op, const Tensor& grad, const std::vector<int64_t>& shape, const Tensor& like) {
  check_type(op, "grad", grad, like.scalar_type());
  check_device(op, "grad", grad, "the inputs", like);
  bool same = grad.dim() == int64_t(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) same = grad.size(int64_t(i)) == shape[i];
  STAN_CHECK(same, op, "grad: expected shape ", shape_text(shape), ", got ", shape_text(grad));
}

// Pictures of a 3x3 convolution, channels last.
inline void check_pictures(const char* op, const char* name, const Tensor& pictures) {
  check_rank(op, name, pictures, 4, "(N, H, W, C)");
  check_type(op, name, pictures, ScalarType::Float);
  for (int64_t dim = 1; dim < 4; ++dim)
    STAN_CHECK(pictures.size(dim) >= 1 && pictures.size(dim) <= kMaxSide, op, name, ": expected 1 to ", kMaxSide, " in dimension ", dim,
               ", got shape ", shape_text(pictures));
}

// Pictures of the same number and size as those of the input.
inline void check_beside(const char* op, const char* name, const Tensor& pictures, const Tensor& input) {
  check_pictures(op, name, pictures);
  check_device(op, name, pictures, "input", input);
  const char* names[] = {"pictures", "rows", "columns"};
  for (int64_t dim = 0; dim < 3; ++dim) check_size(op, name, pictures, dim, input.size(dim), names[dim]);
}

inline void check_convolve(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& add) {
  const char* op = "convolve";
  check_pictures(op, "input", input);
  check_rank(op, "weight", weight, 4, "(outputs, inputs, 3, 3)");
  check_type(op, "weight", weight, ScalarType::Float);
  check_device(op, "weight", weight, "input", input);
  const int64_t expected[] = {input.size(3), 3, 3};
  const char* names[] = {"inputs", "rows", "columns"};
  for (int64_t dim = 1; dim < 4; ++dim) check_size(op, "weight", weight, dim, expected[dim - 1], names[dim - 1]);
  STAN_CHECK(weight.size(0) >= 1 && weight.size(0) <= kMaxSide, op, "weight: expected 1 to ", kMaxSide, " outputs, got shape ",
             shape_text(weight));
  if (bias) {
    check_rank(op, "bias", *bias, 1, "(outputs)");
    check_type(op, "bias", *bias, ScalarType::Float);
    check_device(op, "bias", *bias, "input", input);
    check_size(op, "bias", *bias, 0, weight.size(0), "outputs");
  }
  if (add) {
    check_beside(op, "add", *add, input);
    check_size(op, "add", *add, 3, weight.size(0), "outputs");
  }
}

inline void check_convolve_backward(const Tensor& grad, const Tensor& input) {
  check_pictures("convolve_backward", "input", input);
  check_beside("convolve_backward", "grad", grad, input);
}

}  // namespace stan
