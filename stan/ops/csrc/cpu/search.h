// Search and refine for every setting: one candidate at a time, vector lanes along the channels.
// search_rows.h has the quick way for the common settings.
#pragma once

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

// What is needed to turn a candidate's index back into a position.
template <typename S>
struct Origin {
  S x, y;
  int begin_x, begin_y;
  int frame;
};

// Writes a match found by a selection; `places` counts from the query's first place in the outputs.
template <typename S>
static void write_match(S score, int64_t candidate, int64_t place, const Origin<S>& o, int window, S step, int x, int y, S* scores,
                        S* offsets, int32_t* frames) {
  const int column = int(candidate % window);
  const int row = int(candidate / window % window);
  scores[place] = score;
  offsets[2 * place] = step_position(o.x, step, o.begin_x + column) - S(x);
  offsets[2 * place + 1] = step_position(o.y, step, o.begin_y + row) - S(y);
  frames[place] = o.frame;
}

template <typename S>
static void write_empty(int64_t place, S* scores, S* offsets, int32_t* frames) {
  scores[place] = -S(__builtin_inf());
  offsets[2 * place] = offsets[2 * place + 1] = 0;
  frames[place] = -1;
}

template <typename S>
struct Displacement {
  S x, y;
};

// Flow of query (t, y, x) of head `head` to the frame of `slot`.
template <typename S>
static inline Displacement<S> flow_at(const S* flow, const Sizes& z, int flow_heads, int slots, int64_t b, int head, int t, int slot,
                                      int64_t query) {
  if (flow == nullptr || slot == 0) return {S(0), S(0)};
  const int h = flow_heads == 1 ? 0 : head;
  const S* at = flow + ((((b * flow_heads + h) * z.frames + t) * (slots - 1) + slot - 1) * 2) * z.queries() + query;
  return {at[0], at[z.queries()]};
}

// All queries of row `y` of the query grid.
template <typename S, typename E>
static void search_row(const SearchArguments& a, const Pixels<S>& key, int64_t b, int head, int t, int row) {
  const SearchParameters& p = a.p;
  const Sizes& z = p.sizes;
  const S step = S(p.key_stride);
  Block<S> patch(int64_t(p.patch.side) * p.patch.side * z.channels), sample(z.channels), best(p.topk);
  Block<int64_t> candidates(p.topk);
  Block<Origin<S>> origins(p.slots);
  Selection<S> selection(best.get(), candidates.get());
  const E* planes = static_cast<const E*>(a.query) + head_start(b, t, head, z.frames, z.heads, z.channels, int64_t(z.height) * z.width);
  const bool each = p.select == Select::each;
  const int64_t area = int64_t(p.window) * p.window;

  for (int column = 0; column < z.query_width; ++column) {
    const int64_t query = int64_t(row) * z.query_width + column;
    const int x = column * z.stride, y = row * z.stride;
    const int64_t first_place = ((((b * z.heads + head) * z.frames + t) * z.queries()) + query) * p.matches;
    S* scores = static_cast<S*>(a.scores) + first_place;
    S* offsets = static_cast<S*>(a.offsets) + 2 * first_place;
    int32_t* frames = a.frames + first_place;
    read_patch(planes, z, p.patch, x, y, patch.get());

    int place = 0;
    for (int slot = 0; slot < p.slots; ++slot) {
      const int first_of_list = each ? slot * p.topk : 0;
      const bool new_list = each || slot == 0;
      Origin<S>& o = origins[slot];
      o.frame = frame_of_slot(t, slot, z.frames, p.temporal_window, p.causal);
      if (new_list) selection.clear(p.topk);
      if (new_list) place = first_of_list;
      if (o.frame >= 0) {
        const Displacement<S> d = flow_at(static_cast<const S*>(a.flow), z, p.flow_heads, p.slots, b, head, t, slot, query);
        o.x = anchor_of(S(x), d.x, z.key_width).position;
        o.y = anchor_of(S(y), d.y, z.key_height).position;
        const Window wx = window_of(o.x, step, p.window, z.key_width, p.slide);
        const Window wy = window_of(o.y, step, p.window, z.key_height, p.slide);
        o.begin_x = wx.begin;
        o.begin_y = wy.begin;
        int64_t self = -1;
        if (slot == 0 && p.self_match != SelfMatch::keep) {
          self = int64_t(-wy.begin) * p.window - wx.begin;
          if (p.self_match == SelfMatch::first) {
            const S score = score_at(key.frame(t), z, p.patch, p.metric, split(o.x), split(o.y), patch.get(), sample.get());
            write_match(score, self, place++, o, p.window, step, x, y, scores, offsets, frames);
            selection.clear(p.topk - 1);
          }
        }
        offer_window(key.frame(o.frame), z, p.patch, p.metric, wx, wy, o.x, o.y, step, p.window, slot * area, self, patch.get(),
                     sample.get(), selection);
      }
      if (each || slot == p.slots - 1) {
        for (int i = 0; i < selection.count(); ++i, ++place) {
          const int64_t candidate = selection.candidate(i);
          write_match(selection.score(i), candidate % area, place, origins[int(candidate / area)], p.window, step, x, y, scores, offsets,
                      frames);
        }
        for (; place < first_of_list + p.topk; ++place) write_empty(place, scores, offsets, frames);
      }
    }
  }
}

template <typename S, typename E>
static void search_with(const SearchArguments& a) {
  const Sizes& z = a.p.sizes;
  Block<S> memory(int64_t(z.frames) * z.key_height * z.key_width * z.channels);
  const Pixels<S> key{memory.get(), z.key_height, z.key_width, z.channels};
  for (int64_t b = 0; b < z.batch; ++b) {
    for (int head = 0; head < z.heads; ++head) {
      pack_head(static_cast<const E*>(a.key), b, head, z.frames, z.heads, key);
      parallel(int64_t(z.frames) * z.query_height, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) search_row<S, E>(a, key, b, head, int(i / z.query_height), int(i % z.query_height));
      });
    }
  }
}

template <typename S, typename E>
static void refine_row(const RefineArguments& a, const Pixels<S>& key, int64_t b, int head, int t, int row) {
  const RefineParameters& p = a.p;
  const Sizes& z = p.sizes;
  const S step = S(p.key_stride);
  Block<S> patch(int64_t(p.patch.side) * p.patch.side * z.channels), sample(z.channels), best(p.matches);
  Block<int64_t> candidates(p.matches);
  Block<Origin<S>> origins(p.incoming);
  Selection<S> selection(best.get(), candidates.get());
  const E* planes = static_cast<const E*>(a.query) + head_start(b, t, head, z.frames, z.heads, z.channels, int64_t(z.height) * z.width);
  const int64_t area = int64_t(p.window) * p.window;

  for (int column = 0; column < z.query_width; ++column) {
    const int64_t query = (((b * z.heads + head) * z.frames + t) * z.queries()) + int64_t(row) * z.query_width + column;
    const int x = column * z.stride, y = row * z.stride;
    const S* offsets_in = static_cast<const S*>(a.offsets_in) + 2 * query * p.incoming;
    const int32_t* frames_in = a.frames_in + query * p.incoming;
    S* scores = static_cast<S*>(a.scores) + query * p.matches;
    S* offsets = static_cast<S*>(a.offsets) + 2 * query * p.matches;
    int32_t* frames = a.frames + query * p.matches;
    int32_t* parents = a.parents + query * p.matches;
    read_patch(planes, z, p.patch, x, y, patch.get());

    selection.clear(p.matches);
    for (int parent = 0; parent < p.incoming; ++parent) {
      Origin<S>& o = origins[parent];
      o.frame = frames_in[parent];
      if (o.frame < 0 || o.frame >= z.frames) continue;
      o.x = anchor_of(S(x), offsets_in[2 * parent], z.key_width).position;
      o.y = anchor_of(S(y), offsets_in[2 * parent + 1], z.key_height).position;
      const Window wx = window_of(o.x, step, p.window, z.key_width, p.slide);
      const Window wy = window_of(o.y, step, p.window, z.key_height, p.slide);
      o.begin_x = wx.begin;
      o.begin_y = wy.begin;
      offer_window(key.frame(o.frame), z, p.patch, p.metric, wx, wy, o.x, o.y, step, p.window, parent * area, int64_t{-1}, patch.get(),
                   sample.get(), selection);
    }
    for (int place = 0; place < p.matches; ++place) {
      if (place >= selection.count()) {
        write_empty(place, scores, offsets, frames);
        parents[place] = -1;
        continue;
      }
      const int64_t candidate = selection.candidate(place);
      const int from = int(candidate / area);
      write_match(selection.score(place), candidate % area, place, origins[from], p.window, step, x, y, scores, offsets, frames);
      parents[place] = from;
    }
  }
}

template <typename S, typename E>
static void refine_with(const RefineArguments& a) {
  const Sizes& z = a.p.sizes;
  Block<S> memory(int64_t(z.frames) * z.key_height * z.key_width * z.channels);
  const Pixels<S> key{memory.get(), z.key_height, z.key_width, z.channels};
  for (int64_t b = 0; b < z.batch; ++b) {
    for (int head = 0; head < z.heads; ++head) {
      pack_head(static_cast<const E*>(a.key), b, head, z.frames, z.heads, key);
      parallel(int64_t(z.frames) * z.query_height, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) refine_row<S, E>(a, key, b, head, int(i / z.query_height), int(i % z.query_height));
      });
    }
  }
}
