// The quick gather: float32 arithmetic, single pixels. Channels in groups of at most 16, padded to 4, 8 or 16, so that a pixel is a
// vector or two; where blocks of queries have their matches in common, 2 x 2 or 4 x 4 of them at a time: their samples lie side by side
// and share position and fractions, away from the borders, so that bilinear sampling along x serves two rows.
#pragma once

#include "gather.h"
#include "simd.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

template <int kWidth>
struct VectorOf;
#define STAN_VECTOR(width)                                                               \
  template <>                                                                            \
  struct VectorOf<width> {                                                               \
    typedef float Type __attribute__((vector_size(width * 4)));                          \
    typedef float Unaligned __attribute__((vector_size(width * 4), aligned(4), may_alias)); \
  };
STAN_VECTOR(4)
STAN_VECTOR(8)
STAN_VECTOR(16)
#undef STAN_VECTOR

// Vectors for kCount numbers, 4 to 64 of them, a power of two: as few as this processor generation can.
template <int kCount>
struct Run {
  static constexpr int kWidth = kCount < kLanes ? kCount : kLanes;
  using Vector = typename VectorOf<kWidth>::Type;

  static inline Vector load(const float* p) { return *reinterpret_cast<const typename VectorOf<kWidth>::Unaligned*>(p); }
  static inline void store(float* p, Vector v) { *reinterpret_cast<typename VectorOf<kWidth>::Unaligned*>(p) = v; }
};

// Four vectors of four numbers, rows and columns exchanged.
using Quad = VectorOf<4>;
static inline void transpose(Quad::Type (&rows)[4]) {
#if defined(__SSE2__)
  __m128 a = rows[0], b = rows[1], c = rows[2], d = rows[3];
  _MM_TRANSPOSE4_PS(a, b, c, d);
  rows[0] = a;
  rows[1] = b;
  rows[2] = c;
  rows[3] = d;
#else
  const Quad::Type a = rows[0], b = rows[1], c = rows[2], d = rows[3];
  for (int i = 0; i < 4; ++i) rows[i] = Quad::Type{a[i], b[i], c[i], d[i]};
#endif
}

// A row of pixels of kPadded numbers each, from the planes of a channel each, and back; four pixels and channels at a time.
template <int kPadded, typename E>
static void pad_row(const E* planes, int64_t plane, int width, int channels, float* __restrict__ out) {
  int x = 0;
  for (; x + 4 <= width; x += 4, out += 4 * kPadded) {
    for (int c = 0; c < kPadded; c += 4) {
      Quad::Type four[4] = {};
      for (int i = 0; i < least(4, channels - c); ++i) {
        const E* in = planes + (c + i) * plane + x;
        four[i] = Quad::Type{load<float>(in), load<float>(in + 1), load<float>(in + 2), load<float>(in + 3)};
      }
      transpose(four);
      for (int i = 0; i < 4; ++i) *reinterpret_cast<Quad::Unaligned*>(out + i * kPadded + c) = four[i];
    }
  }
  for (; x < width; ++x, out += kPadded)
    for (int c = 0; c < kPadded; ++c) out[c] = c < channels ? load<float>(planes + c * plane + x) : 0.0f;
}
template <int kPadded, typename E>
static void unpad_row(const float* in, int width, int channels, E* planes, int64_t plane) {
  int x = 0;
  for (; x + 4 <= width; x += 4, in += 4 * kPadded) {
    for (int c = 0; c < channels; c += 4) {
      Quad::Type four[4];
      for (int i = 0; i < 4; ++i) four[i] = *reinterpret_cast<const Quad::Unaligned*>(in + i * kPadded + c);
      transpose(four);
      for (int i = 0; i < least(4, channels - c); ++i)
        for (int n = 0; n < 4; ++n) store<float>(planes + (c + i) * plane + x + n, four[i][n]);
    }
  }
  for (; x < width; ++x, in += kPadded)
    for (int c = 0; c < channels; ++c) store<float>(planes + c * plane + x, in[c]);
}

// A coordinate of kTile neighbouring queries from `start` on, if the samples of all lie inside the image unreflected.
template <int kTile>
static inline bool inside(int start, float offset, int length, Split<float>* at) {
  const float position = float(start) + offset;
  if (!(position >= 0.0f && position < float(length))) return false;  // NaN and infinities too
  at->whole = int(position);
  at->fraction = position - float(at->whole);
  return at->whole + kTile - 1 + (at->fraction > 0.0f ? 1 : 0) < length;
}

// A match of kTile x kTile queries all of whose samples lie inside the image.
struct Inside {
  const float* at;  // the first of its pixels
  float fx, fy, weight;
  int number;  // among the matches of its queries
};

// sums[row] += weight * samples, a vector of each of kTile rows, `pitch` apart. What has no weight is not read.
template <int kPadded, int kTile, bool kAcross, bool kDown>
static inline __attribute__((always_inline)) void add_samples(const Inside& match, int64_t start, int64_t pitch,
                                                              typename Run<kPadded * kTile>::Vector (&sums)[kTile]) {
  using Row = Run<kPadded * kTile>;
  const float* const at = match.at + start;
  const float left = 1.0f - match.fx, right = match.fx;
  const auto along = [&](const float* from) __attribute__((always_inline)) {
    if constexpr (kAcross) return left * Row::load(from) + right * Row::load(from + kPadded);
    return Row::load(from);
  };
  const float above = match.weight * (1.0f - match.fy), below = match.weight * match.fy;
  auto upper = along(at);
#pragma GCC unroll 4
  for (int r = 0; r < kTile; ++r) {
    sums[r] += above * upper;
    if (!kDown && r + 1 == kTile) break;
    const auto lower = along(at + (r + 1) * pitch);
    if constexpr (kDown) sums[r] += below * lower;
    upper = lower;
  }
}

// One group of channels of a head.
template <int kPadded, int kTile, typename E>
class QuickGather {
 public:
  QuickGather(const GatherArguments& a, int64_t b, int head, int channel, int channels, const Pixels<float>& value)
      : a_(a), p_(a.p), z_(a.p.sizes), b_(b), head_(head), channel_(channel), channels_(channels), value_(value) {}

  void pack() const {
    const int64_t plane = int64_t(value_.height) * value_.width;
    parallel(int64_t(z_.key_frames) * value_.height, 8, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int f = int(row / value_.height), y = int(row % value_.height);
        const E* in = static_cast<const E*>(a_.value) + head_start(b_, f, head_, z_.key_frames, z_.heads, z_.channels, plane) + channel_ * plane;
        pad_row<kPadded>(in + int64_t(y) * value_.width, plane, value_.width, channels_, value_.frame(f) + int64_t(y) * value_.width * kPadded);
      }
    });
  }

  // Strips of a few rows and columns, each in one frame after the other: what frames have their matches in is mostly the same, and
  // stays in the cache.
  void run() const {
    const int rows = (z_.query_height + kTile - 1) / kTile, columns = (z_.query_width + kStrip - 1) / kStrip;
    const int outputs = a_.stack ? p_.matches : 1;
    parallel(int64_t(rows) * columns, 1, [&](int64_t begin, int64_t end) {
      const int64_t size = int64_t(outputs) * kTile * kStrip * kPadded;
      Block<float> sums(size);
      for (int64_t i = begin; i < end; ++i) {
        for (int t = 0; t < z_.frames; ++t) {
          memset(sums.get(), 0, size_t(size) * sizeof(float));
          strip(t, int(i / columns) * kTile, int(i % columns) * kStrip, sums.get());
          write(t, int(i / columns) * kTile, int(i % columns) * kStrip, sums.get());
        }
      }
    });
  }

 private:
  static constexpr int kTogether = 16;  // matches of a tile that are held at a time
  static constexpr int kStrip = 64;     // columns of a strip
  static constexpr int kRowSize = kStrip * kPadded;
  struct Matches {
    Inside match[kTogether];
    int count;
  };

  // `sums`: an output after the other, kTile rows of kStrip pixels each. What a tile reads is asked for while the one before is computed.
  void strip(int t, int row, int start, float* sums) const {
    const int tiles = (least(kStrip, z_.query_width - start) + kTile - 1) / kTile;
    Matches found[2];  // of this tile and the next
    for (int from = 0; from < p_.matches; from += kTogether) {
      find(t, row, start, from, sums, &found[0]);
      for (int i = 0; i < tiles; ++i) {
        float* const out = sums + i * kTile * kPadded;
        if (i + 1 < tiles) find(t, row, start + (i + 1) * kTile, from, out + kTile * kPadded, &found[(i + 1) % 2]);
        add(found[i % 2], out);
      }
    }
  }

  // The matches `from` on of the tile at (row, column) that lie inside, kTogether at most; the others are added to `sums`.
  void find(int t, int row, int column, int from, float* sums, Matches* found) const {
    const int64_t blocks = ((b_ * z_.heads + head_) * z_.frames + t) * p_.blocks() + int64_t(row / p_.block) * p_.block_columns;
    const int64_t first = (blocks + column / p_.block) * p_.matches, pitch = int64_t(value_.width) * kPadded;
    const bool whole = row + kTile <= z_.query_height && column + kTile <= z_.query_width;
    found->count = 0;
    for (int k = from; k < least(p_.matches, from + kTogether); ++k) {
      const int f = a_.frames[first + k];
      const float weight = static_cast<const float*>(a_.weights)[first + k];
      if (f < 0 || f >= z_.key_frames || weight == 0.0f) continue;
      const float* offset = static_cast<const float*>(a_.offsets) + 2 * (first + k);
      Split<float> x, y;
      if (!(whole && inside<kTile>(column * z_.stride, offset[0], value_.width, &x) &&
            inside<kTile>(row * z_.stride, offset[1], value_.height, &y))) {
        at_border(row, column, f, weight, offset, sums + (a_.stack ? k * kTile * kRowSize : 0));
        continue;
      }
      const float* const at = value_.frame(f) + y.whole * pitch + int64_t(x.whole) * kPadded;
      found->match[found->count++] = {at, x.fraction, y.fraction, weight, k};
      for (int r = 0; r <= kTile; ++r)
        for (int i = 0; i < (kTile + 1) * kPadded; i += 16) __builtin_prefetch(at + r * pitch + i);
    }
  }

  void add(const Matches& found, float* sums) const {
    if (!a_.stack) return add_some(found.match, found.count, sums);
    for (int i = 0; i < found.count; ++i) add_some(found.match + i, 1, sums + found.match[i].number * kTile * kRowSize);
  }

  // Adds matches to sums of a tile, one vector of its rows after the other: so few stay in registers.
  void add_some(const Inside* matches, int count, float* sums) const {
    const int64_t pitch = int64_t(value_.width) * kPadded;
    using Row = Run<kPadded * kTile>;
    for (int start = 0; start < kPadded * kTile; start += Row::kWidth) {
      typename Row::Vector rows[kTile];
      for (int r = 0; r < kTile; ++r) rows[r] = Row::load(sums + r * kRowSize + start);
      for (int i = 0; i < count; ++i) {
        const Inside& match = matches[i];
        if (match.fx > 0.0f) {
          match.fy > 0.0f ? add_samples<kPadded, kTile, true, true>(match, start, pitch, rows)
                          : add_samples<kPadded, kTile, true, false>(match, start, pitch, rows);
        } else {
          match.fy > 0.0f ? add_samples<kPadded, kTile, false, true>(match, start, pitch, rows)
                          : add_samples<kPadded, kTile, false, false>(match, start, pitch, rows);
        }
      }
      for (int r = 0; r < kTile; ++r) Row::store(sums + r * kRowSize + start, rows[r]);
    }
  }

  // A match of a tile some of whose pixels are reflected, or beyond the query grid: each pixel by itself.
  __attribute__((noinline)) void at_border(int row, int column, int f, float weight, const float* offset, float* out) const {
    for (int j = 0; j < least(kTile, z_.query_height - row); ++j) {
      for (int i = 0; i < least(kTile, z_.query_width - column); ++i) {
        const Split<float> x = match_position((column + i) * z_.stride, offset[0], value_.width);
        const Split<float> y = match_position((row + j) * z_.stride, offset[1], value_.height);
        const Taps<float> taps = taps_at(x, y, 0, 0, value_.height, value_.width, kPadded, true);
        float sample[kPadded];
        mix(value_.frame(f), taps, kPadded, sample);
        for (int c = 0; c < kPadded; ++c) out[j * kRowSize + i * kPadded + c] += weight * sample[c];
      }
    }
  }

  void write(int t, int row, int start, const float* sums) const {
    const int64_t plane = z_.queries();
    const int columns = least(kStrip, z_.query_width - start);
    for (int k = 0; k < (a_.stack ? p_.matches : 1); ++k) {
      const int64_t first = a_.stack ? (((b_ * z_.heads + head_) * p_.matches + k) * z_.frames + t) * z_.channels * plane
                                     : head_start(b_, t, head_, z_.frames, z_.heads, z_.channels, plane);
      E* const out = static_cast<E*>(a_.output) + first + channel_ * plane + start;
      for (int j = 0; j < least(kTile, z_.query_height - row); ++j)
        unpad_row<kPadded>(sums + (int64_t(k) * kTile + j) * kRowSize, columns, channels_, out + int64_t(row + j) * z_.query_width, plane);
    }
  }

  const GatherArguments& a_;
  const GatherParameters& p_;
  const Sizes& z_;
  int64_t b_;
  int head_, channel_, channels_;
  Pixels<float> value_;
};

template <typename E>
static void gather_quickly(const GatherArguments& a) {
  const Sizes& z = a.p.sizes;
  constexpr int kMost = 16;
  const auto padded = [](int channels) { return channels <= 4 ? 4 : channels <= 8 ? 8 : kMost; };
  const int64_t size = int64_t(z.key_frames) * z.key_height * z.key_width * padded(z.channels);
  const int tile = z.stride != 1 ? 1 : a.p.block % 4 == 0 ? 4 : a.p.block % 2 == 0 ? 2 : 1;
  each_head(z.batch, z.heads, size, [&](int64_t b, int head) {
    Block<float> memory(size);
    for (int c = 0; c < z.channels; c += kMost) {
      const int n = least(kMost, z.channels - c);
      const auto run = [&](auto width, auto tile) {
        const Pixels<float> value{memory.get(), z.key_height, z.key_width, width};
        const QuickGather<decltype(width)::value, decltype(tile)::value, E> gather(a, b, head, c, n, value);
        gather.pack();
        gather.run();
      };
      const auto with_tile = [&](auto width) {
        tile == 4 ? run(width, Constant<4>()) : tile == 2 ? run(width, Constant<2>()) : run(width, Constant<1>());
      };
      switch (padded(n)) {
        case 4: with_tile(Constant<4>()); break;
        case 8: with_tile(Constant<8>()); break;
        default: with_tile(Constant<kMost>());
      }
    }
  });
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
