// stan::search_flow and its backward on the GPU.
#include "flow.cuh"

#include <tuple>
#include <vector>

#include "../parameters.h"
#include "launch.h"

namespace stan::cuda {
namespace {

int64_t tracks_of(const FlowParameters& p) { return p.batch * p.frames * p.query_height * p.query_width; }

int64_t flow_blocks(int64_t threads) { return (threads + kFlowThreads - 1) / kFlowThreads; }

template <typename S>
StepFlow<const S> step_flow(const FlowParameters& p, const Tensor& flow) {
  return {input<S>(flow), p.frames, p.height, p.width};
}

Tensor search_flow(const Tensor& forward, const Tensor& backward, int64_t temporal_window, int64_t stride, bool causal) {
  const FlowParameters p = check_search_flow("search_flow", forward, backward, temporal_window, stride, causal);
  const Device device(forward);
  const Tensor out = uninitialised(forward, flow_shape(p), forward.scalar_type());
  const Tensor ahead = dense(forward), behind = dense(backward);
  if (out.numel() == 0) return out;
  with_arithmetic(forward.scalar_type(), [&](auto number) {
    using S = decltype(number);
    launch("search_flow", device, search_flow_kernel<S>, flow_blocks(tracks_of(p)), kFlowThreads, 0, p, tracks_of(p),
           step_flow<S>(p, ahead), step_flow<S>(p, behind), data<S>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> search_flow_backward(const Tensor& grad, const Tensor& forward, const Tensor& backward,
                                                int64_t temporal_window, int64_t stride, bool causal, bool deterministic) {
  const char* op = "search_flow_backward";
  const FlowParameters p = check_search_flow(op, forward, backward, temporal_window, stride, causal);
  check_gradient(op, grad, flow_shape(p), forward);
  const Device device(forward);
  const Tensor ahead = dense(forward), behind = dense(backward), g = dense(grad);
  const Tensor displacement = search_flow(forward, backward, temporal_window, stride, causal);
  const Tensor arrived = uninitialised(forward, flow_shape(p), forward.scalar_type());
  const std::vector<int64_t> shape = {p.batch, p.frames, 2, p.height, p.width};
  const Tensor out_ahead = uninitialised(forward, shape, forward.scalar_type());
  const Tensor out_behind = uninitialised(backward, shape, forward.scalar_type());
  const double meeting = 4.0 * double(p.frames) * p.slots * double(p.query_height) * p.query_width;
  with_arithmetic(forward.scalar_type(), [&](auto number) {
    using S = decltype(number);
    const int64_t tracks = displacement.numel() == 0 ? 0 : tracks_of(p), count = ahead.numel();
    launch(op, device, flow_arrivals_kernel<S>, flow_blocks(tracks), kFlowThreads, 0, p, tracks, step_flow<S>(p, ahead),
           step_flow<S>(p, behind), input<S>(displacement), input<S>(g), data<S>(arrived));
    const Sum<S> sum_ahead(op, device, forward, count, deterministic, 1, {arrived}, meeting);
    const Sum<S> sum_behind(op, device, forward, count, deterministic, 1, {arrived}, meeting);
    sum_ahead.with(sum_behind, [&](const auto& sink_ahead, const auto& sink_behind) {
      using Sink = std::decay_t<decltype(sink_ahead)>;
      launch(op, device, flow_spread_kernel<S, Sink>, flow_blocks(tracks), kFlowThreads, 0, p, tracks, step_flow<S>(p, ahead),
             step_flow<S>(p, behind), input<S>(displacement), input<S>(arrived), sink_ahead, sink_behind);
      launch(op, device, copy_kernel<S, Sink>, flow_blocks(count), kFlowThreads, 0, sink_ahead, count, data<S>(out_ahead));
      launch(op, device, copy_kernel<S, Sink>, flow_blocks(count), kFlowThreads, 0, sink_behind, count, data<S>(out_behind));
    });
  });
  return {out_ahead, out_behind};
}

}  // namespace
}  // namespace stan::cuda

STAN_CUDA_LIBRARY(m) {
  m.impl("search_flow", TORCH_BOX(&stan::cuda::search_flow));
  m.impl("search_flow_backward", TORCH_BOX(&stan::cuda::search_flow_backward));
}
