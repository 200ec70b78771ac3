// Weighted sums of values at matches (gather), the same without the sum (gather_stack), and their gradients.
//
// A patch pixel (u, v) of query q' falls on the query q' + (u, v) / stride where that is whole and on the grid; an output is
// the mean over the patch pixels that fall on it.
#pragma once

#include <cstdint>

#include "../geometry.h"
#include "../shapes.h"
#include "device.cuh"
#include "score.cuh"

namespace stan::cuda {

constexpr int kGatherThreads = 256;

template <typename S>
struct GatherProblem : GatherParameters {
  GridPatch grid;
  Pixels<S> value;
  const S* weights;
  const S* offsets;
  const int32_t* frames;
  bool stack;
};

template <typename S>
__device__ inline Taps<S> match_taps(const GatherProblem<S>& p, const Query& q, int64_t match, int frame, int dx, int dy, bool tight) {
  const Split<S> x = match_position(q.x, p.offsets[2 * match], p.sizes.key_width);
  const Split<S> y = match_position(q.y, p.offsets[2 * match + 1], p.sizes.key_height);
  const int64_t image = image_of_frame(p.sizes, q, frame);
  return taps_at(p.value, image, x, y, dx * p.grid.pixels, dy * p.grid.pixels, tight);
}

STAN_HD int64_t gather_blocks(int64_t images, int64_t queries, int lanes, int outputs) {
  return images * outputs * ((queries + kGatherThreads / lanes - 1) / (kGatherThreads / lanes));
}

// A block sums for 256/kLanes neighbouring queries of one image, kLanes lanes a query, four channels a lane; the sums
// pass through shared memory so that rows of the output are written in runs. A stack has a block for each match.
template <typename S, typename E, int kLanes>
__global__ void __launch_bounds__(kGatherThreads) gather_kernel(GatherProblem<S> p, E* output) {
  constexpr int kQueries = kGatherThreads / kLanes, kRun = 4 * kLanes;
  __shared__ S tile[kRun][kQueries + 1];
  const Sizes& z = p.sizes;
  const int64_t blocks = (queries_of(z) + kQueries - 1) / kQueries;
  const int outputs = p.stack ? p.matches : 1;
  const int64_t first = int64_t(blockIdx.x) % blocks * kQueries;
  const int output_match = int(int64_t(blockIdx.x) / blocks % outputs);
  const int64_t image = int64_t(blockIdx.x) / blocks / outputs;
  const int count = int(queries_of(z) - first < kQueries ? queries_of(z) - first : kQueries);
  const int thread = int(threadIdx.x), own = thread / kLanes, part = thread % kLanes;
  const Query q = query_at(z, image * queries_of(z) + first + (own < count ? own : 0));
  const int column = q.x / z.stride, row = q.y / z.stride;
  // Images of the output: (b*T + t)*HD + head, and for a stack ((b*HD + head)*K + k)*T + t.
  const int64_t plane = p.stack ? ((q.batch * z.heads + q.head) * p.matches + output_match) * z.frames + q.t
                                : (q.batch * z.frames + q.t) * z.heads + q.head;
  E* const out = output + plane * z.channels * queries_of(z) + first;

  for (int c0 = 0; c0 < z.channels; c0 += kRun) {
    const int c = c0 + 4 * part;
    Four<S> sum = {};
    if (own < count && c < p.value.channels) {
      for (int pixel = 0; pixel < p.grid.side * p.grid.side; ++pixel) {
        const int dx = p.grid.at(pixel % p.grid.side), dy = p.grid.at(pixel / p.grid.side);
        const int from_x = column - dx, from_y = row - dy;
        if (from_x < 0 || from_x >= z.query_width || from_y < 0 || from_y >= z.query_height) continue;
        const Query from = query_at(z, image * queries_of(z) + int64_t(from_y) * z.query_width + from_x);
        const int k_end = p.stack ? output_match + 1 : p.matches;
        for (int k = p.stack ? output_match : 0; k < k_end; ++k) {
          const int64_t match = (image * p.blocks() + p.block_of(from_y, from_x)) * p.matches + k;
          const int frame = p.frames[match];
          const S weight = p.weights[match];
          if (frame < 0 || frame >= z.key_frames || weight == S(0)) continue;
          const Four<S> value = sample4(p.value.data, match_taps(p, from, match, frame, dx, dy, true), c);
#pragma unroll
          for (int i = 0; i < 4; ++i) sum.v[i] += weight * value.v[i];
        }
      }
      if (p.grid.side > 1) {
        const S share = S(1) / S(p.grid.count(column, z.query_width) * p.grid.count(row, z.query_height));
#pragma unroll
        for (int i = 0; i < 4; ++i) sum.v[i] *= share;
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) tile[4 * part + i][own] = sum.v[i];
    __syncthreads();
    const int run = z.channels - c0 < kRun ? z.channels - c0 : kRun;
    for (int i = thread; i < run * kQueries; i += kGatherThreads) {
      const int channel = i / kQueries, query = i % kQueries;
      if (query < count) out[(c0 + channel) * queries_of(z) + query] = static_cast<E>(tile[channel][query]);
    }
    __syncthreads();
  }
}

// The gradient that arrives, a contiguous tensor of the outputs' shape.
template <typename E>
struct Arriving {
  const E* data;
  bool stack;

  // Index of channel 0 at query `in_image` of the image of q, for match k.
  __device__ int64_t start(const Sizes& z, const Query& q, int matches, int k, int64_t in_image) const {
    const int64_t plane = stack ? ((q.batch * z.heads + q.head) * matches + k) * z.frames + q.t
                                : (q.batch * z.frames + q.t) * z.heads + q.head;
    return plane * z.channels * queries_of(z) + in_image;
  }
};

constexpr int kGatherBackwardWarps = 8;

// One warp a block of queries; groups of lanes take a match each, four channels a lane. Neighbouring queries lie in one thread block, so that
// they share what a read of the arriving gradient brings.
template <typename S, typename E, typename Sink>
__global__ void __launch_bounds__(kGatherBackwardWarps* kWarp)
    gather_backward_kernel(GatherProblem<S> p, Arriving<E> arriving, int lanes, int64_t blocks, bool need_value, Sink grad_value,
                           S* grad_weights, S* grad_offsets) {
  const Sizes& z = p.sizes;
  const int64_t number = int64_t(blockIdx.x) * kGatherBackwardWarps + int(threadIdx.x) / kWarp;
  if (number >= blocks) return;  // a whole warp; no barrier of the thread block follows
  const Query first = query_at(p.block_sizes(), number);  // of its block
  const int first_column = first.x / z.stride, first_row = first.y / z.stride;
  const int columns = z.query_width - first_column < p.block ? z.query_width - first_column : p.block;
  const int rows = z.query_height - first_row < p.block ? z.query_height - first_row : p.block;
  const int lane = lane_of_thread(), groups = kWarp / lanes, group = lane / lanes, part = lane % lanes;
  for (int k0 = 0; k0 < p.matches; k0 += groups) {
    const int k = k0 + group;
    const int64_t match = number * p.matches + k;
    const int frame = k < p.matches ? p.frames[match] : -1;
    const bool there = frame >= 0 && frame < z.key_frames;
    const S weight = there ? p.weights[match] : S(0);
    S product = 0, along_x = 0, along_y = 0;
    for (int own = 0; there && own < rows * columns; ++own) {
      const int row = first_row + own / columns, column = first_column + own % columns;
      Query q = first;
      q.x = column * z.stride;
      q.y = row * z.stride;
      S gx = 0, gy = 0;
      for (int pixel = 0; pixel < p.grid.side * p.grid.side; ++pixel) {
        const int dx = p.grid.at(pixel % p.grid.side), dy = p.grid.at(pixel / p.grid.side);
        const int to_x = column + dx, to_y = row + dy;
        if (to_x < 0 || to_x >= z.query_width || to_y < 0 || to_y >= z.query_height) continue;
        const S share = S(1) / S(p.grid.count(to_x, z.query_width) * p.grid.count(to_y, z.query_height));
        const int64_t start = arriving.start(z, q, p.matches, k, int64_t(to_y) * z.query_width + to_x);
        const Taps<S> taps = match_taps(p, q, match, frame, dx, dy, true), beside = match_taps(p, q, match, frame, dx, dy, false);
        for (int c = 4 * part; c < p.value.channels; c += 4 * lanes) {
          Four<S> d;
#pragma unroll
          for (int i = 0; i < 4; ++i) d.v[i] = c + i < z.channels ? share * S(arriving.data[start + (c + i) * queries_of(z)]) : S(0);
          if (need_value && weight != S(0)) spread4(grad_value, taps, c, d, weight);
          if (p.value.data == nullptr) continue;  // scatter: the gradient of the value is all that is wanted
          const Four<S> value = sample4(p.value.data, taps, c);
#pragma unroll
          for (int i = 0; i < 4; ++i) product += value.v[i] * d.v[i];
          if (grad_offsets != nullptr) slopes4(p.value.data, taps, beside, c, d, &gx, &gy);
        }
      }
      if (grad_offsets == nullptr) continue;
      along_x += gx * anchor_of(S(q.x), p.offsets[2 * match], z.key_width).slope;
      along_y += gy * anchor_of(S(q.y), p.offsets[2 * match + 1], z.key_height).slope;
    }
    product = sum_within(product, lanes);
    along_x = sum_within(along_x, lanes);
    along_y = sum_within(along_y, lanes);
    if (part != 0 || k >= p.matches) continue;
    if (grad_weights != nullptr) grad_weights[match] = product;
    if (grad_offsets != nullptr) {
      grad_offsets[2 * match] = weight * along_x;
      grad_offsets[2 * match + 1] = weight * along_y;
    }
  }
}

}  // namespace stan::cuda
