// Where the search looks: the index arithmetic of the operator, shared by the CPU and the CUDA kernels.
//
// Pure inline functions, no torch, no state. Coordinates are (x, y) pixels; S is the arithmetic type of the call
// (float, or double when the inputs are double). The Python reference evaluates the same expressions in the same type, so
// positions agree bit for bit. Only `step_position` multiplies before it adds: contracted to a fused multiply-add it gives
// the same bits for every key stride that is a sum of few powers of two (1/2, 1, 2, 3 ...), where the product is exact.
#pragma once

#include <math.h>
#include <stdint.h>

// Always inlined: the CPU kernels are compiled once per processor generation, and a shared out-of-line copy made for the newest
// one must never be linked into the code for an older one.
#ifdef __CUDACC__
#define STAN_HD __host__ __device__ __forceinline__
#else
#define STAN_HD inline __attribute__((always_inline))
#endif

namespace stan {

// Largest height or width: every whole position and every tap index is then exact in float32.
constexpr int64_t kMaxSide = int64_t{1} << 23;

// ---------------------------------------------------------------------------------------------------------------- time

// Number of frames searched for each query frame.
STAN_HD int slots_of(int temporal_window, bool causal) {
  return causal ? temporal_window + 1 : 2 * temporal_window + 1;
}

// First frame of the temporal window of frame t: [first, first + slots) lies inside the clip. Not for causal searches.
STAN_HD int first_frame(int t, int frames, int temporal_window) {
  const int slots = 2 * temporal_window + 1;
  int first = t - temporal_window;
  if (first > frames - slots) first = frames - slots;
  return first < 0 ? 0 : first;
}

// Frame searched in `slot`: t, then t+1, t+2, ..., then t-1, t-2, ...; causal: t, t-1, ...; -1 where there is none.
STAN_HD int frame_of_slot(int t, int slot, int frames, int temporal_window, bool causal) {
  if (causal) return t - slot >= 0 ? t - slot : -1;
  const int first = first_frame(t, frames, temporal_window);
  const int after = first + 2 * temporal_window - t;  // how many searched frames follow t
  return slot <= after ? t + slot : t - (slot - after);
}

// The slot in which frame f is searched from frame t (f must be one of the searched frames): inverse of frame_of_slot.
STAN_HD int slot_of_frame(int t, int f, int frames, int temporal_window, bool causal) {
  if (causal) return t - f;
  const int after = first_frame(t, frames, temporal_window) + 2 * temporal_window - t;
  return f >= t ? f - t : after + (t - f);
}

// --------------------------------------------------------------------------------------------------------------- space

template <typename S>
STAN_HD bool finite(S v) {
  return v - v == S(0);  // false for NaN and both infinities; needs no library call on either side
}

template <typename S>
STAN_HD S finite_or_zero(S v) {
  return finite(v) ? v : S(0);
}

STAN_HD float floor_of(float v) { return ::floorf(v); }
STAN_HD double floor_of(double v) { return ::floor(v); }

// A coordinate brought inside [0, length-1], and d(position)/d(input): +1, -1 when reflected, 0 when clamped or replaced.
template <typename S>
struct Anchor {
  S position;
  S slope;
};

// Reflect once at the borders (v < 0 -> -v, v > L-1 -> 2(L-1) - v), then clamp what is still outside.
template <typename S>
STAN_HD Anchor<S> reflect(S v, int length) {
  const S last = S(length - 1);
  S slope = S(1);
  if (v < S(0)) {
    v = -v;
    slope = S(-1);
  } else if (v > last) {
    v = S(2) * last - v;
    slope = S(-1);
  }
  if (v < S(0)) return {S(0), S(0)};
  if (v > last) return {last, S(0)};
  return {v, slope};
}

// The anchor along one axis: start + shift reflected; a shift that is NaN or infinite counts as zero.
// `start` is the query's coordinate (x * stride), `shift` the flow, or the offset that is to be refined.
template <typename S>
STAN_HD Anchor<S> anchor_of(S start, S shift, int length) {
  if (!finite(shift)) {
    Anchor<S> a = reflect(start, length);
    a.slope = S(0);
    return a;
  }
  return reflect(start + shift, length);
}

// A whole coordinate reflected once, then clamped: for patch pixels and for bilinear taps.
STAN_HD int reflect_index(int i, int length) {
  if (i < 0) i = -i;
  else if (i > length - 1) i = 2 * (length - 1) - i;
  if (i < 0) return 0;
  return i > length - 1 ? length - 1 : i;
}

// The candidates along one axis are anchor + step * k for the whole numbers k in [begin, begin + window).
// Those with k in [low, high] lie inside the image; the others are invalid. 0 is always in [low, high], so the
// candidate at the anchor itself (k = 0, index -begin) always exists and is valid.
struct Window {
  int begin;
  int low;
  int high;
  STAN_HD bool valid(int k) const { return k >= low && k <= high; }
};

// With `slide` the window moves by whole steps until it lies inside [low, high]; where it is longer than that, it begins
// at `low` and its tail is invalid.
template <typename S>
STAN_HD Window window_of(S anchor, S step, int window, int length, bool slide) {
  Window w;
  // The bounds keep the conversion to int defined for tiny steps; no window is that long.
  const S below = floor_of(anchor / step);
  const S above = floor_of((S(length - 1) - anchor) / step);
  const S limit = S(1 << 28);
  w.low = below < limit ? -int(below) : -(1 << 28);
  w.high = above < limit ? int(above) : 1 << 28;
  w.begin = -((window - 1) / 2);
  if (slide) {
    if (w.begin + window - 1 > w.high) w.begin = w.high - window + 1;
    if (w.begin < w.low) w.begin = w.low;
  }
  return w;
}

// Position of the candidate k steps from the anchor. The same expression everywhere: offsets = this - query coordinate.
template <typename S>
STAN_HD S step_position(S anchor, S step, int k) {
  return anchor + step * S(k);
}

// A position split for bilinear sampling: taps floor and floor + 1 (each through reflect_index), weights 1-fraction, fraction.
// Reflecting the two whole taps equals reflecting the position itself, also in the clamped region.
template <typename S>
struct Split {
  int whole;
  S fraction;
};

template <typename S>
STAN_HD Split<S> split(S position) {
  const S whole = floor_of(position);
  return {int(whole), position - whole};
}

// Position of a stored match along one axis, split for sampling; inside the image whatever the offset holds.
template <typename S>
STAN_HD Split<S> match_position(int start, S offset, int length) {
  return split(anchor_of(S(start), offset, length).position);
}

// --------------------------------------------------------------------------------------------------------------- order

// Whether score a ranks before b; equal scores do not, so that what came first stays first. NaN ranks after all numbers.
template <typename S>
STAN_HD bool better(S a, S b) {
  return a > b || (b != b && a == a);
}

}  // namespace stan
