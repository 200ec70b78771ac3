// Following one-step flow from frame to frame, and the gradient of that.
#pragma once

#include <cstdint>

#include "../geometry.h"
#include "../shapes.h"
#include "device.cuh"

namespace stan::cuda {

constexpr int kFlowThreads = 256;

// One-step flow of one direction, (B, T, 2, H, W).
template <typename S>
struct StepFlow {
  S* data;
  int frames, height, width;

  __device__ int64_t plane() const { return int64_t(height) * width; }
  __device__ int64_t x(int64_t b, int f) const { return (b * frames + f) * 2 * plane(); }
};

// The four pixels of one look-up, as indices into a plane.
template <typename S>
struct FlowTaps {
  int64_t i[4];
  S w[4];
  S fx, fy;
};

// The look-up of the next step of a track that started at (x, y) and has moved by (dx, dy) so far.
template <typename S>
__device__ FlowTaps<S> flow_taps(int x, int y, S dx, S dy, int height, int width) {
  const Split<S> sx = match_position(x, dx, width), sy = match_position(y, dy, height);
  const int x0 = reflect_index(sx.whole, width), x1 = reflect_index(sx.whole + 1, width);
  const int64_t y0 = int64_t(reflect_index(sy.whole, height)) * width, y1 = int64_t(reflect_index(sy.whole + 1, height)) * width;
  const S fx = sx.fraction, fy = sy.fraction;
  return {{y0 + x0, y0 + x1, y1 + x0, y1 + x1},
          {(S(1) - fx) * (S(1) - fy), fx * (S(1) - fy), (S(1) - fx) * fy, fx * fy},
          fx,
          fy};
}

template <typename S>
__device__ inline S look_up(const S* plane, const FlowTaps<S>& t) {
  S sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) sum += t.w[i] * finite_or_zero(plane[t.i[i]]);
  return sum;
}

// d(look_up)/dx and /dy.
template <typename S>
__device__ inline void look_up_slopes(const S* plane, const FlowTaps<S>& t, S* gx, S* gy) {
  S k[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) k[i] = finite_or_zero(plane[t.i[i]]);
  *gx = (S(1) - t.fy) * (k[1] - k[0]) + t.fy * (k[3] - k[2]);
  *gy = (S(1) - t.fx) * (k[2] - k[0]) + t.fx * (k[3] - k[1]);
}

// One query of search_flow, without heads; and where the displacement to a slot lies in (B, T, slots-1, 2, Hq, Wq).
struct Track {
  int64_t batch, in_image;
  int t, x, y;

  __device__ int64_t index(const FlowParameters& p, int slot) const {
    return ((batch * p.frames + t) * (p.slots - 1) + slot - 1) * 2 * (int64_t(p.query_height) * p.query_width) + in_image;
  }
};

__device__ inline Track track_at(const FlowParameters& p, int64_t number) {
  const int64_t queries = int64_t(p.query_height) * p.query_width;
  Track track;
  track.in_image = number % queries;
  track.t = int(number / queries % p.frames);
  track.batch = number / queries / p.frames;
  track.x = int(track.in_image % p.query_width) * p.stride;
  track.y = int(track.in_image / p.query_width) * p.stride;
  return track;
}

// Slots of one direction follow each other, one step more each time, so that one walk over them suffices.
template <typename S>
__global__ void __launch_bounds__(kFlowThreads)
    search_flow_kernel(FlowParameters p, int64_t tracks, StepFlow<const S> forward, StepFlow<const S> backward, S* displacement) {
  const int64_t number = int64_t(blockIdx.x) * kFlowThreads + threadIdx.x;
  if (number >= tracks) return;
  const Track track = track_at(p, number);
  const int64_t queries = int64_t(p.query_height) * p.query_width;
  S dx = 0, dy = 0;
  for (int slot = 1; slot < p.slots; ++slot) {
    const TrackStep step = step_to(p, track.t, slot);
    if (step.number <= 1) dx = dy = 0;
    if (step.number >= 1) {
      const S* const plane = (step.forward ? forward.data : backward.data) + forward.x(track.batch, step.from);
      const FlowTaps<S> taps = flow_taps(track.x, track.y, dx, dy, p.height, p.width);
      const S sx = look_up(plane, taps), sy = look_up(plane + forward.plane(), taps);
      dx += sx;
      dy += sy;
    }
    const int64_t at = track.index(p, slot);
    displacement[at] = dx;
    displacement[at + queries] = dy;
  }
}

// The first half of the backward: what has arrived at each displacement in all, its own gradient and that through the later steps of its
// track. `displacement` is what search_flow returned.
template <typename S>
__global__ void __launch_bounds__(kFlowThreads)
    flow_arrivals_kernel(FlowParameters p, int64_t tracks, StepFlow<const S> forward, StepFlow<const S> backward,
                         const S* displacement, const S* grad, S* arrived) {
  const int64_t number = int64_t(blockIdx.x) * kFlowThreads + threadIdx.x;
  if (number >= tracks) return;
  const Track track = track_at(p, number);
  const int64_t queries = int64_t(p.query_height) * p.query_width;
  S gx = 0, gy = 0;  // through the later steps
  for (int slot = p.slots - 1; slot >= 1; --slot) {
    const TrackStep step = step_to(p, track.t, slot);
    const int64_t at = track.index(p, slot);
    if (step.number == 0) {
      arrived[at] = arrived[at + queries] = 0;
      continue;
    }
    gx += grad[at];
    gy += grad[at + queries];
    arrived[at] = gx;
    arrived[at + queries] = gy;
    if (step.number == 1) {  // the first step: before it nothing had moved
      gx = gy = 0;
      continue;
    }
    const int64_t before = track.index(p, slot - 1);
    const S dx = displacement[before], dy = displacement[before + queries];
    const S* const plane = (step.forward ? forward.data : backward.data) + forward.x(track.batch, step.from);
    const FlowTaps<S> taps = flow_taps(track.x, track.y, dx, dy, p.height, p.width);
    S xx, xy, yx, yy;
    look_up_slopes(plane, taps, &xx, &xy);
    look_up_slopes(plane + forward.plane(), taps, &yx, &yy);
    const S through_x = anchor_of(S(track.x), dx, p.width).slope * (gx * xx + gy * yx);
    const S through_y = anchor_of(S(track.y), dy, p.height).slope * (gx * xy + gy * yy);
    gx += through_x;
    gy += through_y;
  }
}

// The second half: every look-up hands what arrived to its four pixels, where the flow itself was finite.
template <typename S, typename Sink>
__global__ void __launch_bounds__(kFlowThreads)
    flow_spread_kernel(FlowParameters p, int64_t tracks, StepFlow<const S> forward, StepFlow<const S> backward,
                       const S* displacement, const S* arrived, Sink grad_forward, Sink grad_backward) {
  const int64_t number = int64_t(blockIdx.x) * kFlowThreads + threadIdx.x;
  if (number >= tracks) return;
  const Track track = track_at(p, number);
  const int64_t queries = int64_t(p.query_height) * p.query_width;
  for (int slot = 1; slot < p.slots; ++slot) {
    const TrackStep step = step_to(p, track.t, slot);
    if (step.number == 0) continue;
    S dx = 0, dy = 0;
    if (step.number > 1) {
      const int64_t before = track.index(p, slot - 1);
      dx = displacement[before];
      dy = displacement[before + queries];
    }
    const S* const flow = step.forward ? forward.data : backward.data;
    const FlowTaps<S> taps = flow_taps(track.x, track.y, dx, dy, p.height, p.width);
    const int64_t at = track.index(p, slot);
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t plane = forward.x(track.batch, step.from) + axis * forward.plane();
      const S g = arrived[at + axis * queries];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (taps.w[i] == S(0) || !finite(flow[plane + taps.i[i]])) continue;
        if (step.forward) {
          grad_forward.add(plane + taps.i[i], taps.w[i] * g);
        } else {
          grad_backward.add(plane + taps.i[i], taps.w[i] * g);
        }
      }
    }
  }
}

// Copies what `read` finds into a plain tensor.
template <typename S, typename Read>
__global__ void __launch_bounds__(kFlowThreads) copy_kernel(Read read, int64_t count, S* out) {
  const int64_t i = int64_t(blockIdx.x) * kFlowThreads + threadIdx.x;
  if (i < count) out[i] = read(i);
}

}  // namespace stan::cuda
