// Following one-step flow from frame to frame, and the gradient of that.
#pragma once

#include "sample.h"
#include "support.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

// One-step flow of one direction: planes x and y of frame f of batch item b.
template <typename S>
struct FlowPlanes {
  S* data;
  int64_t plane;
  int frames;
  S* x(int64_t b, int f) const { return data + (b * frames + f) * 2 * plane; }
  S* y(int64_t b, int f) const { return x(b, f) + plane; }
};

template <typename S>
static inline S bilinear(const S* plane, const Taps<S>& t) {
  const S top = (1 - t.fx) * finite_or_zero(plane[t.i00]) + t.fx * finite_or_zero(plane[t.i01]);
  const S bottom = (1 - t.fx) * finite_or_zero(plane[t.i10]) + t.fx * finite_or_zero(plane[t.i11]);
  return (1 - t.fy) * top + t.fy * bottom;
}

// The look-up of the next step of a track that started at (x, y) and has moved by (dx, dy) so far.
template <typename S>
static inline Taps<S> track_taps(const FlowParameters& p, int x, int y, S dx, S dy) {
  return taps_at(match_position(x, dx, p.width), match_position(y, dy, p.height), 0, 0, p.height, p.width, 1, false);
}

template <typename S>
static void search_flow_with(const FlowArguments& a) {
  const FlowParameters& p = a.p;
  const int64_t plane = int64_t(p.height) * p.width;
  const int64_t queries = int64_t(p.query_height) * p.query_width;
  const FlowPlanes<const S> forward{static_cast<const S*>(a.forward), plane, p.frames};
  const FlowPlanes<const S> backward{static_cast<const S*>(a.backward), plane, p.frames};
  S* const out = static_cast<S*>(a.displacements);
  parallel(p.batch * p.frames * p.query_height, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int row = int(i % p.query_height);
      const int t = int(i / p.query_height % p.frames);
      const int64_t b = i / p.query_height / p.frames;
      for (int column = 0; column < p.query_width; ++column) {
        const int x = column * p.stride, y = row * p.stride;
        S dx = 0, dy = 0;
        for (int slot = 1; slot < p.slots; ++slot) {
          const TrackStep step = step_to(p, t, slot);
          S* at = out + ((b * p.frames + t) * (p.slots - 1) + slot - 1) * 2 * queries + int64_t(row) * p.query_width + column;
          if (step.number <= 1) dx = dy = 0;  // slots of one direction follow each other, one step more each time
          if (step.number >= 1) {
            const FlowPlanes<const S>& flow = step.forward ? forward : backward;
            const Taps<S> taps = track_taps(p, x, y, dx, dy);
            const S sx = bilinear(flow.x(b, step.from), taps), sy = bilinear(flow.y(b, step.from), taps);
            dx += sx;
            dy += sy;
          }
          at[0] = dx;
          at[queries] = dy;
        }
      }
    }
  });
}

// flow += the transpose of `bilinear`, where the flow itself was finite.
template <typename S>
static inline void bilinear_transpose(const S* plane, S* grad, const Taps<S>& t, S g) {
  const auto add = [&](int64_t i, S weight) {
    if (finite(plane[i])) grad[i] += weight * g;
  };
  add(t.i00, (1 - t.fx) * (1 - t.fy));
  add(t.i01, t.fx * (1 - t.fy));
  add(t.i10, (1 - t.fx) * t.fy);
  add(t.i11, t.fx * t.fy);
}

// d(bilinear)/dx and /dy.
template <typename S>
static inline void bilinear_slopes(const S* plane, const Taps<S>& t, S* gx, S* gy) {
  const S k00 = finite_or_zero(plane[t.i00]), k01 = finite_or_zero(plane[t.i01]);
  const S k10 = finite_or_zero(plane[t.i10]), k11 = finite_or_zero(plane[t.i11]);
  *gx = (1 - t.fy) * (k01 - k00) + t.fy * (k11 - k10);
  *gy = (1 - t.fx) * (k10 - k00) + t.fx * (k11 - k01);
}

// Walks each track back from its last step. In one round all frames t take their step number n, which they read from
// different frames, t+n-1 or t-n+1: so each frame's gradient has one writer, and the sums always run in the same order.
template <typename S>
static void search_flow_backward_with(const FlowBackwardArguments& a) {
  const FlowParameters& p = a.p;
  const int64_t plane = int64_t(p.height) * p.width;
  const int64_t queries = int64_t(p.query_height) * p.query_width;
  const S* const grad = static_cast<const S*>(a.grad);
  // What has arrived at the displacement of each query after the current step, and the displacements before it.
  Block<S> arrived(p.batch * p.frames * 2 * queries);
  for (int direction = 0; direction < 2; ++direction) {
    const bool is_forward = direction == 0;
    const FlowPlanes<const S> flow{static_cast<const S*>(is_forward ? a.forward : a.backward), plane, p.frames};
    const FlowPlanes<S> out{static_cast<S*>(is_forward ? a.grad_forward : a.grad_backward), plane, p.frames};
    parallel(p.batch * p.frames * 2 * plane, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) out.data[i] = 0;
    });
    parallel(p.batch * p.frames * 2 * queries, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) arrived[i] = 0;
    });
    for (int n = p.slots - 1; n >= 1; --n) {
      parallel(p.batch * p.frames, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int t = int(i % p.frames);
          const int64_t b = i / p.frames;
          const int target = is_forward ? t + n : t - n;
          if (target < 0 || target >= p.frames) continue;
          if (p.causal && is_forward) continue;
          const int slot = slot_of_frame(t, target, p.frames, p.temporal_window, p.causal);
          if (slot < 1 || slot >= p.slots || frame_of_slot(t, slot, p.frames, p.temporal_window, p.causal) != target) continue;
          const int f = is_forward ? target - 1 : target + 1;
          const S* g = grad + ((b * p.frames + t) * (p.slots - 1) + slot - 1) * 2 * queries;
          S* sum = arrived.get() + i * 2 * queries;
          for (int64_t q = 0; q < queries; ++q) {
            const int x = int(q % p.query_width) * p.stride, y = int(q / p.query_width) * p.stride;
            S dx = 0, dy = 0;
            for (int step = 1; step < n; ++step) {  // the track up to here; short, so walked again rather than stored
              const int at = is_forward ? t + step - 1 : t - step + 1;
              const Taps<S> taps = track_taps(p, x, y, dx, dy);
              const S sx = bilinear(flow.x(b, at), taps), sy = bilinear(flow.y(b, at), taps);
              dx += sx;
              dy += sy;
            }
            const S gx = sum[q] + g[q], gy = sum[queries + q] + g[queries + q];
            const Taps<S> taps = track_taps(p, x, y, dx, dy);
            bilinear_transpose(flow.x(b, f), out.x(b, f), taps, gx);
            bilinear_transpose(flow.y(b, f), out.y(b, f), taps, gy);
            S xx, xy, yx, yy;
            bilinear_slopes(flow.x(b, f), taps, &xx, &xy);
            bilinear_slopes(flow.y(b, f), taps, &yx, &yy);
            sum[q] = gx + anchor_of(S(x), dx, p.width).slope * (gx * xx + gy * yx);
            sum[queries + q] = gy + anchor_of(S(y), dy, p.height).slope * (gx * xy + gy * yy);
          }
        }
      });
    }
  }
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
