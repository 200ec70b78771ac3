// Key frames laid out for the quick search: float32, channels in groups of four, with a margin.
//
// Row y holds one group of channels after the other, and in each group the pixels -margin ... width + margin, four numbers each (channels
// beyond the last are 0). A vector then holds a few neighbouring pixels, a window's row is one short run of memory for every
// group, and no lane is idle. Rows go from -reach to height + reach. What lies outside the image is its reflection, so that
// windows and patches at the border need no care. After the groups of a row come three planes of one number a pixel, which the
// l2 score at a fractional position needs.
#pragma once

#include "simd.h"
#include "support.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

constexpr int kGroup = 4;
constexpr int kPixels = kLanes / kGroup;  // in a vector

// Pixels of one group from up to four planes, `plane` apart; channels that are not there are 0.
template <typename E>
static void interleave(const E* planes, int64_t plane, int channels, int pixels, float* __restrict__ out) {
  if (channels == kGroup) {
    const E *a = planes, *b = a + plane, *c = b + plane, *d = c + plane;
    for (int x = 0; x < pixels; ++x) {  // a pattern the compiler turns into transposes of vectors
      out[4 * x] = load<float>(a + x);
      out[4 * x + 1] = load<float>(b + x);
      out[4 * x + 2] = load<float>(c + x);
      out[4 * x + 3] = load<float>(d + x);
    }
    return;
  }
  for (int c = 0; c < kGroup; ++c)
    for (int x = 0; x < pixels; ++x) out[x * kGroup + c] = c < channels ? load<float>(planes + c * plane + x) : 0.0f;
}

// Between two pixels, (1-f) k0 + f k1, the squared distance to q is (1-f) |q-k0|^2 + f |q-k1|^2 - f(1-f) |k0-k1|^2. The first two
// terms are what neighbouring candidates share; the third does not depend on the query. All terms are differences, so
// nothing cancels that is not small itself, and equal pixels score exactly 0. Applied along x, then along y, this asks
// for three planes; the third comes in because the difference of two rows is itself interpolated along x.
enum Neighbours {
  kAcross = 0,  // |k(x+1, y) - k(x, y)|^2
  kDown = 1,    // |k(x, y+1) - k(x, y)|^2
  kMixed = 2    // |k(x+1, y+1) - k(x, y+1) - k(x+1, y) + k(x, y)|^2
};

class KeyRows {
 public:
  // `margin`: columns beyond the image that a window may read; `overrun`: further ones that a vector may read.
  KeyRows(const Sizes& z, const Patch& patch, bool neighbours, int margin, int overrun)
      : z_(z),
        patch_(patch),
        neighbours_(neighbours),
        reach_(patch.reach()),
        margin_(whole_vectors(margin + reach_)),
        groups_((z.channels + kGroup - 1) / kGroup),
        pixels_(whole_vectors(z.key_width + 2 * margin_ + 1 + overrun + reach_)),
        rows_(z.key_height + 2 * reach_ + 1) {}

  int groups() const { return groups_; }
  int rows() const { return rows_; }
  int64_t group_size() const { return int64_t(pixels_) * kGroup; }
  int64_t row_size() const { return int64_t(pixels_) * (groups_ * kGroup + (neighbours_ ? 3 : 0)); }
  int64_t frame_size() const { return rows_ * row_size(); }

  // How many pixels x lies beyond the beginning of a vector that is aligned in memory.
  static int skew(int x) { return int(unsigned(x) % kPixels); }
  // Pixel (x, y) of the first group.
  const float* pixel(const float* frame, int x, int y) const { return frame + (y + reach_) * row_size() + (margin_ + x) * kGroup; }
  // Pixel (x, y) of a plane of neighbours.
  const float* neighbours(const float* frame, int x, int y, Neighbours plane) const {
    return frame + (y + reach_) * row_size() + groups_ * group_size() + int64_t(plane) * pixels_ + margin_ + x;
  }

  // Fills row number r (0 is image row -reach) from the planes of the frame.
  template <typename E>
  void fill_channels(const E* planes, int r, float* frame) const {
    const int64_t plane = int64_t(z_.key_height) * z_.key_width;
    const int y = reflect_index(r - reach_, z_.key_height);
    const int end = margin_ + z_.key_width;
    for (int g = 0; g < groups_; ++g) {
      const E* in = planes + int64_t(g) * kGroup * plane + int64_t(y) * z_.key_width;
      float* out = frame + r * row_size() + g * group_size();
      const int channels = least(kGroup, z_.channels - g * kGroup);
      interleave(in, plane, channels, z_.key_width, out + margin_ * kGroup);
      for (int x = 0; x < pixels_; x = x + 1 == margin_ ? end : x + 1) {
        const float* from = out + (margin_ + reflect_index(x - margin_, z_.key_width)) * kGroup;
        for (int c = 0; c < kGroup; ++c) out[x * kGroup + c] = from[c];
      }
    }
  }

  // Fills the planes of neighbours of row number r; the channels of all rows must be there. `scratch` is for 3 * group_size() numbers.
  void fill_neighbours(int r, float* frame, float* scratch) const {
    const int y = r - reach_;
    if (!neighbours_ || y < 0 || y > z_.key_height) return;
    const bool last = y == z_.key_height;  // a cell's lower edge at most: asked for what is across, never for what is down
    const int64_t size = group_size();
    float* __restrict__ across = scratch;
    float* __restrict__ down = scratch + size;
    float* __restrict__ mixed = scratch + 2 * size;
    for (int64_t i = 0; i < 3 * size; ++i) scratch[i] = 0;
    for (int j = 0; j < patch_.side; ++j) {
      for (int i = 0; i < patch_.side; ++i) {
        const float* top = frame + (r + patch_.offset(j)) * row_size() + patch_.offset(i) * kGroup;
        for (int g = 0; g < groups_; ++g, top += size) {
          const float* bottom = last ? top : top + row_size();
#pragma omp simd
          for (int64_t n = reach_ * kGroup; n < size - (reach_ + 1) * kGroup; ++n) {
            const float k00 = top[n], k01 = top[n + kGroup], k10 = bottom[n], k11 = bottom[n + kGroup];
            across[n] += (k01 - k00) * (k01 - k00);
            down[n] += (k10 - k00) * (k10 - k00);
            mixed[n] += (k11 - k10 - k01 + k00) * (k11 - k10 - k01 + k00);
          }
        }
      }
    }
    float* out = frame + r * row_size() + groups_ * size;
    for (int64_t n = 0; n < 3 * int64_t(pixels_); ++n, scratch += kGroup) out[n] = scratch[0] + scratch[1] + scratch[2] + scratch[3];
  }

 private:
  static int whole_vectors(int pixels) { return (pixels + 15) / 16 * 16; }

  const Sizes& z_;
  Patch patch_;
  bool neighbours_;
  int reach_, margin_, groups_, pixels_, rows_;
};

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
