// Backward of search and refine: everything is computed anew from the K matches that were kept.
//
// One warp a query. The lanes form groups; each group takes one match, each lane of it four channels. Keys are read and their gradient
// is added in whole records. The query's own gradient and the gradients of what shifted its windows belong to the warp alone.
#pragma once

#include <cstdint>

#include "../geometry.h"
#include "../shapes.h"
#include "device.cuh"
#include "score.cuh"

namespace stan::cuda {

constexpr int kBackwardWarps = 8;

template <typename S>
struct MatchBackward : SearchParameters {
  Pixels<S> query, key;
  Targets<S> targets;
  int64_t items;  // warps in all: queries, or queries without their heads
  int lanes;  // of one group, a power of two
  bool over_heads;  // a warp works for all heads of a query, because they share one flow
  bool need_key;
  const S* grad_scores;
  const S* grad_offsets;
  const S* stored_offsets;
  const int32_t* stored_frames;
  const int32_t* parents;  // of refine; null for a search
  S* query_rows;           // records like the query's: its gradient, where each pixel has one query (patch 1); or null
  bool need_query;
  S* grad_shift;           // of the flow, or of the incoming offsets; zero at first; or null
};

// Sums of the position gradients of one query by slot. The first 32 are kept in registers, one a lane; the rest in memory that no
// other warp touches. Always in the order of the matches.
template <typename S>
class ShiftGradient {
 public:
  __device__ ShiftGradient(const MatchBackward<S>& a) : a_(a), first_(a.parents == nullptr ? 1 : 0) {}

  // Adds (gx, gy) of a match to its slot; -1: nowhere. Called by all lanes with the same numbers.
  __device__ void add(const Query& q, int slot, S gx, S gy) {
    const int at = slot - first_;
    if (slot < first_ || at >= a_.windows - first_ || at % kWarp != lane_of_thread()) return;
    if (at < kWarp) {
      x_ += gx;
      y_ += gy;
    } else {
      store(q, slot, gx, gy);
    }
  }

  __device__ void finish(const Query& q) {
    const int slot = lane_of_thread() + first_;
    if (slot < a_.windows) store(q, slot, x_, y_);
  }

 private:
  __device__ void store(const Query& q, int slot, S gx, S gy) const {
    const Target<S> t = a_.targets.of(a_, q, slot);
    const bool flow = a_.parents == nullptr;
    const int64_t x = flow ? a_.targets.flow_index(a_, q, slot) : 2 * (q.number * a_.windows + slot);
    a_.grad_shift[x] += gx * t.x.slope;
    a_.grad_shift[x + (flow ? queries_of(a_.sizes) : 1)] += gy * t.y.slope;
  }

  const MatchBackward<S>& a_;
  int first_;
  S x_ = 0, y_ = 0;
};

// What one lane knows of the match its group works on.
template <typename S>
struct GroupMatch {
  bool there = false;
  int frame = -1, slot = -1;
  S g = 0;         // gradient that arrives at the score
  S gx = 0, gy = 0;  // gradient that arrives at the offset
  Split<S> x = {0, S(0)}, y = {0, S(0)};
};

template <typename S>
__device__ GroupMatch<S> group_match(const MatchBackward<S>& a, const Query& q, int k) {
  GroupMatch<S> m;
  if (k >= a.matches) return m;
  const int64_t at = q.number * a.matches + k;
  m.frame = a.stored_frames[at];
  if (m.frame < 0 || m.frame >= a.sizes.key_frames) return m;
  m.there = true;
  m.g = a.grad_scores[at];
  m.gx = a.grad_offsets[2 * at];
  m.gy = a.grad_offsets[2 * at + 1];
  m.slot = a.parents != nullptr ? a.parents[at] : a.slot_of(q.t, m.frame);
  m.x = match_position(q.x, a.stored_offsets[2 * at], a.sizes.key_width);
  m.y = match_position(q.y, a.stored_offsets[2 * at + 1], a.sizes.key_height);
  return m;
}

template <typename S, typename Sink>
__device__ void backward_of_query(const MatchBackward<S>& a, const Query& q, const Sink& grad_key, const Sink& grad_query,
                                  ShiftGradient<S>& shifts) {
  const int lane = lane_of_thread(), groups = kWarp / a.lanes, group = lane / a.lanes, part = lane % a.lanes;
  const int run = 4 * a.lanes;  // channels of one pass
  for (int c0 = 0; c0 < a.key.channels; c0 += run) {
    const int c = c0 + 4 * part;
    const bool some = c < a.key.channels;
    for (int pixel = 0; pixel < a.patch.side * a.patch.side; ++pixel) {
      const int dx = a.patch.offset(pixel % a.patch.side), dy = a.patch.offset(pixel / a.patch.side);
      const int64_t own = a.query.index(q.image, reflect_index(q.y + dy, a.query.height), reflect_index(q.x + dx, a.query.width)) + c;
      const Four<S> f = some ? load4(a.query.data + own) : Four<S>{};
      Four<S> sum = {};
      for (int k0 = 0; k0 < a.matches; k0 += groups) {
        const GroupMatch<S> m = group_match(a, q, k0 + group);
        S gx = 0, gy = 0;
        if (c0 == 0 && pixel == 0 && part == 0) {  // once a match
          gx = m.gx;
          gy = m.gy;
        }
        if (m.there && m.g != S(0) && some) {
          const int64_t image = image_of_frame(a.sizes, q, m.frame);
          const Taps<S> taps = taps_at(a.key, image, m.x, m.y, dx, dy, true);
          const Four<S> k = sample4(a.key.data, taps, c);
          Four<S> d;  // gradient of the sampled key
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            d.v[i] = a.metric == Metric::l2 ? 2 * m.g * (f.v[i] - k.v[i]) : m.g * f.v[i];
            sum.v[i] += a.metric == Metric::l2 ? -d.v[i] : m.g * k.v[i];
          }
          if (a.grad_shift != nullptr) slopes4(a.key.data, taps, taps_at(a.key, image, m.x, m.y, dx, dy, false), c, d, &gx, &gy);
          if (a.need_key) spread4(grad_key, taps, c, d, S(1));
        }
        if (a.grad_shift != nullptr) {
          gx = sum_within(gx, a.lanes);
          gy = sum_within(gy, a.lanes);
          for (int u = 0; u < groups; ++u) {
            const int slot = __shfl_sync(kAllLanes, m.slot, u * a.lanes);
            const S ux = __shfl_sync(kAllLanes, gx, u * a.lanes), uy = __shfl_sync(kAllLanes, gy, u * a.lanes);
            shifts.add(q, slot, ux, uy);
          }
        }
      }
      if (!a.need_query) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.v[i] = sum_within(sum.v[i], kWarp, a.lanes);
      if (group == 0 && some) {
        if (a.query_rows != nullptr) {
          store4(a.query_rows + own, sum);
        } else {
          grad_query.add4(own, sum);
        }
      }
    }
  }
}

template <typename S, typename Sink>
__global__ void __launch_bounds__(kBackwardWarps* kWarp) match_backward_kernel(MatchBackward<S> a, Sink grad_key, Sink grad_query) {
  const int64_t item = int64_t(blockIdx.x) * kBackwardWarps + int(threadIdx.x) / kWarp;
  if (item >= a.items) return;  // a whole warp; no barrier of the block follows
  ShiftGradient<S> shifts(a);
  const Sizes& z = a.sizes;
  Query q = {};
  const int heads = a.over_heads ? z.heads : 1;
  for (int head = 0; head < heads; ++head) {
    int64_t number = item;
    if (a.over_heads) {  // items count (B, T, Hq, Wq)
      const int64_t clip = z.frames * queries_of(z);
      number = (item / clip * z.heads + head) * clip + item % clip;
    }
    q = query_at(z, number);
    backward_of_query(a, q, grad_key, grad_query, shifts);
  }
  if (a.grad_shift != nullptr) shifts.finish(q);
}

}  // namespace stan::cuda
