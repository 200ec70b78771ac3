// Adding to pixels from many threads without atomics and always in the same order.
//
// An image is cut into bands of rows. Work on one band touches its own rows and at most `reach` rows beyond; bands are so high that two
// bands of the same parity never touch the same row. So all even bands run in parallel, then all odd ones, and the sum at each pixel
// is taken in an order that does not depend on the number of threads.
#pragma once

#include "sample.h"
#include "support.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

struct Bands {
  int height;  // rows of a band
  int count;

  // Contributions of row r reach rows r - reach ... r + 1 + reach, reflected at the borders.
  Bands(int rows, int reach) : height(2 * reach + 2 > 4 ? 2 * reach + 2 : 4), count((rows + height - 1) / height) {}
  int first_row(int band) const { return band * height; }
  int end_row(int band, int rows) const { return least((band + 1) * height, rows); }
};

// body(band) for every band.
template <typename Body>
static void for_each_band(const Bands& bands, const Body& body) {
  for (int parity = 0; parity < 2; ++parity) {
    parallel((bands.count - parity + 1) / 2, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(int(2 * i + parity));
    });
  }
}

// The matches of one head of one batch item, sorted by where they lie: by frame, then by band, then in their own order.
// A match is known by its number, query * K + k, with queries counted over (T, Hq, Wq).
template <typename Id>
class MatchesByBand {
 public:
  template <typename S>
  MatchesByBand(const Sizes& z, int matches, const Bands& bands, const S* offsets, const int32_t* frames)
      : bands_(bands.count),
        starts_(int64_t(z.key_frames) * bands.count + 1),
        numbers_(int64_t(z.frames) * z.queries() * matches) {
    // A counting sort over a fixed number of parts, so that the order never depends on the threads.
    constexpr int kParts = 64;
    const int64_t rows = int64_t(z.frames) * z.query_height;
    const int64_t places = int64_t(z.key_frames) * bands.count;
    Block<int64_t> counts(kParts * places);
    const auto each_match = [&](int64_t part, const auto& visit) {
      const int64_t end = rows * (part + 1) / kParts;
      for (int64_t row = rows * part / kParts; row < end; ++row) {
        const int y = int(row % z.query_height) * z.stride;
        const int64_t last = (row + 1) * z.query_width * matches;
        for (int64_t m = row * z.query_width * matches; m < last; ++m) {
          if (frames[m] < 0 || frames[m] >= z.key_frames) continue;
          const int at = least(match_position(y, offsets[2 * m + 1], z.key_height).whole, z.key_height - 1);
          visit(int64_t(frames[m]) * bands.count + at / bands.height, m);
        }
      }
    };
    parallel(kParts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        int64_t* count = counts.get() + part * places;
        for (int64_t i = 0; i < places; ++i) count[i] = 0;
        each_match(part, [&](int64_t place, int64_t) { ++count[place]; });
      }
    });
    int64_t total = 0;
    for (int64_t place = 0; place < places; ++place) {
      starts_[place] = total;
      for (int part = 0; part < kParts; ++part) {
        const int64_t count = counts[part * places + place];
        counts[part * places + place] = total;
        total += count;
      }
    }
    starts_[places] = total;
    parallel(kParts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        int64_t* next = counts.get() + part * places;
        each_match(part, [&](int64_t place, int64_t number) { numbers_[next[place]++] = Id(number); });
      }
    });
  }

  // body(number) for every match in a band of a frame.
  template <typename Body>
  void visit(int frame, int band, const Body& body) const {
    const int64_t place = int64_t(frame) * bands_ + band;
    for (int64_t i = starts_[place]; i < starts_[place + 1]; ++i) body(int64_t(numbers_[i]));
  }

 private:
  int bands_;
  Block<int64_t> starts_;
  Block<Id> numbers_;
};

// The gradient of one head of a video that was sampled at matches: grad (B, T, HD*C, H, W) of key or value.
// `push(number, frame)` adds what match `number` contributes to the channel-last pixels of its frame, at most `reach` rows away.
template <typename S, typename E, typename Push>
static void push_matches(const Sizes& z, int reach, int matches, int64_t b, int head, const S* offsets, const int32_t* frames,
                         E* grad, const Push& push) {
  const Bands bands(z.key_height, reach);
  const auto run = [&](const auto& sorted) {
    Block<S> sum(int64_t(z.key_height) * z.key_width * z.channels);
    const int64_t row_size = int64_t(z.key_width) * z.channels;
    const int64_t plane = int64_t(z.key_height) * z.key_width;
    for (int f = 0; f < z.key_frames; ++f) {
      parallel(z.key_height, 8, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin * row_size; i < end * row_size; ++i) sum[i] = 0;
      });
      for_each_band(bands, [&](int band) { sorted.visit(f, band, [&](int64_t number) { push(number, sum.get()); }); });
      E* out = grad + head_start(b, f, head, z.key_frames, z.heads, z.channels, plane);
      parallel(z.key_height, 8, [&](int64_t begin, int64_t end) {
        for (int64_t y = begin; y < end; ++y)
          channels_first<S>(sum.get() + y * row_size, z.key_width, z.channels, out + y * z.key_width, plane);
      });
    }
  };
  if (int64_t(z.frames) * z.queries() * matches < (int64_t{1} << 32)) {
    run(MatchesByBand<uint32_t>(z, matches, bands, offsets, frames));
  } else {
    run(MatchesByBand<int64_t>(z, matches, bands, offsets, frames));
  }
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
