// The CPU entry points of the ops: check, make contiguous, allocate, call the kernels.
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../parameters.h"
#include "kernels.h"

namespace stan::cpu {
namespace {

using torch::stable::contiguous;
using Matches = std::tuple<Tensor, Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return Type::float16;
    case ScalarType::BFloat16: return Type::bfloat16;
    case ScalarType::Double: return Type::float64;
    default: return Type::float32;
  }
}

Tensor allocate(const std::vector<int64_t>& shape, ScalarType type) { return torch::stable::empty(shape, type); }

Tensor like(const Tensor& tensor) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < tensor.dim(); ++i) shape.push_back(tensor.size(i));
  return allocate(shape, tensor.scalar_type());
}

Tensor zeros_like(const Tensor& tensor) {
  Tensor result = like(tensor);
  torch::stable::zero_(result);
  return result;
}

// A gradient nobody needs: an empty tensor.
Tensor nothing(const Tensor& tensor) { return allocate({0}, tensor.scalar_type()); }

void* data(const Tensor& tensor) { return tensor.mutable_data_ptr(); }
const void* data(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }
int32_t* whole_data(const Tensor& tensor) { return static_cast<int32_t*>(tensor.mutable_data_ptr()); }

std::optional<Tensor> contiguous_or_none(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(contiguous(*tensor)) : std::nullopt;
}

std::vector<int64_t> with_two(std::vector<int64_t> shape) {
  shape.push_back(2);
  return shape;
}

Matches search(Tensor query, Tensor key, std::optional<Tensor> flow, int64_t window, int64_t temporal_window, int64_t topk,
               int64_t heads, int64_t patch, int64_t dilation, int64_t stride, double key_stride, std::string metric,
               std::string select, std::string self_match, bool slide, bool causal) {
  SearchArguments a;
  a.p = check_search(query, key, flow, window, temporal_window, topk, heads, patch, dilation, stride, key_stride, metric, select,
                     self_match, slide, causal);
  query = contiguous(query);
  key = contiguous(key);
  flow = contiguous_or_none(flow);
  const ScalarType type = arithmetic_type(query.scalar_type());
  const std::vector<int64_t> shape = matches_shape(a.p.sizes, a.p.matches);
  Tensor scores = allocate(shape, type), offsets = allocate(with_two(shape), type), frames = allocate(shape, ScalarType::Int);
  a.type = type_of(query);
  a.query = data(query);
  a.key = data(key);
  a.flow = data(flow);
  a.scores = data(scores);
  a.offsets = data(offsets);
  a.frames = whole_data(frames);
  if (scores.numel() > 0) kernels().search(a);
  return {scores, offsets, frames};
}

Three search_backward(Tensor grad_scores, Tensor grad_offsets, Tensor query, Tensor key, std::optional<Tensor> flow, Tensor offsets,
                      Tensor frames, int64_t temporal_window, int64_t heads, int64_t patch, int64_t dilation, int64_t stride,
                      std::string metric, bool causal, bool need_query, bool need_key, bool need_flow, bool /*deterministic*/) {
  const SearchParameters p = check_search_backward(grad_scores, grad_offsets, query, key, flow, offsets, frames, temporal_window, heads,
                                                   patch, dilation, stride, metric, causal);
  STAN_CHECK(flow || !need_flow, "search_backward", "need_flow: expected false without a flow");
  grad_scores = contiguous(grad_scores);
  grad_offsets = contiguous(grad_offsets);
  query = contiguous(query);
  key = contiguous(key);
  flow = contiguous_or_none(flow);
  offsets = contiguous(offsets);
  frames = contiguous(frames);
  Tensor grad_query = need_query ? zeros_like(query) : nothing(query);
  Tensor grad_key = need_key ? zeros_like(key) : nothing(key);
  Tensor grad_flow = need_flow ? zeros_like(*flow) : nothing(grad_scores);
  MatchBackwardArguments a{};
  a.sizes = p.sizes;
  a.patch = p.patch;
  a.metric = p.metric;
  a.matches = p.matches;
  a.type = type_of(query);
  a.query = data(query);
  a.key = data(key);
  a.offsets = data(offsets);
  a.frames = whole_data(frames);
  a.grad_scores = data(grad_scores);
  a.grad_offsets = data(grad_offsets);
  a.grad_query = need_query ? data(grad_query) : nullptr;
  a.grad_key = need_key ? data(grad_key) : nullptr;
  a.flow = data(flow);
  a.grad_flow = need_flow ? data(grad_flow) : nullptr;
  a.flow_heads = p.flow_heads;
  a.slots = p.slots;
  a.temporal_window = p.temporal_window;
  a.causal = p.causal;
  if (frames.numel() > 0) kernels().match_backward(a);
  return {grad_query, grad_key, grad_flow};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> refine(Tensor query, Tensor key, Tensor offsets, Tensor frames, int64_t window,
                                                  int64_t topk, int64_t patch, int64_t dilation, int64_t stride, double key_stride,
                                                  std::string metric, bool slide) {
  RefineArguments a;
  a.p = check_refine(query, key, offsets, frames, window, topk, patch, dilation, stride, key_stride, metric, slide);
  query = contiguous(query);
  key = contiguous(key);
  offsets = contiguous(offsets);
  frames = contiguous(frames);
  const ScalarType type = arithmetic_type(query.scalar_type());
  const std::vector<int64_t> shape = matches_shape(a.p.sizes, a.p.matches);
  Tensor scores = allocate(shape, type), new_offsets = allocate(with_two(shape), type);
  Tensor new_frames = allocate(shape, ScalarType::Int), parents = allocate(shape, ScalarType::Int);
  a.type = type_of(query);
  a.query = data(query);
  a.key = data(key);
  a.offsets_in = data(offsets);
  a.frames_in = whole_data(frames);
  a.scores = data(scores);
  a.offsets = data(new_offsets);
  a.frames = whole_data(new_frames);
  a.parents = whole_data(parents);
  if (scores.numel() > 0) kernels().refine(a);
  return {scores, new_offsets, new_frames, parents};
}

Three refine_backward(Tensor grad_scores, Tensor grad_offsets, Tensor query, Tensor key, Tensor offsets_in, Tensor offsets,
                      Tensor frames, Tensor parents, int64_t patch, int64_t dilation, int64_t stride, std::string metric,
                      bool need_query, bool need_key, bool need_offsets, bool /*deterministic*/) {
  const RefineParameters p = check_refine_backward(grad_scores, grad_offsets, query, key, offsets_in, offsets, frames, parents, patch,
                                                   dilation, stride, metric);
  grad_scores = contiguous(grad_scores);
  grad_offsets = contiguous(grad_offsets);
  query = contiguous(query);
  key = contiguous(key);
  offsets_in = contiguous(offsets_in);
  offsets = contiguous(offsets);
  frames = contiguous(frames);
  parents = contiguous(parents);
  Tensor grad_query = need_query ? zeros_like(query) : nothing(query);
  Tensor grad_key = need_key ? zeros_like(key) : nothing(key);
  Tensor grad_in = need_offsets ? zeros_like(offsets_in) : nothing(offsets_in);
  MatchBackwardArguments a{};
  a.sizes = p.sizes;
  a.patch = p.patch;
  a.metric = p.metric;
  a.matches = p.matches;
  a.type = type_of(query);
  a.query = data(query);
  a.key = data(key);
  a.offsets = data(offsets);
  a.frames = whole_data(frames);
  a.grad_scores = data(grad_scores);
  a.grad_offsets = data(grad_offsets);
  a.grad_query = need_query ? data(grad_query) : nullptr;
  a.grad_key = need_key ? data(grad_key) : nullptr;
  a.offsets_in = data(offsets_in);
  a.grad_offsets_in = need_offsets ? data(grad_in) : nullptr;
  a.parents = whole_data(parents);
  a.incoming = p.incoming;
  if (frames.numel() > 0) kernels().match_backward(a);
  return {grad_query, grad_key, grad_in};
}

Tensor search_flow(Tensor forward, Tensor backward, int64_t temporal_window, int64_t stride, bool causal) {
  FlowArguments a;
  a.p = check_search_flow("search_flow", forward, backward, temporal_window, stride, causal);
  forward = contiguous(forward);
  backward = contiguous(backward);
  Tensor out = allocate(flow_shape(a.p), forward.scalar_type());
  a.type = type_of(forward);
  a.forward = data(forward);
  a.backward = data(backward);
  a.displacements = data(out);
  if (out.numel() > 0) kernels().search_flow(a);
  return out;
}

std::tuple<Tensor, Tensor> search_flow_backward(Tensor grad, Tensor forward, Tensor backward, int64_t temporal_window, int64_t stride,
                                                bool causal, bool /*deterministic*/) {
  FlowBackwardArguments a;
  a.p = check_search_flow("search_flow_backward", forward, backward, temporal_window, stride, causal);
  check_gradient("search_flow_backward", grad, flow_shape(a.p), forward);
  grad = contiguous(grad);
  forward = contiguous(forward);
  backward = contiguous(backward);
  Tensor grad_forward = like(forward), grad_backward = like(backward);
  a.type = type_of(forward);
  a.grad = data(grad);
  a.forward = data(forward);
  a.backward = data(backward);
  a.grad_forward = data(grad_forward);
  a.grad_backward = data(grad_backward);
  if (forward.numel() > 0) kernels().search_flow_backward(a);
  return {grad_forward, grad_backward};
}

Tensor gather_any(const char* op, bool stack, Tensor value, Tensor weights, Tensor offsets, Tensor frames, int64_t patch,
                  int64_t dilation, int64_t stride) {
  GatherArguments a;
  a.p = check_gather(op, value, weights, offsets, frames, patch, dilation, stride);
  a.stack = stack;
  value = contiguous(value);
  weights = contiguous(weights);
  offsets = contiguous(offsets);
  frames = contiguous(frames);
  Tensor out = allocate(gathered_shape(a.p, stack), value.scalar_type());
  a.type = type_of(value);
  a.value = data(value);
  a.weights = data(weights);
  a.offsets = data(offsets);
  a.frames = whole_data(frames);
  a.output = data(out);
  if (out.numel() > 0) kernels().gather(a);
  return out;
}

Three gather_any_backward(const char* op, bool stack, Tensor grad, Tensor value, Tensor weights, Tensor offsets, Tensor frames,
                          int64_t patch, int64_t dilation, int64_t stride, bool need_value, bool need_weights, bool need_offsets) {
  GatherBackwardArguments a;
  a.p = check_gather(op, value, weights, offsets, frames, patch, dilation, stride);
  check_gradient(op, grad, gathered_shape(a.p, stack), value);
  a.stack = stack;
  grad = contiguous(grad);
  if (need_weights || need_offsets) value = contiguous(value);  // else only its shape counts: scatter has no value to give
  weights = contiguous(weights);
  offsets = contiguous(offsets);
  frames = contiguous(frames);
  Tensor grad_value = need_value ? zeros_like(value) : nothing(value);
  Tensor grad_weights = need_weights ? like(weights) : nothing(weights);
  Tensor grad_offsets = need_offsets ? like(offsets) : nothing(offsets);
  a.type = type_of(value);
  a.grad = data(grad);
  a.value = data(value);
  a.weights = data(weights);
  a.offsets = data(offsets);
  a.frames = whole_data(frames);
  a.grad_value = need_value ? data(grad_value) : nullptr;
  a.grad_weights = need_weights ? data(grad_weights) : nullptr;
  a.grad_offsets = need_offsets ? data(grad_offsets) : nullptr;
  if (weights.numel() > 0) kernels().gather_backward(a);
  return {grad_value, grad_weights, grad_offsets};
}

Tensor gather(Tensor value, Tensor weights, Tensor offsets, Tensor frames, int64_t patch, int64_t dilation, int64_t stride) {
  return gather_any("gather", false, value, weights, offsets, frames, patch, dilation, stride);
}

Tensor gather_stack(Tensor value, Tensor weights, Tensor offsets, Tensor frames, int64_t stride) {
  return gather_any("gather_stack", true, value, weights, offsets, frames, 1, 1, stride);
}

Three gather_backward(Tensor grad, Tensor value, Tensor weights, Tensor offsets, Tensor frames, int64_t patch, int64_t dilation,
                      int64_t stride, bool need_value, bool need_weights, bool need_offsets, bool /*deterministic*/) {
  return gather_any_backward("gather_backward", false, grad, value, weights, offsets, frames, patch, dilation, stride, need_value,
                             need_weights, need_offsets);
}

Three gather_stack_backward(Tensor grad, Tensor value, Tensor weights, Tensor offsets, Tensor frames, int64_t stride, bool need_value,
                            bool need_weights, bool need_offsets, bool /*deterministic*/) {
  return gather_any_backward("gather_stack_backward", true, grad, value, weights, offsets, frames, 1, 1, stride, need_value,
                             need_weights, need_offsets);
}

}  // namespace
}  // namespace stan::cpu

STABLE_TORCH_LIBRARY_IMPL(stan, CPU, m) {
  using namespace stan::cpu;
  m.impl("search", TORCH_BOX(&search));
  m.impl("search_backward", TORCH_BOX(&search_backward));
  m.impl("refine", TORCH_BOX(&refine));
  m.impl("refine_backward", TORCH_BOX(&refine_backward));
  m.impl("search_flow", TORCH_BOX(&search_flow));
  m.impl("search_flow_backward", TORCH_BOX(&search_flow_backward));
  m.impl("gather", TORCH_BOX(&gather));
  m.impl("gather_backward", TORCH_BOX(&gather_backward));
  m.impl("gather_stack", TORCH_BOX(&gather_stack));
  m.impl("gather_stack_backward", TORCH_BOX(&gather_stack_backward));
}
