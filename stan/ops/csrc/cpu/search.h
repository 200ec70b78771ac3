// Search and refine for every setting: one candidate at a time, vector lanes along the channels.
// search_rows.h has the quick way for the common settings.
#pragma once

#include "sample.h"
#include "selection.h"
#include "support.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

// A query patch, channels last: patch pixel (i, j) is a run of C numbers. Pixels outside the image reflect.
template <typename S, typename E>
static void read_patch(const E* planes, const Sizes& z, const Patch& patch, int x, int y, S* out) {
  const int64_t plane = int64_t(z.height) * z.width;
  for (int j = 0; j < patch.side; ++j) {
    const int64_t row = int64_t(reflect_index(y + patch.offset(j), z.height)) * z.width;
    for (int i = 0; i < patch.side; ++i) {
      const E* in = planes + row + reflect_index(x + patch.offset(i), z.width);
      for (int c = 0; c < z.channels; ++c) *out++ = load<S>(in + c * plane);
    }
  }
}

// Score of the key patch at a position against a query patch. `sample` is scratch for C numbers.
template <typename S>
static S score_at(const S* frame, const Sizes& z, const Patch& patch, Metric metric, const Split<S>& x, const Split<S>& y,
                  const S* query, S* sample) {
  S sum = 0;
  for (int j = 0; j < patch.side; ++j) {
    for (int i = 0; i < patch.side; ++i, query += z.channels) {
      const Taps<S> taps = taps_at(x, y, patch.offset(i), patch.offset(j), z.key_height, z.key_width, z.channels, true);
      mix(frame, taps, z.channels, sample);
      sum += metric == Metric::l2 ? -squared_distance(query, sample, z.channels) : dot(query, sample, z.channels);
    }
  }
  return sum;
}

// Offers all candidates of the window around an anchor; their indices begin at `first`. Candidate `skip` is left out.
template <typename S>
static void offer_window(const S* frame, const Sizes& z, const Patch& patch, Metric metric, const Window& wx, const Window& wy,
                         S ax, S ay, S step, int window, int64_t first, int64_t skip, const S* query, S* sample,
                         Selection<S>& selection) {
  for (int row = 0; row < window; ++row) {
    const int ky = wy.begin + row;
    if (!wy.valid(ky)) continue;
    const Split<S> y = split(step_position(ay, step, ky));
    for (int column = 0; column < window; ++column) {
      const int kx = wx.begin + column;
      const int64_t candidate = first + int64_t(row) * window + column;
      if (!wx.valid(kx) || candidate == skip) continue;
      const Split<S> x = split(step_position(ax, step, kx));
      selection.offer(score_at(frame, z, patch, metric, x, y, query, sample), candidate);
    }
  }
}

// The outputs of one query, from its first place on.
template <typename S>
struct Places {
  S* scores;
  S* offsets;
  int32_t* frames;
  int32_t* parents;  // null: a search

  Places(const SearchArguments& a, int64_t query)
      : scores(static_cast<S*>(a.scores) + query * a.p.matches),
        offsets(static_cast<S*>(a.offsets) + 2 * query * a.p.matches),
        frames(a.frames + query * a.p.matches),
        parents(a.parents == nullptr ? nullptr : a.parents + query * a.p.matches) {}

  void write(int place, S score, S dx, S dy, int frame, int parent) const {
    scores[place] = score;
    offsets[2 * place] = dx;
    offsets[2 * place + 1] = dy;
    frames[place] = frame;
    if (parents != nullptr) parents[place] = parent;
  }
  void write_empty(int place) const { write(place, -S(__builtin_inf()), S(0), S(0), -1, -1); }
};

// What is needed to turn a candidate's index back into a position.
template <typename S>
struct Origin {
  S x, y;
  int begin_x, begin_y;
  int frame;
};

template <typename S>
struct Displacement {
  S x, y;
};

// Flow of query number `query` of frame t and head `head` to the frame of `slot`.
template <typename S>
static inline Displacement<S> flow_at(const S* flow, const SearchParameters& p, int64_t b, int head, int t, int slot, int64_t query) {
  if (flow == nullptr || slot == 0) return {S(0), S(0)};
  const Sizes& z = p.sizes;
  const int h = p.flow_heads == 1 ? 0 : head;
  const S* at = flow + ((((b * p.flow_heads + h) * z.frames + t) * (p.windows - 1) + slot - 1) * 2) * z.queries() + query;
  return {at[0], at[z.queries()]};
}

// All queries of row `row` of the query grid.
template <typename S, typename E>
static void search_row(const SearchArguments& a, const Pixels<S>& key, int64_t b, int head, int t, int row) {
  const SearchParameters& p = a.p;
  const Sizes& z = p.sizes;
  const S step = S(p.key_stride);
  Block<S> patch(int64_t(p.patch.side) * p.patch.side * z.channels), sample(z.channels), best(p.topk);
  Block<int64_t> candidates(p.topk);
  Block<Origin<S>> origins(p.windows);
  Selection<S> selection(best.get(), candidates.get());
  const E* planes = static_cast<const E*>(a.query) + head_start(b, t, head, z.frames, z.heads, z.channels, int64_t(z.height) * z.width);
  const bool each = p.select == Select::each, refines = a.frames_in != nullptr;
  const int64_t area = int64_t(p.window) * p.window;

  for (int column = 0; column < z.query_width; ++column) {
    const int64_t in_frame = int64_t(row) * z.query_width + column;
    const int64_t query = ((b * z.heads + head) * z.frames + t) * z.queries() + in_frame;
    const int x = column * z.stride, y = row * z.stride;
    const Places<S> out(a, query);
    const auto write = [&](int place, S score, int64_t candidate) {
      const int window = int(candidate / area);
      const Origin<S>& o = origins[window];
      out.write(place, score, step_position(o.x, step, o.begin_x + int(candidate % p.window)) - S(x),
                step_position(o.y, step, o.begin_y + int(candidate / p.window % p.window)) - S(y), o.frame, window);
    };
    read_patch(planes, z, p.patch, x, y, patch.get());

    int place = 0;
    for (int window = 0; window < p.windows; ++window) {
      const int first_of_list = each ? window * p.topk : 0;
      if (each || window == 0) {
        selection.clear(p.topk);
        place = first_of_list;
      }
      Origin<S>& o = origins[window];
      Displacement<S> d;
      if (refines) {
        const int64_t at = query * p.windows + window;
        o.frame = a.frames_in[at] < z.key_frames ? a.frames_in[at] : -1;
        d = {static_cast<const S*>(a.offsets_in)[2 * at], static_cast<const S*>(a.offsets_in)[2 * at + 1]};
      } else {
        o.frame = p.frame_of(t, window);
        d = flow_at(static_cast<const S*>(a.flow), p, b, head, t, window, in_frame);
      }
      if (o.frame >= 0) {
        o.x = anchor_of(S(x), d.x, z.key_width).position;
        o.y = anchor_of(S(y), d.y, z.key_height).position;
        const Window wx = window_of(o.x, step, p.window, z.key_width, p.slide);
        const Window wy = window_of(o.y, step, p.window, z.key_height, p.slide);
        o.begin_x = wx.begin;
        o.begin_y = wy.begin;
        int64_t self = -1;
        if (p.sets_apart(window)) {
          self = window * area + int64_t(-wy.begin) * p.window - wx.begin;
          if (p.leads(window)) {
            write(place++, score_at(key.frame(o.frame), z, p.patch, p.metric, split(o.x), split(o.y), patch.get(), sample.get()), self);
            selection.clear(p.topk - 1);
          }
        }
        offer_window(key.frame(o.frame), z, p.patch, p.metric, wx, wy, o.x, o.y, step, p.window, window * area, self, patch.get(),
                     sample.get(), selection);
      }
      if (each || window == p.windows - 1) {
        for (int i = 0; i < selection.count(); ++i) write(place++, selection.score(i), selection.candidate(i));
        while (place < first_of_list + p.topk) out.write_empty(place++);
      }
    }
  }
}

template <typename S, typename E>
static void search_with(const SearchArguments& a) {
  const Sizes& z = a.p.sizes;
  const int64_t size = int64_t(z.key_frames) * z.key_height * z.key_width * z.channels;
  each_head(z.batch, z.heads, size, [&](int64_t b, int head) {
    Block<S> memory(size);
    const Pixels<S> key{memory.get(), z.key_height, z.key_width, z.channels};
    pack_head(static_cast<const E*>(a.key), b, head, z.key_frames, z.heads, key);
    parallel(int64_t(z.frames) * z.query_height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) search_row<S, E>(a, key, b, head, int(i / z.query_height), int(i % z.query_height));
    });
  });
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
