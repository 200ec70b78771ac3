// The quick search for small windows of patches with few channels, such as RGB: float32 arithmetic, steps of one pixel.
//
// All candidates of one query and frame share one fractional phase. So the square of pixels that their patches cover, window + patch - 1
// wide, is sampled once, its channels interleaved. A row of a patch is then a run of patch * C numbers, in the query as in the
// sampled square, and a candidate's score is the sum over a few such runs, with vector lanes along them.
#pragma once

#include "search_rows.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

// Whether a row of the patch fills the lanes, and windows are so small that those of search_rows.h would be idle.
static inline bool fits_blocks(const SearchParameters& p) {
  return p.window <= 8 && p.patch.dilation == 1 && p.patch.side >= 3 && p.patch.side <= 31 && p.sizes.channels <= 8;
}

// Rows of pixels, channels interleaved, with reflections around: from -reach to height + reach, and `margin` pixels on both sides.
struct MarginRows {
  int height, width, channels, reach, margin;

  int rows() const { return height + 2 * reach + 1; }
  int64_t pitch() const { return (int64_t(width) + 2 * margin + 1) * channels + kLanes; }
  int64_t frame_size() const { return rows() * pitch(); }
  int64_t index(int x, int y) const { return (y + reach) * pitch() + int64_t(margin + x) * channels; }

  // Row y of the image, or its reflection, from the planes of the frame, to `out`, where its pixel -margin lies.
  template <typename E>
  void fill(const E* planes, int y, float* __restrict__ out) const {
    const int64_t plane = int64_t(height) * width;
    const E* in = planes + int64_t(reflect_index(y, height)) * width;
    float* const first = out + int64_t(margin) * channels;
    for (int c = 0; c < channels; ++c)
      for (int x = 0; x < width; ++x) first[int64_t(x) * channels + c] = load<float>(in + c * plane + x);
    const auto reflected = [&](int x) {
      for (int c = 0; c < channels; ++c) first[int64_t(x) * channels + c] = first[int64_t(reflect_index(x, width)) * channels + c];
    };
    for (int x = -margin; x < 0; ++x) reflected(x);
    for (int x = width; x < width + margin + 1; ++x) reflected(x);
    for (int i = 0; i < kLanes; ++i) first[int64_t(width + margin + 1) * channels + i] = 0;
  }
};

// Comparisons of kCount candidates side by side with a query patch, `rows` runs of `size` numbers.
template <Metric kMetric, int kCount>
static inline void compare_patches(const float* query, int64_t query_pitch, const float* key, int64_t key_pitch, int channels, int rows,
                                   int size, float* out) {
  Floats sums[4] = {};
  const int whole = size / kLanes * kLanes;
  const Ints rest = lane_numbers() < all(int32_t(size - whole));
  for (int j = 0; j < rows; ++j, query += query_pitch, key += key_pitch) {
    for (int n = 0; n < whole; n += kLanes) {
      const Floats q = load_floats(query + n);
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) {
        const Floats k = load_floats(key + n + i * channels), d = q - k;
        sums[i] += kMetric == Metric::l2 ? d * d : q * k;
      }
    }
    if (whole == size) continue;
    const Floats q = load_floats(query + whole);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {  // what lies beyond the run may be anything, a NaN too: it is cut off, not multiplied by zero
      const Floats k = load_floats(key + whole + i * channels);
      const Floats d = kMetric == Metric::l2 ? Floats(Ints(q - k) & rest) : Floats(Ints(q * k) & rest);
      sums[i] += kMetric == Metric::l2 ? d * d : d;
    }
  }
  float parts[kLanes];
  store_floats(parts, sum_fours(sums[0], sums[1], sums[2], sums[3]));
  for (int i = 0; i < kCount; ++i) {
    float sum = 0;
    for (int part = 0; part < kLanes / 4; ++part) sum += parts[i * (kLanes / 4) + part];
    out[i] = kMetric == Metric::l2 ? 0.0f - sum : sum;
  }
}

template <Metric kMetric>
class BlockSearch : public WindowSearch {
 public:
  BlockSearch(const SearchArguments& a, const MarginRows& keys)
      : WindowSearch(a),
        keys_(keys),
        size_((p_.window + p_.patch.side - 1) * z_.channels),
        pitch_((size_ + 2 * kLanes) / kLanes * kLanes),
        sampled_((p_.window + p_.patch.side) * pitch_ + kLanes) {
    for (int64_t i = 0; i < (p_.window + p_.patch.side) * pitch_ + kLanes; ++i) sampled_[i] = 0;
  }

  // Searches for query (column, row) of frame t, the rows of whose patch begin at `query`, `query_pitch` apart.
  template <typename FrameOf>
  void search(int64_t b, int head, int t, int row, int column, const float* query, int64_t query_pitch, const FrameOf& frame_of) {
    const int64_t number = begin(row, column);
    for (int slot = 0; slot < p_.windows; ++slot) {
      Place& place = places_[slot];
      place.frame = p_.frame_of(t, slot);
      float* const scores = scores_.get() + int64_t(slot) * area_;
      if (place.frame < 0) {
        fill(scores, area_);
        continue;
      }
      place.pixels = frame_of(place.frame);
      put_window(place, flow_at(static_cast<const float*>(a_.flow), p_, b, head, t, slot, number));
      sample(place);
      fill(scores, area_);
      const int left = place.wx.low > place.wx.begin ? place.wx.low - place.wx.begin : 0;
      const int right = least(place.wx.high - place.wx.begin + 1, p_.window);
      for (int line = place.begin; line < place.end; ++line)
        compare_line(query, query_pitch, sampled_.get() + (line - place.begin) * pitch_, left, right, scores + line * p_.window);
    }
    select(Places<float>(a_, ((b * z_.heads + head) * z_.frames + t) * z_.queries() + number));
  }

 private:
  // The pixels that the patches of the window's valid rows cover. What has no weight is not read.
  void sample(const Place& place) {
    if (place.fx != 0.0f) {
      place.fy != 0.0f ? sample_along<true, true>(place) : sample_along<true, false>(place);
    } else {
      place.fy != 0.0f ? sample_along<false, true>(place) : sample_along<false, false>(place);
    }
  }

  // Windows of neighbouring queries lie side by side, mostly: what the next ones read of each row is asked for ahead.
  template <bool kAcross, bool kDown>
  void sample_along(const Place& place) {
    constexpr int kAhead = 32;
    const int rows = place.end - place.begin + p_.patch.side - 1, reach = p_.patch.reach(), right = z_.channels;
    const float* in = place.pixels + keys_.index(place.left - reach, place.top - reach);
    const int64_t pitch = keys_.pitch();
    const Floats to_right = all(place.fx), to_lower = all(place.fy);
    for (int n = 0; n < size_; n += kLanes) {
      const float* from = in + n;
      float* out = sampled_.get() + n;
      const auto along_row = [&] {
        Floats v = load_floats(from);
        if constexpr (kAcross) v += to_right * (load_floats(from + right) - v);
        __builtin_prefetch(from + kAhead);
        from += pitch;
        return v;
      };
      Floats upper{};
      if constexpr (kDown) upper = along_row();
      for (int r = 0; r < rows; ++r, out += pitch_) {
        const Floats row = along_row();
        store_floats(out, kDown ? upper + to_lower * (row - upper) : row);
        upper = row;
      }
    }
  }

  void compare_line(const float* query, int64_t query_pitch, const float* key, int left, int right, float* scores) const {
    const int channels = z_.channels, rows = p_.patch.side, size = rows * channels;
    const auto some = [&](auto count, int i) {
      compare_patches<kMetric, decltype(count)::value>(query, query_pitch, key + i * channels, pitch_, channels, rows, size, scores + i);
    };
    int i = left;
    for (; i + 4 <= right; i += 4) some(Constant<4>(), i);
    switch (right - i) {
      case 3: some(Constant<3>(), i); break;
      case 2: some(Constant<2>(), i); break;
      case 1: some(Constant<1>(), i);
    }
  }

  const MarginRows& keys_;
  int size_;
  int64_t pitch_;
  Block<float> sampled_;
};

template <Metric kMetric, typename E>
static void search_blocks_with(const SearchArguments& a) {
  const SearchParameters& p = a.p;
  const Sizes& z = p.sizes;
  const int reach = p.patch.reach();
  const MarginRows keys{z.key_height, z.key_width, z.channels, reach, reach + p.window};
  const MarginRows queries{z.height, z.width, z.channels, reach, reach};
  const int64_t plane = int64_t(z.height) * z.width;
  search_frames<E>(
      a, keys.rows(), keys.frame_size(),
      [&](const E* planes, int row, float* frame) { keys.fill(planes, row - reach, frame + row * keys.pitch()); },
      [](int, int64_t, const auto&) {},
      [&](int64_t b, int head, int t, const auto& frame_of) {
        const E* planes = static_cast<const E*>(a.query) + head_start(b, t, head, z.frames, z.heads, z.channels, plane);
        parallel(z.query_height, 1, [&](int64_t begin, int64_t stop) {
          BlockSearch<kMetric> search(a, keys);
          Block<float> rows(p.patch.side * queries.pitch());
          for (int row = int(begin); row < stop; ++row) {
            for (int j = 0; j < p.patch.side; ++j) queries.fill(planes, row * z.stride + p.patch.offset(j), rows.get() + j * queries.pitch());
            for (int column = 0; column < z.query_width; ++column)
              search.search(b, head, t, row, column, rows.get() + int64_t(column) * z.stride * z.channels, queries.pitch(), frame_of);
          }
        });
      });
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
