// What all kernels stand on: four numbers at a time, channel-last pixels, and which query a thread works for.
//
// The kernels are plain CUDA C++ without libraries, so that tests/ops/cuda_emulation can compile the same bodies for the
// CPU (STAN_EMULATE) and run them, thread by thread, against the reference.
#pragma once

#ifdef STAN_EMULATE
#include "emulation.h"
#else
#include <cuda_runtime.h>
#define STAN_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#include <math.h>

#include <cstdint>

#include "../shapes.h"

namespace stan::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int lane_of_thread() { return int(threadIdx.x) % kWarp; }

template <typename S>
__device__ inline S minus_infinity() {
  return S(-INFINITY);
}

// ------------------------------------------------------------------------------------------- four numbers at a time

template <typename S>
struct alignas(4 * sizeof(S) > 16 ? 16 : 4 * sizeof(S)) Four {
  S v[4];
};

// `p` lies on a multiple of four numbers from the start of its tensor: 16-byte accesses.
template <typename S>
__device__ inline Four<S> load4(const S* p) {
  return *reinterpret_cast<const Four<S>*>(p);
}

template <typename S>
__device__ inline void store4(S* p, const Four<S>& value) {
  *reinterpret_cast<Four<S>*>(p) = value;
}

// ------------------------------------------------------------------------------------------------ warp collectives

// Sum over the lanes that differ only in the bits of `below` under `width` (a power of two), in every such lane.
template <typename S>
__device__ inline S sum_within(S value, int width, int below = 1) {
  for (int step = below; step < width; step *= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// ------------------------------------------------------------------------------------------------- pixels and queries

// A video with its channels last, in the arithmetic type: image n = (b*HD + h)*T + t, and each pixel a record of `pitch`
// numbers. The channels come first, padded with zeros to a multiple of four (zeros change neither metric).
template <typename S>
struct Pixels {
  S* data;
  int height, width;
  int channels;  // padded
  int pitch;

  STAN_HD int64_t image_size() const { return int64_t(height) * width * pitch; }
  __device__ int64_t index(int64_t image, int y, int x) const { return ((image * height + y) * width + x) * pitch; }
  __device__ const S* at(int64_t image, int y, int x) const { return data + index(image, y, x); }
};

STAN_HD int padded(int channels) { return (channels + 3) / 4 * 4; }

STAN_HD int64_t queries_of(const Sizes& z) { return int64_t(z.query_height) * z.query_width; }  // of one image

// One query: its number in (B, HD, T, Hq, Wq), image, frame, head and pixel.
struct Query {
  int64_t number;
  int64_t image;    // (b*HD + h)*T + t
  int64_t batch;
  int64_t in_image;  // row * Wq + column
  int head, t;
  int x, y;  // pixels
};

__device__ inline Query query_at(const Sizes& z, int64_t number) {
  Query q;
  q.number = number;
  q.image = number / queries_of(z);
  q.in_image = number - q.image * queries_of(z);
  q.t = int(q.image % z.frames);
  q.head = int(q.image / z.frames % z.heads);
  q.batch = q.image / z.frames / z.heads;
  const int row = int(q.in_image / z.query_width);
  q.y = row * z.stride;
  q.x = int(q.in_image - int64_t(row) * z.query_width) * z.stride;
  return q;
}

// Image of frame f of the key, in the query's own clip and head.
__device__ inline int64_t image_of_frame(const Sizes& z, const Query& q, int f) { return (q.batch * z.heads + q.head) * z.key_frames + f; }

}  // namespace stan::cuda
