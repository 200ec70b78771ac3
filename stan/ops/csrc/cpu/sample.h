// Bilinear samples of channel-last pixels, and their transposes.
#pragma once

#include "support.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

// Channels handled at a time where intermediate results stay in a local array.
constexpr int kRun = 16;

// body(c, n) for the channels in runs c ... c+n-1. A whole run's n is known to the compiler: its loops become a vector or two.
template <typename Body>
static inline void each_run(int channels, const Body& body) {
  int c = 0;
  for (; c + kRun <= channels; c += kRun) body(c, Constant<kRun>());
  if (c < channels) body(c, channels - c);
}

// The four pixels around a position, and how far the position lies towards the second of each pair.
template <typename S>
struct Taps {
  int64_t i00, i01, i10, i11;  // index of the first channel
  S fx, fy;
};

// Taps of the position (x, y) moved by whole pixels (dx, dy); outside the image pixels reflect. `x` and `y` are split already.
// With `tight`, the second tap of a whole coordinate, which has weight 0, is the first again: a NaN there cannot leak in.
template <typename S>
static inline Taps<S> taps_at(const Split<S>& x, const Split<S>& y, int dx, int dy, int height, int width, int channels, bool tight) {
  const int x0 = reflect_index(x.whole + dx, width);
  const int y0 = reflect_index(y.whole + dy, height);
  const int x1 = tight && x.fraction == S(0) ? x0 : reflect_index(x.whole + dx + 1, width);
  const int y1 = tight && y.fraction == S(0) ? y0 : reflect_index(y.whole + dy + 1, height);
  const int64_t r0 = int64_t(y0) * width, r1 = int64_t(y1) * width;
  return {(r0 + x0) * channels, (r0 + x1) * channels, (r1 + x0) * channels, (r1 + x1) * channels, x.fraction, y.fraction};
}

// A sum over channels that stays apart by lanes until its end: vectors all the way, and the same result however channels come in runs.
template <typename S>
struct Lanes {
  S at[kRun] = {};
  S sum() const {
    S left[kRun];
    for (int i = 0; i < kRun; ++i) left[i] = at[i];
    for (int half = kRun / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) left[i] += left[i + half];
    return left[0];
  }
};

// out = the sample.
template <typename S>
static inline void mix(const S* frame, const Taps<S>& t, int channels, S* __restrict__ out) {
  const S *a = frame + t.i00, *b = frame + t.i01, *c = frame + t.i10, *d = frame + t.i11;
  if (t.fx == S(0) && t.fy == S(0)) {
    for (int i = 0; i < channels; ++i) out[i] = a[i];
    return;
  }
  const S w00 = (1 - t.fx) * (1 - t.fy), w01 = t.fx * (1 - t.fy), w10 = (1 - t.fx) * t.fy, w11 = t.fx * t.fy;
#pragma omp simd
  for (int i = 0; i < channels; ++i) out[i] = w00 * a[i] + w01 * b[i] + w10 * c[i] + w11 * d[i];
}

// How a sample's position moves with the offset: 1, -1 where it was reflected, 0 where it was clamped.
template <typename S>
struct Slopes {
  S x, y;
};

// Adds d[i] * dsample[i]/dx, times its slope, to the lanes of gx, and the same for y; at most kRun channels. At a whole coordinate the derivative is the
// right-hand one, to a tap that has weight 0 in the sample: `beside` are the taps without `tight`, `t` those with it. What is no
// number there gives way to what `t` has in its place, so that it cannot leak in here either.
template <typename S>
static inline void slopes(const S* frame, const Taps<S>& t, const Taps<S>& beside, int channels, const S* d, const Slopes<S>& slope,
                          Lanes<S>* gx, Lanes<S>* gy) {
  const S *k00 = frame + t.i00, *k01 = frame + beside.i01, *k10 = frame + beside.i10, *k11 = frame + beside.i11;
  S numbers[3][kRun];
  if (t.fx == S(0) || t.fy == S(0)) {
    const auto choose = [&](const S* wanted, int64_t instead, S* out) {
      for (int i = 0; i < channels; ++i) out[i] = finite(wanted[i]) ? wanted[i] : frame[instead + i];
      return out;
    };
    k01 = choose(k01, t.i01, numbers[0]);
    k10 = choose(k10, t.i10, numbers[1]);
    k11 = choose(k11, t.i11, numbers[2]);
  }
  for (int i = 0; i < channels; ++i) {
    const S top = k01[i] - k00[i], bottom = k11[i] - k10[i];
    const S left = k10[i] - k00[i], right = k11[i] - k01[i];
    gx->at[i] += slope.x * d[i] * (top + t.fy * (bottom - top));
    gy->at[i] += slope.y * d[i] * (left + t.fx * (right - left));
  }
}

// frame += the transpose of sampling, applied to d.
template <typename S>
static inline void spread(S* frame, const Taps<S>& t, int channels, const S* __restrict__ d) {
  const auto add = [&](int64_t index, S weight) {
    if (weight == S(0)) return;
    S* __restrict__ out = frame + index;
#pragma omp simd
    for (int i = 0; i < channels; ++i) out[i] += weight * d[i];
  };
  add(t.i00, (1 - t.fx) * (1 - t.fy));
  add(t.i01, t.fx * (1 - t.fy));
  add(t.i10, (1 - t.fx) * t.fy);
  add(t.i11, t.fx * t.fy);
}

template <typename S>
static inline S dot(const S* a, const S* b, int channels) {
  S sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < channels; ++i) sum += a[i] * b[i];
  return sum;
}

template <typename S>
static inline S squared_distance(const S* a, const S* b, int channels) {
  S sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < channels; ++i) {
    const S difference = a[i] - b[i];
    sum += difference * difference;
  }
  return sum;
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
