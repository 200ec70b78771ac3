// 3x3 convolutions of channel-last pictures by Winograd's minimal filtering: an output tile of 4x4 pixels takes 36 products a pair of
// channels where the sum as it is written takes 144 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv
// 1509.09308: F(4x4, 3x3), at the points 0, 1, -1, 2, -2 and infinity). Stride 1, a border of zeros, float32.
//
// Tiles are taken a few at a time, so that what lies between input and output stays in the second-level cache:
//
//     spread     an input tile, 6x6 a channel -> 36 numbers a channel      values (36, tiles, inputs)
//     multiply   for each of the 36: values x weights                      products (36, tiles, outputs)
//     finish     36 numbers an output -> an output tile, 4x4               + bias, + what is to be added, ReLU
//
// What a tile gives depends on nothing but its pixels: not on the tiles beside it, nor on how many threads there are.
#pragma once

#include "simd.h"
#include "support.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

constexpr int kOutSide = 4;  // of an output tile
constexpr int kInSide = 6;   // of the input tile that it takes
constexpr int kPoints = kInSide * kInSide;
constexpr int kTileUnit = 12;  // a multiple of the tiles of every product below

static inline int rounded_up(int count, int unit) { return (count + unit - 1) / unit * unit; }

// --- along one axis ---

// Six pixels of an input tile, in place.
static inline void to_points(Floats (&d)[kInSide]) {
  const Floats even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1];
  const Floats near = d[4] - d[2], far = d[3] - d[1];
  const Floats first = 4 * d[0] - 5 * d[2] + d[4], last = 4 * d[1] - 5 * d[3] + d[5];
  d[0] = first;
  d[1] = even + odd;
  d[2] = even - odd;
  d[3] = near + 2 * far;
  d[4] = near - 2 * far;
  d[5] = last;
}

// Three weights.
static inline void to_points(Floats a, Floats b, Floats c, Floats (&u)[kInSide]) {
  u[0] = a / 4;
  u[1] = -(a + b + c) / 6;
  u[2] = -(a - b + c) / 6;
  u[3] = a / 24 + b / 12 + c / 6;
  u[4] = a / 24 - b / 12 + c / 6;
  u[5] = c;
}

// Six products to four outputs.
static inline void from_points(const Floats (&m)[kInSide], Floats (&y)[kOutSide]) {
  const Floats sum = m[1] + m[2], difference = m[1] - m[2];
  const Floats sum2 = m[3] + m[4], difference2 = m[3] - m[4];
  y[0] = m[0] + sum + sum2;
  y[1] = difference + 2 * difference2;
  y[2] = sum + 4 * sum2;
  y[3] = difference + 8 * difference2 + m[5];
}

// --- tiles ---

struct Winograd {
  const ConvolveArguments& a;
  int inputs, outputs;  // rounded up to whole vectors
  int rows, columns;    // tiles of a picture
  int64_t tiles;
  int group;            // tiles at a time
  // How far points are apart: odd numbers of cache lines, or all would claim the same places of the cache.
  int64_t value_point, product_point;
  int64_t row, out_row;  // floats of a picture's row
  const float* end;      // behind the last pixel of the input

  explicit Winograd(const ConvolveArguments& given) : a(given) {
    inputs = rounded_up(a.inputs, kLanes);
    outputs = rounded_up(a.outputs, kLanes);
    rows = (a.height + kOutSide - 1) / kOutSide;
    columns = (a.width + kOutSide - 1) / kOutSide;
    tiles = a.batch * rows * columns;
    group = inputs + outputs <= 256 ? 2 * kTileUnit : kTileUnit;
    value_point = int64_t(group) * inputs + 16;
    product_point = int64_t(group) * outputs + 16;
    row = int64_t(a.width) * a.inputs;
    out_row = int64_t(a.width) * a.outputs;
    end = a.input + a.batch * a.height * row;
  }
};

struct Tile {
  int64_t picture;
  int x, y;  // of its first output pixel

  Tile(const Winograd& z, int64_t number)
      : picture(number / z.columns / z.rows), x(int(number % z.columns) * kOutSide), y(int(number / z.columns % z.rows) * kOutSide) {}
};

// (outputs, inputs, 3, 3) to (36, inputs, outputs rounded up), with zeros behind the last output.
static void spread_weights(const Winograd& z, float* points) {
  const int64_t inputs = z.a.inputs;
  parallel(inputs, 8, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      for (int o = 0; o < z.outputs; o += kLanes) {
        Floats w[3][3] = {}, grid[3][kInSide], u[kInSide];
        for (int k = 0; k < least(kLanes, z.a.outputs - o); ++k)
          for (int i = 0; i < 9; ++i) w[i / 3][i % 3][k] = z.a.weight[((o + k) * inputs + c) * 9 + i];
        for (int i = 0; i < 3; ++i) to_points(w[i][0], w[i][1], w[i][2], grid[i]);
        for (int j = 0; j < kInSide; ++j) {
          to_points(grid[0][j], grid[1][j], grid[2][j], u);
          for (int i = 0; i < kInSide; ++i) store_floats(points + ((i * kInSide + j) * inputs + c) * z.outputs + o, u[i]);
        }
      }
    }
  });
}

// An input tile, whose pixels `at(i, j)` points at, to one column of each point. Reads whole vectors: up to kLanes - 1 floats behind a
// pixel.
template <typename At>
static inline void spread(const At& at, int inputs, float* values, int64_t point) {
  for (int c = 0; c < inputs; c += kLanes) {
    Floats grid[kInSide][kInSide];
    for (int j = 0; j < kInSide; ++j) {
      Floats d[kInSide];
      for (int i = 0; i < kInSide; ++i) d[i] = load_floats(at(i, j) + c);
      to_points(d);
      for (int i = 0; i < kInSide; ++i) grid[i][j] = d[i];
    }
    for (int i = 0; i < kInSide; ++i) {
      to_points(grid[i]);
      for (int j = 0; j < kInSide; ++j) store_floats(values + (i * kInSide + j) * point + c, grid[i][j]);
    }
  }
}

// What the tile after next reads, of a tile that begins at `in`: it comes from memory, and would be waited for.
static inline void ask_ahead(const float* in, int64_t row, int64_t pixel) {
  constexpr int kLine = 16;
  for (int i = 0; i < kInSide; ++i)
    for (int64_t c = 0; c < kOutSide * pixel; c += kLine) __builtin_prefetch(in + i * row + (kInSide + kOutSide) * pixel + c);
}

// Where single pixels can be read by whole vectors: zeros for those outside of a picture, and copies of the last ones of all, behind which
// nothing may be read.
class Edge {
 public:
  Edge(int channels, int padded, const float* end)
      : channels_(channels), padded_(padded), end_(end), copies_((1 + kLanes) * int64_t(padded)) {
    memset(copies_.get(), 0, sizeof(float) * (1 + kLanes) * padded);
  }
  const float* zeros() const { return copies_.get(); }
  const float* pixel(const float* place) const {
    if (place + padded_ <= end_) return place;
    float* copy = copies_.get() + (end_ - place) / channels_ * padded_;  // a place of its own: the last is 1, the one before it 2, ...
    memcpy(copy, place, sizeof(float) * channels_);
    return copy;
  }

 private:
  int channels_, padded_;
  const float* end_;
  Block<float> copies_;
};

// A tile of the input.
static inline void spread_tile(const Winograd& z, const Tile& tile, const Edge& edge, float* values) {
  const int64_t pixel = z.a.inputs;
  const int x = tile.x - 1, y = tile.y - 1;
  const float* in = z.a.input + (tile.picture * z.a.height + y) * z.row + x * pixel;
  const bool inside = x >= 0 && y >= 0 && x + kInSide <= z.a.width && y + kInSide <= z.a.height;
  if (inside && in + (kInSide - 1) * (z.row + pixel) + z.inputs <= z.end) {
    ask_ahead(in, z.row, pixel);
    return spread([&](int i, int j) { return in + i * z.row + j * pixel; }, z.inputs, values, z.value_point);
  }
  const float* places[kPoints];
  for (int i = 0; i < kInSide; ++i) {
    for (int j = 0; j < kInSide; ++j) {
      const bool seen = y + i >= 0 && y + i < z.a.height && x + j >= 0 && x + j < z.a.width;
      places[i * kInSide + j] = seen ? edge.pixel(in + i * z.row + j * pixel) : edge.zeros();
    }
  }
  spread([&](int i, int j) { return places[i * kInSide + j]; }, z.inputs, values, z.value_point);
}

// kRows tiles times kWide vectors of outputs, at one point.
template <int kRows, int kWide>
static inline void multiply(const Winograd& z, const float* values, const float* weights, float* products) {
  Floats sum[kRows][kWide] = {};
  for (int c = 0; c < z.a.inputs; ++c) {
    Floats w[kWide];
    for (int n = 0; n < kWide; ++n) w[n] = load_floats(weights + int64_t(c) * z.outputs + n * kLanes);
    for (int t = 0; t < kRows; ++t) {
      const Floats value = all(values[t * z.inputs + c]);
      for (int n = 0; n < kWide; ++n) sum[t][n] += value * w[n];
    }
  }
  for (int t = 0; t < kRows; ++t)
    for (int n = 0; n < kWide; ++n) store_floats(products + t * z.outputs + n * kLanes, sum[t][n]);
}

// All tiles times kWide vectors of outputs. The sums of a product fill the registers, but for those of weights and value.
template <int kWide>
static inline void multiply_columns(const Winograd& z, int tiles, const float* values, const float* weights, float* products) {
  constexpr int kRows = kVectorRegisters == 32 ? (kWide == 3 ? 6 : 12) : 12 / kWide;
  static_assert(kTileUnit % kRows == 0, "");
  for (int t = 0; t < tiles; t += kRows)
    multiply<kRows, kWide>(z, values + int64_t(t) * z.inputs, weights, products + int64_t(t) * z.outputs);
}

// body(width, first output) for runs of one, two or three vectors, whose number is a constant, until all outputs are covered.
template <typename Body>
static inline void by_columns(const Winograd& z, const Body& body) {
  const int vectors = z.outputs / kLanes;
  int done = 0;
  if (vectors == 1) {
    body(Constant<1>(), 0);
    done = 1;
  } else if (vectors % 2 == 1) {
    body(Constant<3>(), 0);
    done = 3;
  }
  for (; done < vectors; done += 2) body(Constant<2>(), done * kLanes);
}

static inline void write(const ConvolveArguments& a, Floats v, int lanes, int64_t at) {
  if (lanes == kLanes) {
    if (a.add != nullptr) v += load_floats(a.add + at);
    store_floats(a.output + at, a.relu ? larger(Floats{}, v) : v);
    return;
  }
  for (int k = 0; k < lanes; ++k) {
    const float sum = a.add != nullptr ? v[k] + a.add[at + k] : v[k];
    a.output[at + k] = a.relu && sum < 0 ? 0 : sum;
  }
}

// An output tile, of which the picture holds `high` x `wide` pixels.
template <typename Side>
static inline void finish(const Winograd& z, const Tile& tile, Side high, Side wide, const float* products, const float* bias) {
  const int64_t place = (tile.picture * z.a.height + tile.y) * z.out_row + int64_t(tile.x) * z.a.outputs;
  for (int o = 0; o < z.outputs; o += kLanes) {
    Floats grid[kOutSide][kInSide];
    for (int j = 0; j < kInSide; ++j) {
      Floats m[kInSide], y[kOutSide];
      for (int i = 0; i < kInSide; ++i) m[i] = load_floats(products + (i * kInSide + j) * z.product_point + o);
      from_points(m, y);
      for (int i = 0; i < kOutSide; ++i) grid[i][j] = y[i];
    }
    const Floats more = load_floats(bias + o);
    const int lanes = least(kLanes, z.a.outputs - o);
    for (int i = 0; i < high; ++i) {
      Floats y[kOutSide];
      from_points(grid[i], y);
      for (int j = 0; j < wide; ++j) write(z.a, y[j] + more, lanes, place + i * z.out_row + int64_t(j) * z.a.outputs + o);
    }
  }
}

static inline void finish_tile(const Winograd& z, const Tile& tile, const float* products, const float* bias) {
  const int high = z.a.height - tile.y, wide = z.a.width - tile.x;
  if (high >= kOutSide && wide >= kOutSide) return finish(z, tile, Constant<kOutSide>(), Constant<kOutSide>(), products, bias);
  finish(z, tile, least(high, kOutSide), least(wide, kOutSide), products, bias);
}

static void convolve(const ConvolveArguments& a) {
  const Winograd z(a);
  Block<float> weights(int64_t(kPoints) * a.inputs * z.outputs), bias(z.outputs);
  spread_weights(z, weights.get());
  for (int o = 0; o < z.outputs; ++o) bias[o] = a.bias != nullptr && o < a.outputs ? a.bias[o] : 0;
  parallel((z.tiles + z.group - 1) / z.group, 1, [&](int64_t begin, int64_t end) {
    Block<float> values(kPoints * z.value_point), products(kPoints * z.product_point);
    const Edge edge(a.inputs, z.inputs, z.end);
    memset(values.get(), 0, sizeof(float) * kPoints * z.value_point);  // a last group may have fewer tiles than are multiplied
    for (int64_t first = begin * z.group; first < least(end * z.group, z.tiles); first += z.group) {
      const int count = int(least(z.tiles - first, int64_t(z.group)));
      for (int t = 0; t < count; ++t) spread_tile(z, Tile(z, first + t), edge, values.get() + int64_t(t) * z.inputs);
      const int whole = rounded_up(count, kTileUnit);
      for (int64_t p = 0; p < kPoints; ++p) {
        const float *v = values.get() + p * z.value_point, *w = weights.get() + p * a.inputs * z.outputs;
        float* m = products.get() + p * z.product_point;
        by_columns(z, [&](auto wide, int o) { multiply_columns<decltype(wide)::value>(z, whole, v, w + o, m + o); });
      }
      for (int t = 0; t < count; ++t) finish_tile(z, Tile(z, first + t), products.get() + int64_t(t) * z.outputs, bias.get());
    }
  });
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
