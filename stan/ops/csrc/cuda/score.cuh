// Bilinear samples of pixels, scores of patches, and where a query's windows lie.
#pragma once

#include <cstdint>

#include "../geometry.h"
#include "../shapes.h"
#include "device.cuh"

namespace stan::cuda {

// The four pixels around a position, as indices into the records, and how far the position lies towards the second of each pair: i01
// is the next along x, i10 the next along y.
template <typename S>
struct Taps {
  int64_t i00, i01, i10, i11;
  S fx, fy;

  __device__ bool whole() const { return fx == S(0) && fy == S(0); }
  __device__ S w00() const { return (S(1) - fx) * (S(1) - fy); }
  __device__ S w01() const { return fx * (S(1) - fy); }
  __device__ S w10() const { return (S(1) - fx) * fy; }
  __device__ S w11() const { return fx * fy; }
};

// Taps of the split position (x, y) moved by whole pixels (dx, dy); outside the image pixels reflect. With `tight` the second
// tap of a whole coordinate, which has weight 0, is the first again: a NaN that lies there cannot leak into the sample.
template <typename S>
__device__ inline Taps<S> taps_at(const Pixels<S>& pixels, int64_t image, const Split<S>& x, const Split<S>& y, int dx, int dy,
                                  bool tight) {
  const int x0 = reflect_index(x.whole + dx, pixels.width);
  const int y0 = reflect_index(y.whole + dy, pixels.height);
  const int x1 = tight && x.fraction == S(0) ? x0 : reflect_index(x.whole + dx + 1, pixels.width);
  const int y1 = tight && y.fraction == S(0) ? y0 : reflect_index(y.whole + dy + 1, pixels.height);
  return {pixels.index(image, y0, x0), pixels.index(image, y0, x1), pixels.index(image, y1, x0), pixels.index(image, y1, x1),
          x.fraction, y.fraction};
}

// Four channels of the sample, from channel c; `data` are the records.
template <typename S>
__device__ inline Four<S> sample4(const S* data, const Taps<S>& t, int c) {
  Four<S> a = load4(data + t.i00 + c);
  if (t.whole()) return a;
  const Four<S> b = load4(data + t.i01 + c), d = load4(data + t.i10 + c), e = load4(data + t.i11 + c);
#pragma unroll
  for (int i = 0; i < 4; ++i) a.v[i] = t.w00() * a.v[i] + t.w01() * b.v[i] + t.w10() * d.v[i] + t.w11() * e.v[i];
  return a;
}

// Sums over four channels of d * dsample/dx and d * dsample/dy, added to gx and gy. At a whole coordinate the derivative is the
// right-hand one, to a tap that has weight 0 in the sample: `beside` are the taps without `tight`, `t` those with it. What is no
// number there gives way to what `t` has in its place, so that it cannot leak in here either.
template <typename S>
__device__ inline void slopes4(const S* data, const Taps<S>& t, const Taps<S>& beside, int c, const Four<S>& d, S* gx, S* gy) {
  const Four<S> k00 = load4(data + t.i00 + c);
  Four<S> k01 = load4(data + beside.i01 + c), k10 = load4(data + beside.i10 + c), k11 = load4(data + beside.i11 + c);
  if (t.fx == S(0) || t.fy == S(0)) {
    const auto choose = [&](Four<S>* wanted, int64_t instead) {
      const Four<S> other = load4(data + instead + c);
#pragma unroll
      for (int i = 0; i < 4; ++i) wanted->v[i] = finite(wanted->v[i]) ? wanted->v[i] : other.v[i];
    };
    choose(&k01, t.i01);
    choose(&k10, t.i10);
    choose(&k11, t.i11);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const S top = k01.v[i] - k00.v[i], bottom = k11.v[i] - k10.v[i];
    const S left = k10.v[i] - k00.v[i], right = k11.v[i] - k01.v[i];
    *gx += d.v[i] * (top + t.fy * (bottom - top));
    *gy += d.v[i] * (left + t.fx * (right - left));
  }
}

// The transpose of sampling: adds weight * d to the four pixels in `sink`, from channel c.
template <typename S, typename Sink>
__device__ inline void spread4(const Sink& sink, const Taps<S>& t, int c, const Four<S>& d, S weight) {
  const auto add = [&](int64_t index, S tap_weight) {
    if (tap_weight == S(0)) return;
    Four<S> share;
#pragma unroll
    for (int i = 0; i < 4; ++i) share.v[i] = tap_weight * (weight * d.v[i]);
    sink.add4(index + c, share);
  };
  add(t.i00, t.w00());
  add(t.i01, t.w01());
  add(t.i10, t.w10());
  add(t.i11, t.w11());
}

// Score of the key patch around the split position (x, y) against the patch of query q. Channels are summed in order.
template <typename S>
__device__ S score_at(const Pixels<S>& query, const Pixels<S>& key, const Patch& patch, Metric metric, const Query& q,
                      int64_t key_image, const Split<S>& x, const Split<S>& y) {
  S sum = 0;
  for (int j = 0; j < patch.side; ++j) {
    const int dy = patch.offset(j);
    for (int i = 0; i < patch.side; ++i) {
      const int dx = patch.offset(i);
      const Taps<S> taps = taps_at(key, key_image, x, y, dx, dy, true);
      const S* own = query.at(q.image, reflect_index(q.y + dy, query.height), reflect_index(q.x + dx, query.width));
      for (int c = 0; c < key.channels; c += 4) {
        const Four<S> k = sample4(key.data, taps, c), f = load4(own + c);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (metric == Metric::l2) {
            const S difference = f.v[e] - k.v[e];
            sum -= difference * difference;
          } else {
            sum += f.v[e] * k.v[e];
          }
        }
      }
    }
  }
  return sum;
}

// The window of one slot of a query: of one searched frame, or around one match that is to be refined.
template <typename S>
struct Target {
  int frame;  // -1: no valid candidate
  Anchor<S> x, y;
};

// Where the windows of a query lie. A search takes frames from time and shifts from the flow, refine takes both from an earlier
// search; after that they are the same.
template <typename S>
struct Targets {
  // search: flow (B, HF, T, windows-1, 2, Hq, Wq), or null for zero
  const S* flow;
  // refine: offsets (B, HD, T, Hq, Wq, windows, 2) and frames (..., windows), which its backward does without; null for a search
  const S* offsets;
  const int32_t* frames;

  __device__ int64_t flow_index(const SearchParameters& p, const Query& q, int slot) const {
    const int64_t head = p.flow_heads == 1 ? 0 : q.head;
    return (((q.batch * p.flow_heads + head) * p.sizes.frames + q.t) * (p.windows - 1) + slot - 1) * 2 * queries_of(p.sizes) +
           q.in_image;
  }

  __device__ Target<S> of(const SearchParameters& p, const Query& q, int slot) const {
    const Sizes& z = p.sizes;
    S dx = 0, dy = 0;
    int frame = -1;
    if (offsets != nullptr) {
      const int64_t at = q.number * p.windows + slot;
      if (frames != nullptr && frames[at] >= 0 && frames[at] < z.key_frames) frame = frames[at];
      dx = offsets[2 * at];
      dy = offsets[2 * at + 1];
    } else {
      frame = p.frame_of(q.t, slot);
      if (flow != nullptr && slot > 0) {
        const int64_t at = flow_index(p, q, slot);
        dx = flow[at];
        dy = flow[at + queries_of(z)];
      }
    }
    return {frame, anchor_of(S(q.x), dx, z.key_width), anchor_of(S(q.y), dy, z.key_height)};
  }
};

}  // namespace stan::cuda
