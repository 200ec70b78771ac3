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

// kCount numbers, 4 to 64 of them, a power of two, in as few vectors as this processor generation can.
template <int kCount>
struct Run {
  static constexpr int kWidth = kCount < kLanes ? kCount : kLanes;
  static constexpr int kParts = kCount / kWidth;
  using Vector = typename VectorOf<kWidth>::Type;
  using Unaligned = typename VectorOf<kWidth>::Unaligned;
  Vector part[kParts];

  static inline Run zero() {
    Run run;
    for (int i = 0; i < kParts; ++i) run.part[i] = Vector{};
    return run;
  }
  static inline Run load(const float* p) {
    Run run;
    for (int i = 0; i < kParts; ++i) run.part[i] = *reinterpret_cast<const Unaligned*>(p + i * kWidth);
    return run;
  }
  inline void add_to(float* p) const {
    for (int i = 0; i < kParts; ++i) *reinterpret_cast<Unaligned*>(p + i * kWidth) += part[i];
  }
  inline void add(float weight, const Run& other) {
    for (int i = 0; i < kParts; ++i) part[i] += weight * other.part[i];
  }
  inline void scale(float weight) {
    for (int i = 0; i < kParts; ++i) part[i] *= weight;
  }
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

// sums[row] += weight * samples: kTile x kTile pixels from `at` on, rows `pitch` apart. What has no weight is not read.
template <int kPadded, int kTile>
static inline void add_samples(const float* at, int64_t pitch, float fx, float fy, float weight, Run<kPadded * kTile> (&sums)[kTile]) {
  using Row = Run<kPadded * kTile>;
  const auto along = [&](const float* from) {
    Row row = Row::load(from);
    if (fx > 0.0f) {
      row.scale(1.0f - fx);
      row.add(fx, Row::load(from + kPadded));
    }
    return row;
  };
  if (fy > 0.0f) {
    const float upper_weight = weight * (1.0f - fy), lower_weight = weight * fy;
    Row upper = along(at);
    for (int r = 0; r < kTile; ++r) {
      const Row lower = along(at + (r + 1) * pitch);
      sums[r].add(upper_weight, upper);
      sums[r].add(lower_weight, lower);
      upper = lower;
    }
  } else {
    for (int r = 0; r < kTile; ++r) sums[r].add(weight, along(at + r * pitch));
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

  void run() const {
    const int tiles = (z_.query_height + kTile - 1) / kTile;
    const int width = (z_.query_width + kTile - 1) / kTile * kTile, outputs = a_.stack ? p_.matches : 1;
    parallel(int64_t(z_.frames) * tiles, 1, [&](int64_t begin, int64_t end) {
      const int64_t size = int64_t(outputs) * kTile * width * kPadded;
      Block<float> sums(size);
      for (int64_t i = begin; i < end; ++i) {
        memset(sums.get(), 0, size_t(size) * sizeof(float));
        tile_row(int(i / tiles), int(i % tiles) * kTile, width, sums.get());
        write(int(i / tiles), int(i % tiles) * kTile, width, sums.get());
      }
    });
  }

 private:
  // `sums`: an output after the other, kTile rows of `width` pixels each.
  void tile_row(int t, int row, int width, float* sums) const {
    using Row = Run<kPadded * kTile>;
    const int64_t pitch = int64_t(value_.width) * kPadded, row_size = int64_t(width) * kPadded;
    const int64_t blocks = ((b_ * z_.heads + head_) * z_.frames + t) * p_.blocks() + int64_t(row / p_.block) * p_.block_columns;
    const bool whole_rows = row + kTile <= z_.query_height;
    for (int column = 0; column < z_.query_width; column += kTile, sums += kTile * kPadded) {
      const int64_t first = (blocks + column / p_.block) * p_.matches;
      const bool whole = whole_rows && column + kTile <= z_.query_width;
      Row rows[kTile];
      for (int r = 0; r < kTile; ++r) rows[r] = Row::zero();
      for (int k = 0; k < p_.matches; ++k) {
        const int f = a_.frames[first + k];
        const float weight = static_cast<const float*>(a_.weights)[first + k];
        if (f < 0 || f >= z_.key_frames || weight == 0.0f) continue;
        const float* offset = static_cast<const float*>(a_.offsets) + 2 * (first + k);
        float* const out = sums + (a_.stack ? k * kTile * row_size : 0);
        Split<float> x, y;
        if (whole && inside<kTile>(column * z_.stride, offset[0], value_.width, &x) &&
            inside<kTile>(row * z_.stride, offset[1], value_.height, &y)) {
          add_samples<kPadded, kTile>(value_.frame(f) + y.whole * pitch + int64_t(x.whole) * kPadded, pitch, x.fraction, y.fraction, weight, rows);
        } else {
          at_border(row, column, f, weight, offset, out, row_size);
        }
        if (!a_.stack) continue;
        for (int r = 0; r < kTile; ++r) {
          rows[r].add_to(out + r * row_size);
          rows[r] = Row::zero();
        }
      }
      if (a_.stack) continue;
      for (int r = 0; r < kTile; ++r) rows[r].add_to(sums + r * row_size);
    }
  }

  // A match of a tile some of whose pixels are reflected, or beyond the query grid: each pixel by itself.
  __attribute__((noinline)) void at_border(int row, int column, int f, float weight, const float* offset, float* out, int64_t row_size) const {
    for (int j = 0; j < least(kTile, z_.query_height - row); ++j) {
      for (int i = 0; i < least(kTile, z_.query_width - column); ++i) {
        const Split<float> x = match_position((column + i) * z_.stride, offset[0], value_.width);
        const Split<float> y = match_position((row + j) * z_.stride, offset[1], value_.height);
        const Taps<float> taps = taps_at(x, y, 0, 0, value_.height, value_.width, kPadded, true);
        float sample[kPadded];
        mix(value_.frame(f), taps, kPadded, sample);
        for (int c = 0; c < kPadded; ++c) out[j * row_size + i * kPadded + c] += weight * sample[c];
      }
    }
  }

  void write(int t, int row, int width, const float* sums) const {
    const int64_t plane = z_.queries();
    for (int k = 0; k < (a_.stack ? p_.matches : 1); ++k) {
      const int64_t start = a_.stack ? (((b_ * z_.heads + head_) * p_.matches + k) * z_.frames + t) * z_.channels * plane
                                     : head_start(b_, t, head_, z_.frames, z_.heads, z_.channels, plane);
      E* const out = static_cast<E*>(a_.output) + start + channel_ * plane;
      for (int j = 0; j < least(kTile, z_.query_height - row); ++j)
        unpad_row<kPadded>(sums + (int64_t(k) * kTile + j) * width * kPadded, z_.query_width, channels_, out + int64_t(row + j) * z_.query_width, plane);
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
