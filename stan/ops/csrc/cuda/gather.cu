// stan::gather, stan::gather_stack and their backwards on the GPU.
#include "gather.cuh"

#include <tuple>
#include <vector>

#include "../parameters.h"
#include "launch.h"

namespace stan::cuda {
namespace {

template <typename S>
GatherProblem<S> problem_of(const GatherParameters& p, const Pixels<S>& value, const Tensor& weights, const Tensor& offsets,
                            const Tensor& frames, bool stack) {
  return {p, grid_patch(p.patch, p.sizes.stride), value, input<S>(weights), input<S>(offsets), input<int32_t>(frames), stack};
}

Tensor gather(const Tensor& value, const Tensor& weights, const Tensor& offsets, const Tensor& frames, int64_t patch, int64_t dilation,
              int64_t stride, int64_t block, bool stack) {
  const char* op = "gather";
  const GatherParameters p = check_gather(op, value, weights, offsets, frames, patch, dilation, stride, block);
  const Device device(value);
  const Tensor out = uninitialised(value, gathered_shape(p, stack), value.scalar_type());
  if (out.numel() == 0) return out;
  const Tensor w = dense(weights), o = dense(offsets), f = dense(frames);
  const int64_t images = p.sizes.batch * p.sizes.heads * p.sizes.frames;
  const int outputs = stack ? p.matches : 1;
  with_types(value.scalar_type(), [&](auto element, auto number) {
    using E = decltype(element);
    using S = decltype(number);
    const Records<S> rows = packed<S>(op, device, value, p.sizes.heads);
    const GatherProblem<S> g = problem_of(p, rows.pixels, w, o, f, stack);
    if (p.sizes.channels <= 16) {
      launch(op, device, gather_kernel<S, E, 4>, gather_blocks(images, queries_of(p.sizes), 4, outputs), kGatherThreads, 0, g, data<E>(out));
    } else {
      launch(op, device, gather_kernel<S, E, 8>, gather_blocks(images, queries_of(p.sizes), 8, outputs), kGatherThreads, 0, g, data<E>(out));
    }
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> gather_backward(const Tensor& grad, const Tensor& value, const Tensor& weights, const Tensor& offsets,
                                                   const Tensor& frames, int64_t patch, int64_t dilation, int64_t stride, int64_t block,
                                                   bool stack, bool need_value, bool need_weights, bool need_offsets, bool deterministic) {
  const char* op = "gather_backward";
  const GatherParameters p = check_gather(op, value, weights, offsets, frames, patch, dilation, stride, block);
  check_gradient(op, grad, gathered_shape(p, stack), value);
  const Device device(value);
  const Sizes& z = p.sizes;
  const Tensor arrived = dense(grad), w = dense(weights), o = dense(offsets), f = dense(frames);
  const ScalarType type = arithmetic_type(value.scalar_type());
  std::vector<int64_t> shape = weights_shape(p);
  const Tensor out_weights = need_weights ? uninitialised(w, shape, type) : nothing(w);
  shape.push_back(2);
  const Tensor out_offsets = need_offsets ? uninitialised(w, shape, type) : nothing(w);
  Tensor out_value = nothing(value);
  const int64_t blocks = z.batch * z.heads * z.frames * p.blocks();
  const double meeting = 4.0 * double(z.frames) * double(queries_of(z)) * p.matches * p.patch.side * p.patch.side;
  int lanes = 1;
  while (lanes < kWarp && 4 * lanes < z.channels) lanes *= 2;
  with_types(value.scalar_type(), [&](auto element, auto number) {
    using E = decltype(element);
    using S = decltype(number);
    const bool need_matches = need_weights || need_offsets;
    const Records<S> rows = need_matches ? packed<S>(op, device, value, z.heads) : Records<S>{nothing(w), pixels_of<S>(value, z.heads)};
    const GatherProblem<S> g = problem_of(p, rows.pixels, w, o, f, stack);
    const int64_t numbers = need_value ? images_of(value, z.heads) * rows.pixels.image_size() : 0;
    const Sum<S> sum(op, device, value, numbers, deterministic, 1, {w, arrived}, meeting);
    sum.with([&](const auto& sink) {
      using Sink = std::decay_t<decltype(sink)>;
      launch(op, device, gather_backward_kernel<S, E, Sink>, (blocks + kGatherBackwardWarps - 1) / kGatherBackwardWarps,
             kGatherBackwardWarps * kWarp, 0, g, Arriving<E>{input<E>(arrived), stack}, lanes, blocks, need_value, sink,
             need_weights ? data<S>(out_weights) : static_cast<S*>(nullptr), need_offsets ? data<S>(out_offsets) : static_cast<S*>(nullptr));
      if (need_value) out_value = unpacked<S>(op, device, sink, rows.pixels, value, z.heads);
    });
  });
  return {out_value, out_weights, out_offsets};
}

}  // namespace
}  // namespace stan::cuda

STAN_CUDA_LIBRARY(m) {
  m.impl("gather", TORCH_BOX(&stan::cuda::gather));
  m.impl("gather_backward", TORCH_BOX(&stan::cuda::gather_backward));
}
