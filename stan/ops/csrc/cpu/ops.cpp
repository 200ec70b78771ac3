// The CPU entry points of the ops: check, make contiguous, allocate, call the kernels.
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../parameters.h"
#include "../settings.h"
#include "kernels.h"

namespace stan::cpu {
namespace {

using torch::stable::contiguous;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

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

// Search and refine: `flow` is of a search, `offsets` and `frames` are of a refinement.
Four run_search(const SearchParameters& p, const Tensor& query, const Tensor& key, const std::optional<Tensor>& flow,
                const std::optional<Tensor>& offsets, const std::optional<Tensor>& frames) {
  const ScalarType type = arithmetic_type(query.scalar_type());
  const std::vector<int64_t> shape = matches_shape(p.sizes, p.matches), none = {0};
  const Four found = {allocate(shape, type), allocate(with_two(shape), type), allocate(shape, ScalarType::Int),
                      allocate(frames ? shape : none, ScalarType::Int)};
  const auto& [scores, new_offsets, new_frames, parents] = found;
  const Tensor queries = contiguous(query), keys = contiguous(key);
  const std::optional<Tensor> shifts = contiguous_or_none(flow), around = contiguous_or_none(offsets), in = contiguous_or_none(frames);
  SearchArguments a{};
  a.p = p;
  a.type = type_of(query);
  a.query = data(queries);
  a.key = data(keys);
  a.flow = data(shifts);
  a.offsets_in = data(around);
  a.frames_in = static_cast<const int32_t*>(data(in));
  a.scores = data(scores);
  a.offsets = data(new_offsets);
  a.frames = whole_data(new_frames);
  a.parents = frames ? whole_data(parents) : nullptr;
  if (scores.numel() > 0) kernels().search(a);
  return found;
}

Three search(const Tensor& query, const Tensor& key, const std::optional<Tensor>& flow, const SearchSettings& settings) {
  const auto [scores, offsets, frames, _] =
      run_search(check_search(query, key, flow, settings), query, key, flow, std::nullopt, std::nullopt);
  return {scores, offsets, frames};
}

Four refine(const Tensor& query, const Tensor& key, const Tensor& offsets, const Tensor& frames, const RefineSettings& settings) {
  return run_search(check_refine(query, key, offsets, frames, settings), query, key, std::nullopt, offsets, frames);
}

// The backward of both: `flow` is of a search, `offsets_in` and `parents` are of a refinement; the third gradient is that of the one that
// is there.
Three match_backward(const SearchParameters& p, const Tensor& grad_scores, const Tensor& grad_offsets, const Tensor& query,
                     const Tensor& key, const std::optional<Tensor>& flow, const std::optional<Tensor>& offsets_in,
                     const Tensor& offsets, const Tensor& frames, const std::optional<Tensor>& parents, bool need_query,
                     bool need_key, bool need_shift) {
  const Tensor scores_in = contiguous(grad_scores), places_in = contiguous(grad_offsets), queries = contiguous(query);
  const Tensor keys = contiguous(key), places = contiguous(offsets), where = contiguous(frames);
  const std::optional<Tensor> shifts = contiguous_or_none(flow), around = contiguous_or_none(offsets_in);
  const std::optional<Tensor> from = contiguous_or_none(parents);
  const Tensor grad_query = need_query ? zeros_like(queries) : nothing(queries);
  const Tensor grad_key = need_key ? zeros_like(keys) : nothing(keys);
  const Tensor grad_shift = need_shift ? zeros_like(shifts ? *shifts : *around) : nothing(scores_in);
  MatchBackwardArguments a{};
  a.p = p;
  a.type = type_of(query);
  a.query = data(queries);
  a.key = data(keys);
  a.offsets = data(places);
  a.frames = whole_data(where);
  a.grad_scores = data(scores_in);
  a.grad_offsets = data(places_in);
  a.grad_query = need_query ? data(grad_query) : nullptr;
  a.grad_key = need_key ? data(grad_key) : nullptr;
  a.flow = data(shifts);
  a.grad_flow = need_shift && flow ? data(grad_shift) : nullptr;
  a.offsets_in = data(around);
  a.grad_offsets_in = need_shift && offsets_in ? data(grad_shift) : nullptr;
  a.parents = static_cast<const int32_t*>(data(from));
  if (frames.numel() > 0) kernels().match_backward(a);
  return {grad_query, grad_key, grad_shift};
}

Three search_backward(const Tensor& grad_scores, const Tensor& grad_offsets, const Tensor& query, const Tensor& key,
                      const std::optional<Tensor>& flow, const Tensor& offsets, const Tensor& frames, bool need_query, bool need_key,
                      bool need_flow, bool /*deterministic*/, const SearchSettings& settings) {
  const SearchParameters p =
      check_search_backward(grad_scores, grad_offsets, query, key, flow, offsets, frames, need_flow, settings);
  return match_backward(p, grad_scores, grad_offsets, query, key, flow, std::nullopt, offsets, frames, std::nullopt, need_query,
                        need_key, need_flow);
}

Three refine_backward(const Tensor& grad_scores, const Tensor& grad_offsets, const Tensor& query, const Tensor& key,
                      const Tensor& offsets_in, const Tensor& offsets, const Tensor& frames, const Tensor& parents, bool need_query,
                      bool need_key, bool need_offsets, bool /*deterministic*/, const RefineSettings& settings) {
  const SearchParameters p =
      check_refine_backward(grad_scores, grad_offsets, query, key, offsets_in, offsets, frames, parents, settings);
  return match_backward(p, grad_scores, grad_offsets, query, key, std::nullopt, offsets_in, offsets, frames, parents, need_query,
                        need_key, need_offsets);
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

Tensor gather(Tensor value, Tensor weights, Tensor offsets, Tensor frames, int64_t patch, int64_t dilation, int64_t stride, int64_t block,
              bool stack) {
  GatherArguments a;
  a.p = check_gather("gather", value, weights, offsets, frames, patch, dilation, stride, block);
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

Three gather_backward(Tensor grad, Tensor value, Tensor weights, Tensor offsets, Tensor frames, int64_t patch, int64_t dilation,
                      int64_t stride, int64_t block, bool stack, bool need_value, bool need_weights, bool need_offsets,
                      bool /*deterministic*/) {
  const char* op = "gather_backward";
  GatherBackwardArguments a;
  a.p = check_gather(op, value, weights, offsets, frames, patch, dilation, stride, block);
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

const float* floats(const std::optional<Tensor>& tensor) { return static_cast<const float*>(data(tensor)); }

// The sizes and the input of a convolution.
ConvolveArguments convolution_of(const Tensor& pictures, int64_t outputs) {
  ConvolveArguments a{};
  a.batch = pictures.size(0);
  a.height = int(pictures.size(1));
  a.width = int(pictures.size(2));
  a.inputs = int(pictures.size(3));
  a.outputs = int(outputs);
  a.input = floats(pictures);
  return a;
}

Tensor convolve(Tensor input, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> add, bool relu) {
  check_convolve(input, weight, bias, add);
  input = contiguous(input);
  weight = contiguous(weight);
  bias = contiguous_or_none(bias);
  add = contiguous_or_none(add);
  Tensor out = allocate({input.size(0), input.size(1), input.size(2), weight.size(0)}, ScalarType::Float);
  ConvolveArguments a = convolution_of(input, weight.size(0));
  a.weight = floats(weight);
  a.bias = floats(bias);
  a.add = floats(add);
  a.relu = relu;
  a.output = static_cast<float*>(data(out));
  if (out.numel() > 0) kernels().convolve(a);
  return out;
}

Tensor convolve_backward(Tensor grad, Tensor input) {
  check_convolve_backward(grad, input);
  grad = contiguous(grad);
  input = contiguous(input);
  Tensor grad_weight = allocate({grad.size(3), input.size(3), 3, 3}, ScalarType::Float);
  const ConvolveBackwardArguments a{convolution_of(input, grad.size(3)), floats(grad), static_cast<float*>(data(grad_weight))};
  kernels().convolve_backward(a);
  return grad_weight;
}

}  // namespace
}  // namespace stan::cpu

STABLE_TORCH_LIBRARY_IMPL(stan, CPU, m) {
  using namespace stan::cpu;
  m.impl("search", stan::Unpacked<&search>::call);
  m.impl("search_backward", stan::Unpacked<&search_backward>::call);
  m.impl("refine", stan::Unpacked<&refine>::call);
  m.impl("refine_backward", stan::Unpacked<&refine_backward>::call);
  m.impl("search_flow", TORCH_BOX(&search_flow));
  m.impl("search_flow_backward", TORCH_BOX(&search_flow_backward));
  m.impl("gather", TORCH_BOX(&gather));
  m.impl("gather_backward", TORCH_BOX(&gather_backward));
  m.impl("convolve", TORCH_BOX(&convolve));
  m.impl("convolve_backward", TORCH_BOX(&convolve_backward));
}
