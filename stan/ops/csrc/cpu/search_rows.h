// The quick search: float32 arithmetic, whole candidates' steps of one pixel, any window, patch and selection.
//
// All candidates of one query and frame then share one fractional phase. So the query is compared with whole pixels only, one more
// row and column of them than there are candidates, with vector lanes along x; bilinear mixing acts on the results (see
// key_rows.h for l2, where that is exact too). Scores of all candidates of a query fit in the first-level cache, from which the
// best are selected (select_scores.h).
#pragma once

#include "compare_rows.h"
#include "key_rows.h"
#include "search.h"
#include "select_scores.h"
#include "selection.h"
#include "simd.h"
#include "support.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

// Whether the scores of a query are few enough to be kept until all are there.
static inline bool fits_rows(const SearchParameters& p) {
  return p.window <= 512 && int64_t(p.windows) * p.window * p.window <= (1 << 18);
}

// The scores of a column of kLanes neighbouring candidates, `rows` of them from pixel (x, y) on, from the comparisons with
// whole pixels, in rows `pitch` apart. `put` takes them one row after the other. kX and kY say along which axes there is
// something to interpolate; where there is not, nothing is read that has no weight, so that a NaN there cannot leak in.
template <Metric kMetric, bool kX, bool kY, typename Put>
static __attribute__((noinline)) void mix_column(float fx, float fy, const float* compared, int64_t pitch, const KeyRows& keys,
                                                 const float* frame, int x, int y, int rows, const Put& put) {
  constexpr bool kL2 = kMetric == Metric::l2;
  const int64_t row_size = keys.row_size();
  const float* across = keys.neighbours(frame, x, y, kAcross);
  const float* down = keys.neighbours(frame, x, y, kDown);
  const float* mixed = keys.neighbours(frame, x, y, kMixed);
  const Floats to_right = all(fx), to_lower = all(fy);
  const Floats across_weight = all(fx * (1 - fx)), left = all(fy * (1 - fy) * (1 - fx)), right = all(fy * (1 - fy) * fx);
  const Floats mixed_weight = all(fx * (1 - fx) * fy * (1 - fy));
  const auto along_row = [&] {
    Floats sum = load_floats(compared);
    if constexpr (kX) {
      sum += to_right * (load_floats(compared + 1) - sum);
      if constexpr (kL2) sum -= across_weight * load_floats(across);
    }
    compared += pitch;
    across += row_size;
    return sum;
  };
  Floats upper = along_row();
  for (int row = 0; row < rows; ++row) {
    Floats sum = upper;
    if constexpr (kY) {
      const Floats lower = along_row();
      sum += to_lower * (lower - upper);
      if constexpr (kL2 && kX) {
        sum -= left * load_floats(down) + right * load_floats(down + 1) - mixed_weight * load_floats(mixed);
      } else if constexpr (kL2) {
        sum -= left * load_floats(down);
      }
      down += row_size;
      mixed += row_size;
      upper = lower;
    } else if (row + 1 < rows) {
      upper = along_row();
    }
    put(row, kL2 ? smaller(Floats{}, Floats{} - sum) : sum);  // rounding makes no match better than perfect
  }
}

// What quick searches have in common, for one query after another: where the windows lie, and the choice among the scores of all
// candidates, which lie in the order of their indices.
class WindowSearch {
 protected:
  explicit WindowSearch(const SearchArguments& a)
      : a_(a),
        p_(a.p),
        z_(a.p.sizes),
        area_(p_.window * p_.window),
        scores_(int64_t(p_.windows) * area_ + 2 * kLanes),
        places_(p_.windows),
        candidates_(int64_t(p_.windows) * area_),
        selection_(p_.select == Select::each ? area_ : p_.windows * area_, p_.topk) {
    for (int i = 0; i < p_.windows * area_; ++i)
      candidates_[i] = {i / area_, int16_t(i % area_ / p_.window), int16_t(i % area_ % p_.window)};
  }

  // Turns to query (column, row); returns its number in the frame.
  int64_t begin(int row, int column) {
    x_ = column * z_.stride;
    y_ = row * z_.stride;
    return int64_t(row) * z_.query_width + column;
  }

  // Where the window of a slot lies.
  struct Place {
    int frame;             // -1: there is none
    const float* pixels;   // the frame's rows
    float x, y;            // anchor
    float fx, fy;          // and its fractions
    Window wx, wy;
    int begin, end;        // rows of the window inside the image
    int left, top;         // whole pixel of the first candidate of the first of these rows
    int skew;              // pixels from the beginning of a vector to `left`: loads that cross cache lines cost two
  };

  struct Candidate {
    int32_t slot;  // up to 2^18 of them
    int16_t row, column;
  };

  void put_window(Place& place, const Displacement<float>& d) const {
    place.x = anchor_of(float(x_), d.x, z_.key_width).position;
    place.y = anchor_of(float(y_), d.y, z_.key_height).position;
    place.wx = window_of(place.x, 1.0f, p_.window, z_.key_width, p_.slide);
    place.wy = window_of(place.y, 1.0f, p_.window, z_.key_height, p_.slide);
    const Split<float> x = split(place.x), y = split(place.y);
    place.fx = x.fraction;
    place.fy = y.fraction;
    place.begin = place.wy.low > place.wy.begin ? place.wy.low - place.wy.begin : 0;
    place.end = least(place.wy.high - place.wy.begin + 1, p_.window);
    place.left = x.whole + place.wx.begin;
    place.top = y.whole + place.wy.begin + place.begin;
    place.skew = KeyRows::skew(place.left);
  }

  static void fill(float* scores, int count) {
    for (int i = 0; i < count; i += kLanes) store_floats(scores + i, all(-__builtin_inff()));
  }

  void select(const Places<float>& out) {
    const int lists = p_.select == Select::each ? p_.windows : 1, slots = p_.windows / lists, size = slots * area_;
    for (int list = 0, place = 0; list < lists; ++list) {
      int self = -1;
      if (p_.sets_apart(list) && places_[list].frame >= 0) {  // the first slot of the list is that of its number
        self = list * size - places_[list].wy.begin * p_.window - places_[list].wx.begin;
        if (p_.leads(list)) write(scores_[self], self, place++, out);
        scores_[self] = -__builtin_inff();
      }
      const int end = (list + 1) * p_.topk, wanted = end - place;
      if (selection_.select(scores_.get() + int64_t(list) * size, size, wanted)) {
        for (int i = 0; i < wanted; ++i, ++place)
          write(selection_.score(i), list * size + selection_.place(i), place, out);
      } else {
        select_with_care(list * slots, (list + 1) * slots, self, place, end, out);
        place = end;
      }
    }
  }

  // For what the quick selection leaves open: NaN and infinite scores, and fewer valid candidates than places.
  void select_with_care(int slot, int end_slot, int self, int place, int end, const Places<float>& out) {
    Block<float> best(end - place);
    Block<int64_t> best_candidates(end - place);
    Selection<float> selection(best.get(), best_candidates.get());
    selection.clear(end - place);
    for (int i = slot * area_; i < end_slot * area_; ++i) {
      const Candidate& c = candidates_[i];
      const Place& from = places_[c.slot];
      if (from.frame < 0 || i == self || !from.wx.valid(from.wx.begin + c.column) || !from.wy.valid(from.wy.begin + c.row)) continue;
      selection.offer(scores_[i], i);
    }
    for (int i = 0; i < selection.count(); ++i, ++place)
      write(selection.score(i), int(selection.candidate(i)), place, out);
    for (; place < end; ++place) out.write_empty(place);
  }

  void write(float score, int candidate, int place, const Places<float>& out) const {
    const Candidate& c = candidates_[candidate];
    const Place& from = places_[c.slot];
    out.write(place, score, step_position(from.x, 1.0f, from.wx.begin + c.column) - float(x_),
              step_position(from.y, 1.0f, from.wy.begin + c.row) - float(y_), from.frame, -1);
  }

  const SearchArguments& a_;
  const SearchParameters& p_;
  const Sizes& z_;
  int area_;
  Block<float> scores_;
  Block<Place> places_;
  Block<Candidate> candidates_;
  ScoreSelection selection_;
  int x_ = 0, y_ = 0;
};

// A search by whole rows of candidates.
template <Metric kMetric>
class RowSearch : public WindowSearch {
 public:
  RowSearch(const SearchArguments& a, const KeyRows& keys)
      : WindowSearch(a),
        keys_(keys),
        pitch_(compared_pitch(p_.window + kPixels)),
        compared_size_((p_.window + 2) * pitch_ + kLanes),
        compared_(p_.windows * compared_size_) {}

  // Searches for query (column, row) of frame t, whose features are `query`; `frame_of` finds the rows of a key frame.
  // All slots are compared before the first is mixed: what was stored has then reached the cache, where unaligned loads find it.
  template <typename FrameOf>
  void search(int64_t b, int head, int t, int row, int column, const float* query, const FrameOf& frame_of) {
    const int64_t number = begin(row, column);
    for (int slot = 0; slot < p_.windows; ++slot) {
      Place& place = places_[slot];
      place.frame = p_.frame_of(t, slot);
      if (place.frame < 0) continue;
      place.pixels = frame_of(place.frame);
      put_window(place, flow_at(static_cast<const float*>(a_.flow), p_, b, head, t, slot, number));
      const int more = place.fx == 0.0f && place.fy == 0.0f ? 0 : 1;
      compare_rows<kMetric>(keys_.pixel(place.pixels, place.left - place.skew, place.top), keys_.row_size(), keys_.group_size(),
                            keys_.groups(), p_.patch, query, place.end - place.begin + more, p_.window + more + place.skew,
                            compared_.get() + slot * compared_size_, pitch_);
    }
    for (int slot = 0; slot < p_.windows; ++slot) mix_window(slot);
    select(Places<float>(a_, ((b * z_.heads + head) * z_.frames + t) * z_.queries() + number));
  }

 private:
  // Scores of all candidates of a slot. The last vector of a row may reach into the next row, where it writes -inf; it comes
  // before the vector that belongs there: strips from right to left, rows from top to bottom.
  void mix_window(int slot) {
    const Place& place = places_[slot];
    float* scores = scores_.get() + int64_t(slot) * area_;
    if (place.frame < 0) return fill(scores, area_);
    fill(scores, place.begin * p_.window);
    const auto mix = [&](auto in_x, auto in_y) {
      for (int column = (p_.window - 1) / kLanes * kLanes; column >= 0; column -= kLanes) {
        const Ints lane = lane_numbers() + column, k = lane + place.wx.begin;
        const Ints valid = Ints(k >= place.wx.low) & Ints(k <= place.wx.high) & Ints(lane < p_.window);
        float* out = scores + place.begin * p_.window + column;
        mix_column<kMetric, decltype(in_x)::value, decltype(in_y)::value>(
            place.fx, place.fy, compared_.get() + slot * compared_size_ + place.skew + column, pitch_, keys_, place.pixels,
            place.left + column, place.top, place.end - place.begin,
            [&](int row, Floats mixed) { store_floats(out + row * p_.window, valid ? mixed : all(-__builtin_inff())); });
      }
    };
    if (place.fx != 0.0f) {
      place.fy != 0.0f ? mix(Constant<true>(), Constant<true>()) : mix(Constant<true>(), Constant<false>());
    } else {
      place.fy != 0.0f ? mix(Constant<false>(), Constant<true>()) : mix(Constant<false>(), Constant<false>());
    }
    fill(scores + place.end * p_.window, (p_.window - place.end) * p_.window);
  }

  const KeyRows& keys_;
  int64_t pitch_, compared_size_;
  Block<float> compared_;
};

// Rows of the query frame that the queries of one row of the grid touch: patch row by patch row, groups of channels, pixels.
template <typename E>
static void read_query_rows(const E* planes, const Sizes& z, const Patch& patch, int y, int groups, float* out) {
  const int64_t plane = int64_t(z.height) * z.width;
  for (int j = 0; j < patch.side; ++j) {
    const E* row = planes + int64_t(reflect_index(y + patch.offset(j), z.height)) * z.width;
    for (int g = 0; g < groups; ++g, out += int64_t(z.width) * kGroup)
      interleave(row + int64_t(g) * kGroup * plane, plane, least(kGroup, z.channels - g * kGroup), z.width, out);
  }
}

// One query from these rows: for each patch pixel its groups.
static inline void read_query(const float* rows, const Sizes& z, const Patch& patch, int x, int groups, float* out) {
  for (int j = 0; j < patch.side; ++j, rows += int64_t(groups) * z.width * kGroup) {
    for (int i = 0; i < patch.side; ++i) {
      const float* pixel = rows + reflect_index(x + patch.offset(i), z.width) * kGroup;
      for (int g = 0; g < groups; ++g, pixel += int64_t(z.width) * kGroup, out += kGroup) memcpy(out, pixel, kGroup * sizeof(float));
    }
  }
}

// search(b, head, t, frame_of) for every frame t of every head, when the frames that it searches are laid out. Only these are kept: frame f
// lies in place f % kept, of `frame_size` numbers, and consists of `rows` rows, which `fill(planes, row, frame)` lays out one by
// one; `finish(first frame, number of rows, frame_of)` may then add to them.
template <typename E, typename Fill, typename Finish, typename Search>
static void search_frames(const SearchArguments& a, int rows, int64_t frame_size, const Fill& fill, const Finish& finish, const Search& search) {
  const SearchParameters& p = a.p;
  const Sizes& z = p.sizes;
  const int kept = least(p.windows, z.key_frames);
  const int64_t key_plane = int64_t(z.key_height) * z.key_width;
  each_head(z.batch, z.heads, kept * frame_size, [&](int64_t b, int head) {
    Block<float> memory(kept * frame_size);
    const auto frame_of = [&](int f) { return memory.get() + f % kept * frame_size; };
    const auto end_of = [&](int t) {  // of the frames that frame t of the query searches
      return p.causal ? p.start + t + 1 : first_frame(p.start + t, z.key_frames, p.temporal_window) + p.windows;
    };
    int filled = end_of(0) > kept ? end_of(0) - kept : 0;  // frames before this one are laid out, or nobody asks for them
    for (int t = 0; t < z.frames; ++t) {
      const int end = end_of(t);
      const int64_t fresh = int64_t(end - filled) * rows;
      parallel(fresh, 4, [&](int64_t begin, int64_t stop) {
        for (int64_t i = begin; i < stop; ++i) {
          const int f = filled + int(i / rows);
          const E* in = static_cast<const E*>(a.key) + head_start(b, f, head, z.key_frames, z.heads, z.channels, key_plane);
          fill(in, int(i % rows), frame_of(f));
        }
      });
      finish(filled, fresh, frame_of);
      filled = end;
      search(b, head, t, frame_of);
    }
  });
}

template <Metric kMetric, typename E>
static void search_rows_with(const SearchArguments& a) {
  const SearchParameters& p = a.p;
  const Sizes& z = p.sizes;
  const KeyRows keys(z, p.patch, a.flow != nullptr && kMetric == Metric::l2, p.slide ? 0 : p.window,
                     compared_pitch(p.window + kPixels) + kLanes);
  const int64_t query_size = int64_t(p.patch.side) * p.patch.side * keys.groups() * kGroup;
  const int64_t plane = int64_t(z.height) * z.width;
  search_frames<E>(
      a, keys.rows(), keys.frame_size(), [&](const E* planes, int row, float* frame) { keys.fill_channels(planes, row, frame); },
      [&](int first, int64_t fresh, const auto& frame_of) {
        parallel(fresh, 4, [&](int64_t begin, int64_t stop) {
          Block<float> scratch(3 * keys.group_size());
          for (int64_t i = begin; i < stop; ++i)
            keys.fill_neighbours(int(i % keys.rows()), frame_of(first + int(i / keys.rows())), scratch.get());
        });
      },
      [&](int64_t b, int head, int t, const auto& frame_of) {
        const E* queries = static_cast<const E*>(a.query) + head_start(b, t, head, z.frames, z.heads, z.channels, plane);
        parallel(z.query_height, 1, [&](int64_t begin, int64_t stop) {
          RowSearch<kMetric> search(a, keys);
          Block<float> rows(int64_t(p.patch.side) * keys.groups() * z.width * kGroup), query(query_size);
          for (int row = int(begin); row < stop; ++row) {
            read_query_rows(queries, z, p.patch, row * z.stride, keys.groups(), rows.get());
            for (int column = 0; column < z.query_width; ++column) {
              read_query(rows.get(), z, p.patch, column * z.stride, keys.groups(), query.get());
              search.search(b, head, t, row, column, query.get(), frame_of);
            }
          }
        });
      });
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
