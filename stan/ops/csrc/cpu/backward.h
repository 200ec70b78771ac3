// Backward of search and refine: everything is computed anew from the K matches that were kept.
//
// Two passes over the matches of a head: by query, for the gradient of the query and of what shifted the anchors (each query
// writes only what is its own, up to overlapping patches); and by place in the key, for the gradient of the key.
#pragma once

#include "bands.h"
#include "sample.h"
#include "search.h"
#include "support.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

// Where the gradient of a match's position goes: to the flow of its slot, or to the incoming offset it was refined from.
template <typename S>
class PositionGradient {
 public:
  PositionGradient(const MatchBackwardArguments& a, int64_t b, int head) : a_(a), b_(b), head_(head) {}

  bool needed() const { return a_.grad_flow != nullptr || a_.grad_offsets_in != nullptr; }

  // Adds (gx, gy) of match `number` (counted over (T, Hq, Wq, K)) of query (t, y, x), which lies in frame f.
  void add(int t, int query, int x, int y, int64_t number, int f, S gx, S gy) const {
    const Sizes& z = a_.p.sizes;
    if (a_.grad_flow != nullptr) {
      const int slot = a_.p.slot_of(t, f);
      if (slot < 1 || slot >= a_.p.windows) return;
      const Displacement<S> d = flow_at(static_cast<const S*>(a_.flow), a_.p, b_, head_, t, slot, query);
      const int h = a_.p.flow_heads == 1 ? 0 : head_;
      S* out = static_cast<S*>(a_.grad_flow) +
               ((((b_ * a_.p.flow_heads + h) * z.frames + t) * (a_.p.windows - 1) + slot - 1) * 2) * z.queries() + query;
      out[0] += gx * anchor_of(S(x), d.x, z.key_width).slope;
      out[z.queries()] += gy * anchor_of(S(y), d.y, z.key_height).slope;
    } else if (a_.grad_offsets_in != nullptr) {
      const int64_t head_first = (b_ * z.heads + head_) * z.frames * z.queries();
      const int parent = a_.parents[head_first * a_.p.matches + number];
      if (parent < 0 || parent >= a_.p.windows) return;
      const int64_t at = 2 * ((head_first + int64_t(t) * z.queries() + query) * a_.p.windows + parent);
      const S* d = static_cast<const S*>(a_.offsets_in) + at;
      S* out = static_cast<S*>(a_.grad_offsets_in) + at;
      out[0] += gx * anchor_of(S(x), d[0], z.key_width).slope;
      out[1] += gy * anchor_of(S(y), d[1], z.key_height).slope;
    }
  }

 private:
  const MatchBackwardArguments& a_;
  int64_t b_;
  int head_;
};

// d = g * dscore/dsample for one pixel of the patch.
template <typename S>
static inline void score_derivative(Metric metric, S g, const S* query, const S* sample, int channels, S* __restrict__ d) {
  if (metric == Metric::l2) {
#pragma omp simd
    for (int c = 0; c < channels; ++c) d[c] = 2 * g * (query[c] - sample[c]);
  } else {
#pragma omp simd
    for (int c = 0; c < channels; ++c) d[c] = g * query[c];
  }
}

// body(taps, dx, dy, query pixel) for every pixel of the patch of a match: (dx, dy) from the positions (px, py) of the match and (x, y) of
// its query.
template <typename S, typename Body>
static inline void each_pixel(const SearchParameters& p, const Split<S>& px, const Split<S>& py, int x, int y, const Body& body) {
  const Sizes& z = p.sizes;
  for (int j = 0; j < p.patch.side; ++j) {
    for (int i = 0; i < p.patch.side; ++i) {
      const int dx = p.patch.offset(i), dy = p.patch.offset(j);
      const int64_t pixel = int64_t(reflect_index(y + dy, z.height)) * z.width + reflect_index(x + dx, z.width);
      body(taps_at(px, py, dx, dy, z.key_height, z.key_width, z.channels, true), dx, dy, pixel);
    }
  }
}

// The pass by query over one frame t of one head. `sum` gathers the gradient of the frame's query pixels, channels last.
template <typename S>
static void pull_frame(const MatchBackwardArguments& a, const Pixels<S>& query, const Pixels<S>& key, int64_t b, int head, int t,
                       S* sum) {
  const SearchParameters& p = a.p;
  const Sizes& z = p.sizes;
  const int channels = z.channels;
  const PositionGradient<S> positions(a, b, head);
  const int64_t head_first = (b * z.heads + head) * z.frames * z.queries() * p.matches;
  const S* offsets = static_cast<const S*>(a.offsets) + 2 * head_first;
  const S* grad_scores = static_cast<const S*>(a.grad_scores) + head_first;
  const S* grad_offsets = static_cast<const S*>(a.grad_offsets) + 2 * head_first;
  const int32_t* frames = a.frames + head_first;

  const auto query_row = [&](int row) {
    const int y = row * z.stride;
    for (int column = 0; column < z.query_width; ++column) {
      const int x = column * z.stride;
      const int in_frame = row * z.query_width + column;
      for (int k = 0; k < p.matches; ++k) {
        const int64_t m = (int64_t(t) * z.queries() + in_frame) * p.matches + k;
        const int f = frames[m];
        if (f < 0 || f >= z.key_frames) continue;
        const S g = grad_scores[m];
        Lanes<S> gx, gy;
        if (g != S(0)) {
          const Split<S> px = match_position(x, offsets[2 * m], z.key_width);
          const Split<S> py = match_position(y, offsets[2 * m + 1], z.key_height);
          each_pixel(p, px, py, x, y, [&](const Taps<S>& taps, int dx, int dy, int64_t pixel) {
            const Taps<S> beside = taps_at(px, py, dx, dy, z.key_height, z.key_width, channels, false);
            const S* q = query.frame(t) + pixel * channels;
            each_run(channels, [&](int c, auto n) {
              S sample[kRun], d[kRun];
              mix(key.frame(f) + c, taps, n, sample);
              score_derivative(p.metric, g, q + c, sample, n, d);
              if (positions.needed()) slopes(key.frame(f) + c, taps, beside, n, d, Slopes<S>{1, 1}, &gx, &gy);
              if (sum == nullptr) return;
              S* __restrict__ out = sum + pixel * channels + c;
              if (p.metric == Metric::l2) {
#pragma omp simd
                for (int e = 0; e < n; ++e) out[e] -= d[e];
              } else {
#pragma omp simd
                for (int e = 0; e < n; ++e) out[e] += g * sample[e];
              }
            });
          });
        }
        if (positions.needed()) positions.add(t, in_frame, x, y, m, f, grad_offsets[2 * m] + gx.sum(), grad_offsets[2 * m + 1] + gy.sum());
      }
    }
  };

  const Bands bands(z.query_height, (p.patch.reach() + z.stride - 1) / z.stride);
  for_each_band(bands, [&](int band) {
    for (int row = bands.first_row(band); row < bands.end_row(band, z.query_height); ++row) query_row(row);
  });
}

template <typename S, typename E>
static void match_backward_with(const MatchBackwardArguments& a) {
  const SearchParameters& p = a.p;
  const Sizes& z = p.sizes;
  const int channels = z.channels;
  const int64_t plane = int64_t(z.height) * z.width;
  const int64_t query_size = z.frames * plane * channels, key_size = int64_t(z.key_frames) * z.key_height * z.key_width * channels;
  const bool by_query = a.grad_query != nullptr || a.grad_flow != nullptr || a.grad_offsets_in != nullptr;

  const auto one_head = [&](int64_t b, int head) {
    Block<S> query_memory(query_size), key_memory(key_size);
    const Pixels<S> query{query_memory.get(), z.height, z.width, channels};
    const Pixels<S> key{key_memory.get(), z.key_height, z.key_width, channels};
    pack_head(static_cast<const E*>(a.query), b, head, z.frames, z.heads, query);
    pack_head(static_cast<const E*>(a.key), b, head, z.key_frames, z.heads, key);
    if (by_query) {
      Block<S> sum(a.grad_query != nullptr ? plane * channels : 0);
      for (int t = 0; t < z.frames; ++t) {
        if (a.grad_query == nullptr) {
          pull_frame<S>(a, query, key, b, head, t, nullptr);
          continue;
        }
        parallel(plane * channels, 1 << 14, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) sum[i] = 0;
        });
        pull_frame<S>(a, query, key, b, head, t, sum.get());
        E* out = static_cast<E*>(a.grad_query) + head_start(b, t, head, z.frames, z.heads, channels, plane);
        parallel(z.height, 8, [&](int64_t begin, int64_t end) {
          for (int64_t y = begin; y < end; ++y)
            channels_first<S>(sum.get() + y * z.width * channels, z.width, channels, out + y * z.width, plane);
        });
      }
    }
    if (a.grad_key != nullptr) {
      const int64_t head_first = (b * z.heads + head) * z.frames * z.queries() * p.matches;
      const S* offsets = static_cast<const S*>(a.offsets) + 2 * head_first;
      const S* grad_scores = static_cast<const S*>(a.grad_scores) + head_first;
      const int32_t* frames = a.frames + head_first;
      push_matches<S>(z, p.patch.reach(), p.matches, b, head, offsets, frames, static_cast<E*>(a.grad_key), [&](int64_t m, S* out) {
        const S g = grad_scores[m];
        if (g == S(0)) return;
        const int64_t number = m / p.matches;
        const int x = int(number % z.query_width) * z.stride;
        const int y = int(number / z.query_width % z.query_height) * z.stride;
        const int t = int(number / z.queries());
        const Split<S> px = match_position(x, offsets[2 * m], z.key_width);
        const Split<S> py = match_position(y, offsets[2 * m + 1], z.key_height);
        each_pixel(p, px, py, x, y, [&](const Taps<S>& taps, int, int, int64_t pixel) {
          const S* q = query.frame(t) + pixel * channels;
          each_run(channels, [&](int c, auto n) {
            S sample[kRun], d[kRun];
            mix(key.frame(frames[m]) + c, taps, n, sample);
            score_derivative(p.metric, g, q + c, sample, n, d);
            spread(out + c, taps, n, d);
          });
        });
      });
    }
  };
  if (a.grad_flow != nullptr && p.flow_heads == 1) {  // heads that share a flow add to its gradient one after the other
    each_head(z.batch, 1, query_size + key_size, [&](int64_t b, int) {
      for (int head = 0; head < z.heads; ++head) one_head(b, head);
    });
  } else {
    each_head(z.batch, z.heads, query_size + key_size, one_head);
  }
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
