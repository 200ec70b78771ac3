// The gradient of the weights of a 3x3 convolution, by the same points as winograd.h takes forward:
//
//     spread     input tiles -> values (36, tiles, inputs); tiles of the gradient, 4x4 a channel -> slopes (36, tiles, outputs)
//     multiply   for each of the 36: values^T x slopes, summed over all tiles -> sums (36, inputs, outputs)
//     collect    36 sums a pair of channels -> 3x3
//
// The tiles are cut into parts that follow from the sizes alone, and the parts are added in their order: the result does not depend
// on the number of threads.
#pragma once

#include "winograd.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

constexpr int kChannelRows = 4;  // channels of the input in one product: a divisor of kLanes
constexpr int64_t kParts = 16;

// --- along one axis ---

// Four numbers of a gradient tile to the six points.
static inline void slopes_to_points(const Floats (&y)[kOutSide], Floats (&m)[kInSide]) {
  const Floats even = y[0] + y[2], odd = y[1] + y[3];
  const Floats even2 = y[0] + 4 * y[2], odd2 = 2 * y[1] + 8 * y[3];
  m[0] = y[0];
  m[1] = even + odd;
  m[2] = even - odd;
  m[3] = even2 + odd2;
  m[4] = even2 - odd2;
  m[5] = y[3];
}

// Six sums to the gradient of three weights.
static inline void to_weights(const Floats (&u)[kInSide], Floats (&g)[3]) {
  const Floats near = (u[1] + u[2]) / 6, far = u[3] + u[4];
  g[0] = u[0] / 4 - near + far / 24;
  g[1] = (u[2] - u[1]) / 6 + (u[3] - u[4]) / 12;
  g[2] = far / 6 - near + u[5];
}

// --- tiles ---

// A tile of the gradient, as far as the picture has it.
static inline void spread_slopes(const Winograd& z, const Tile& tile, const float* grad, const Edge& edge, float* slopes) {
  const float* first = grad + (tile.picture * z.a.height + tile.y) * z.out_row + int64_t(tile.x) * z.a.outputs;
  const float* places[kOutSide][kOutSide];
  for (int i = 0; i < kOutSide; ++i) {
    for (int j = 0; j < kOutSide; ++j) {
      const bool seen = tile.y + i < z.a.height && tile.x + j < z.a.width;
      places[i][j] = seen ? edge.pixel(first + i * z.out_row + int64_t(j) * z.a.outputs) : edge.zeros();
    }
  }
  for (int o = 0; o < z.outputs; o += kLanes) {
    Floats grid[kInSide][kOutSide];
    for (int j = 0; j < kOutSide; ++j) {
      Floats y[kOutSide], m[kInSide];
      for (int i = 0; i < kOutSide; ++i) y[i] = load_floats(places[i][j] + o);
      slopes_to_points(y, m);
      for (int i = 0; i < kInSide; ++i) grid[i][j] = m[i];
    }
    for (int i = 0; i < kInSide; ++i) {
      Floats m[kInSide];
      slopes_to_points(grid[i], m);
      for (int j = 0; j < kInSide; ++j) store_floats(slopes + (i * kInSide + j) * z.product_point + o, m[j]);
    }
  }
}

// Adds what `tiles` tiles give for kWide vectors of outputs, at one point.
template <int kWide>
static inline void add_columns(const Winograd& z, int tiles, const float* values, const float* slopes, float* sums) {
  for (int c = 0; c < z.inputs; c += kChannelRows) {
    Floats sum[kChannelRows][kWide];
    for (int r = 0; r < kChannelRows; ++r)
      for (int n = 0; n < kWide; ++n) sum[r][n] = load_floats(sums + int64_t(c + r) * z.outputs + n * kLanes);
    for (int t = 0; t < tiles; ++t) {
      Floats slope[kWide];
      for (int n = 0; n < kWide; ++n) slope[n] = load_floats(slopes + t * z.outputs + n * kLanes);
      for (int r = 0; r < kChannelRows; ++r) {
        const Floats value = all(values[t * z.inputs + c + r]);
        for (int n = 0; n < kWide; ++n) sum[r][n] += value * slope[n];
      }
    }
    for (int r = 0; r < kChannelRows; ++r)
      for (int n = 0; n < kWide; ++n) store_floats(sums + int64_t(c + r) * z.outputs + n * kLanes, sum[r][n]);
  }
}

// The sums of `parts` parts, `size` floats each, to (outputs, inputs, 3, 3).
static void collect(const Winograd& z, const float* sums, int64_t parts, int64_t size, float* grad_weight) {
  const int64_t inputs = z.a.inputs;
  parallel(inputs, 4, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      for (int o = 0; o < z.outputs; o += kLanes) {
        Floats grid[3][kInSide];
        for (int j = 0; j < kInSide; ++j) {
          Floats u[kInSide] = {}, g[3];
          for (int i = 0; i < kInSide; ++i)
            for (int64_t part = 0; part < parts; ++part)
              u[i] += load_floats(sums + part * size + (int64_t(i * kInSide + j) * z.inputs + c) * z.outputs + o);
          to_weights(u, g);
          for (int i = 0; i < 3; ++i) grid[i][j] = g[i];
        }
        for (int i = 0; i < 3; ++i) {
          Floats g[3];
          to_weights(grid[i], g);
          for (int j = 0; j < 3; ++j)
            for (int k = 0; k < least(kLanes, z.a.outputs - o); ++k) grad_weight[((o + k) * inputs + c) * 9 + 3 * i + j] = g[j][k];
        }
      }
    }
  });
}

static void convolve_backward(const ConvolveBackwardArguments& a) {
  const Winograd z(a.forward);
  const int64_t groups = (z.tiles + z.group - 1) / z.group, size = int64_t(kPoints) * z.inputs * z.outputs;
  const int64_t parts = groups < 4 ? 1 : least(groups / 4, kParts);
  Block<float> sums(parts * size);
  parallel(parts, 1, [&](int64_t begin, int64_t end) {
    Block<float> values(kPoints * z.value_point), slopes(kPoints * z.product_point);
    const Edge edge(a.forward.inputs, z.inputs, z.end);
    const Edge slope_edge(a.forward.outputs, z.outputs, a.grad + a.forward.batch * a.forward.height * z.out_row);
    for (int64_t part = begin; part < end; ++part) {
      float* sum = sums.get() + part * size;
      memset(sum, 0, sizeof(float) * size);
      const int64_t last = least((part + 1) * groups / parts * z.group, z.tiles);
      for (int64_t first = part * groups / parts * z.group; first < last; first += z.group) {
        const int count = int(least(last - first, int64_t(z.group)));
        for (int t = 0; t < count; ++t) {
          const Tile tile(z, first + t);
          spread_tile(z, tile, edge, values.get() + int64_t(t) * z.inputs);
          spread_slopes(z, tile, a.grad, slope_edge, slopes.get() + int64_t(t) * z.outputs);
        }
        for (int64_t p = 0; p < kPoints; ++p) {
          const float *v = values.get() + p * z.value_point, *d = slopes.get() + p * z.product_point;
          float* m = sum + p * z.inputs * z.outputs;
          by_columns(z, [&](auto wide, int o) { add_columns<decltype(wide)::value>(z, count, v, d + o, m + o); });
        }
      }
    }
  });
  collect(z, sums.get(), parts, size, a.grad_weight);
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
