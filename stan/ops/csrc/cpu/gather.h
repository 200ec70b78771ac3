// Weighted sums of values at matches (gather), the same without the sum (gather_stack), and their gradients.
//
// A patch pixel (u, v) of query q' falls on the query q' + (u, v) / stride where that is whole and on the grid; an output is the mean
// over the patch pixels that fall on it.
#pragma once

#include "bands.h"
#include "sample.h"
#include "support.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

// One row of outputs.
template <typename S, typename E>
static void gather_row(const GatherArguments& a, const Pixels<S>& value, const GridPatch& grid, int64_t b, int head, int t, int row) {
  const GatherParameters& p = a.p;
  const Sizes& z = p.sizes;
  const int channels = z.channels, outputs = a.stack ? p.matches : 1;
  const int64_t row_size = int64_t(z.query_width) * channels, plane = z.queries();
  const int64_t frame_first = ((b * z.heads + head) * z.frames + t) * p.blocks();
  const S* weights = static_cast<const S*>(a.weights);
  const S* offsets = static_cast<const S*>(a.offsets);
  Block<S> sums(outputs * row_size);
  for (int64_t i = 0; i < outputs * row_size; ++i) sums[i] = 0;

  for (int column = 0; column < z.query_width; ++column) {
    S* const sum = sums.get() + int64_t(column) * channels;
    for (int j = 0; j < grid.side; ++j) {
      for (int i = 0; i < grid.side; ++i) {
        const int from_x = column - grid.at(i), from_y = row - grid.at(j);
        if (from_x < 0 || from_x >= z.query_width || from_y < 0 || from_y >= z.query_height) continue;
        const int64_t first = (frame_first + p.block_of(from_y, from_x)) * p.matches;
        for (int k = 0; k < p.matches; ++k) {
          const int f = a.frames[first + k];
          const S weight = weights[first + k];
          if (f < 0 || f >= z.key_frames || weight == S(0)) continue;
          const Split<S> x = match_position(from_x * z.stride, offsets[2 * (first + k)], z.key_width);
          const Split<S> y = match_position(from_y * z.stride, offsets[2 * (first + k) + 1], z.key_height);
          const Taps<S> taps =
              taps_at(x, y, grid.at(i) * grid.pixels, grid.at(j) * grid.pixels, z.key_height, z.key_width, channels, true);
          S* __restrict__ out = sum + (a.stack ? k * row_size : 0);
          each_run(channels, [&](int c, auto n) {
            S sample[kRun];
            mix(value.frame(f) + c, taps, n, sample);
#pragma omp simd
            for (int e = 0; e < n; ++e) out[c + e] += weight * sample[e];
          });
        }
      }
    }
    if (grid.side > 1) {
      const S share = S(1) / S(grid.count(column, z.query_width) * grid.count(row, z.query_height));
      for (int c = 0; c < channels; ++c) sum[c] *= share;
    }
  }

  E* out = static_cast<E*>(a.output) + int64_t(row) * z.query_width;
  if (!a.stack) {
    channels_first<S>(sums.get(), z.query_width, channels, out + head_start(b, t, head, z.frames, z.heads, channels, plane), plane);
    return;
  }
  for (int k = 0; k < p.matches; ++k) {
    const int64_t start = (((b * z.heads + head) * p.matches + k) * z.frames + t) * channels * plane;
    channels_first<S>(sums.get() + k * row_size, z.query_width, channels, out + start, plane);
  }
}

template <typename S, typename E>
static void gather_with(const GatherArguments& a) {
  const Sizes& z = a.p.sizes;
  const int64_t size = int64_t(z.key_frames) * z.key_height * z.key_width * z.channels;
  const GridPatch grid = grid_patch(a.p.patch, z.stride);
  each_head(z.batch, z.heads, size, [&](int64_t b, int head) {
    Block<S> memory(size);
    const Pixels<S> value{memory.get(), z.key_height, z.key_width, z.channels};
    pack_head(static_cast<const E*>(a.value), b, head, z.key_frames, z.heads, value);
    parallel(int64_t(z.frames) * z.query_height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        gather_row<S, E>(a, value, grid, b, head, int(i / z.query_height), int(i % z.query_height));
    });
  });
}

// The gradient that arrives at the outputs of one head, read a run of channels at a time.
template <typename S, typename E>
class ArrivingGradient {
 public:
  ArrivingGradient(const GatherBackwardArguments& a, const GridPatch& grid)
      : a_(a),
        z_(a.p.sizes),
        grid_(grid),
        memory_(a.stack ? 0 : int64_t(z_.frames) * z_.queries() * z_.channels),
        packed_{memory_.get(), z_.query_height, z_.query_width, z_.channels} {}

  void begin(int64_t b, int head) {
    head_first_ = static_cast<const E*>(a_.grad) + (b * z_.heads + head) * a_.p.matches * z_.frames * z_.channels * z_.queries();
    if (a_.stack) return;
    pack_head(static_cast<const E*>(a_.grad), b, head, z_.frames, z_.heads, packed_);
    if (grid_.side == 1) return;
    parallel(int64_t(z_.frames) * z_.queries(), 1 << 10, [&](int64_t begin, int64_t end) {
      for (int64_t q = begin; q < end; ++q) {
        const int nx = grid_.count(int(q % z_.query_width), z_.query_width);
        const int ny = grid_.count(int(q / z_.query_width % z_.query_height), z_.query_height);
        S* out = packed_.data + q * z_.channels;
        for (int c = 0; c < z_.channels; ++c) out[c] /= S(nx * ny);
      }
    });
  }

  // Channels c ... c+n-1 at query (x, y) of frame t, for match k.
  void read(int t, int y, int x, int k, int c, int n, S* out) const {
    const int64_t query = int64_t(y) * z_.query_width + x;
    if (!a_.stack) {
      const S* in = packed_.frame(t) + query * z_.channels + c;
      for (int i = 0; i < n; ++i) out[i] = in[i];
      return;
    }
    const E* in = head_first_ + ((int64_t(k) * z_.frames + t) * z_.channels + c) * z_.queries() + query;
    for (int i = 0; i < n; ++i) out[i] = load<S>(in + i * z_.queries());
  }

 private:
  const GatherBackwardArguments& a_;
  const Sizes& z_;
  const GridPatch& grid_;
  Block<S> memory_;
  Pixels<S> packed_;
  const E* head_first_ = nullptr;
};

// body(taps, the taps for slopes, Slopes, gradient of the sample, channel, number of channels) for every run of every sample that match
// `number` contributes, to whichever query of its block.
template <typename S, typename Gradient, typename Body>
static inline void each_sample(const GatherParameters& p, const GridPatch& grid, const Gradient& gradient, int64_t number, const S* offset,
                               const Body& body) {
  const Sizes& z = p.sizes;
  const int k = int(number % p.matches);
  const int64_t block = number / p.matches;
  const int first_column = int(block % p.block_columns) * p.block, first_row = int(block / p.block_columns % p.block_rows) * p.block;
  const int end_column = least(first_column + p.block, z.query_width), end_row = least(first_row + p.block, z.query_height);
  const int t = int(block / p.blocks());
  for (int row = first_row; row < end_row; ++row) {
    for (int column = first_column; column < end_column; ++column) {
      const Anchor<S> ax = anchor_of(S(column * z.stride), offset[0], z.key_width);
      const Anchor<S> ay = anchor_of(S(row * z.stride), offset[1], z.key_height);
      const Split<S> x = split(ax.position), y = split(ay.position);
      for (int j = 0; j < grid.side; ++j) {
        for (int i = 0; i < grid.side; ++i) {
          const int to_x = column + grid.at(i), to_y = row + grid.at(j);
          if (to_x < 0 || to_x >= z.query_width || to_y < 0 || to_y >= z.query_height) continue;
          const int dx = grid.at(i) * grid.pixels, dy = grid.at(j) * grid.pixels;
          const Taps<S> taps = taps_at(x, y, dx, dy, z.key_height, z.key_width, z.channels, true);
          const Taps<S> beside = taps_at(x, y, dx, dy, z.key_height, z.key_width, z.channels, false);
          each_run(z.channels, [&](int c, auto n) {
            S arrived[kRun];
            gradient.read(t, to_y, to_x, k, c, n, arrived);
            body(taps, beside, Slopes<S>{ax.slope, ay.slope}, arrived, c, n);
          });
        }
      }
    }
  }
}

template <typename S, typename E>
static void gather_backward_with(const GatherBackwardArguments& a) {
  const GatherParameters& p = a.p;
  const Sizes& z = p.sizes;
  const GridPatch grid = grid_patch(p.patch, z.stride);
  const bool by_query = a.grad_weights != nullptr || a.grad_offsets != nullptr;
  const int64_t value_size = by_query ? int64_t(z.key_frames) * z.key_height * z.key_width * z.channels : 0;
  const int64_t grad_size = a.stack ? 0 : int64_t(z.frames) * z.queries() * z.channels;
  each_head(z.batch, z.heads, value_size + grad_size, [&](int64_t b, int head) {
    Block<S> memory(value_size);
    const Pixels<S> value{memory.get(), z.key_height, z.key_width, z.channels};
    ArrivingGradient<S, E> gradient(a, grid);
    const int64_t head_first = (b * z.heads + head) * z.frames * p.blocks() * p.matches;
    const S* weights = static_cast<const S*>(a.weights) + head_first;
    const S* offsets = static_cast<const S*>(a.offsets) + 2 * head_first;
    const int32_t* frames = a.frames + head_first;
    gradient.begin(b, head);
    if (by_query) {
      pack_head(static_cast<const E*>(a.value), b, head, z.key_frames, z.heads, value);
      parallel(z.frames * p.blocks() * p.matches, 256, [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m) {
          Lanes<S> weight, gx, gy;
          const int f = frames[m];
          if (f >= 0 && f < z.key_frames) {
            each_sample(p, grid, gradient, m, offsets + 2 * m,
                        [&](const Taps<S>& taps, const Taps<S>& beside, const Slopes<S>& slope, const S* arrived, int c, auto n) {
                          S sample[kRun];
                          mix(value.frame(f) + c, taps, n, sample);
                          for (int i = 0; i < n; ++i) weight.at[i] += sample[i] * arrived[i];
                          if (a.grad_offsets != nullptr) slopes(value.frame(f) + c, taps, beside, n, arrived, slope, &gx, &gy);
                        });
          }
          if (a.grad_weights != nullptr) static_cast<S*>(a.grad_weights)[head_first + m] = weight.sum();
          if (a.grad_offsets != nullptr) {
            S* out = static_cast<S*>(a.grad_offsets) + 2 * (head_first + m);
            out[0] = weights[m] * gx.sum();
            out[1] = weights[m] * gy.sum();
          }
        }
      });
    }
    if (a.grad_value != nullptr) {
      const int reach = p.patch.reach() + (p.block - 1) * z.stride;  // a match lies where that of its block's first query does
      push_matches<S>(p.block_sizes(), reach, p.matches, b, head, offsets, frames, static_cast<E*>(a.grad_value), [&](int64_t m, S* out) {
        if (weights[m] == S(0)) return;
        each_sample(p, grid, gradient, m, offsets + 2 * m, [&](const Taps<S>& taps, const Taps<S>&, const Slopes<S>&, S* arrived, int c, auto n) {
          for (int i = 0; i < n; ++i) arrived[i] *= weights[m];
          spread(out + c, taps, n, arrived);
        });
      });
    }
  });
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
