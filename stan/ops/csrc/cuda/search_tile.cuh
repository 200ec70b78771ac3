// The quick search: patches of one pixel, grid steps of one pixel, float32 arithmetic.
//
// All candidates of a query in one frame have the same fraction (a, b) of a pixel. So only the (ws+1)^2 whole pixels around the window
// are compared with the query, and interpolation acts on the results instead of on the features:
//
//   dot   <q, sum w_i k_i>     = sum w_i <q, k_i>
//   l2    |q - sum w_i k_i|^2  = sum w_i |q - k_i|^2 - sum_{i<j} w_i w_j |k_i - k_j|^2
//
// for the four taps i with weights w_i of sum one. The second sum knows nothing of the query: the distances between neighbouring key
// pixels are computed once (gram_kernel) and lie behind each pixel's channels. No large numbers cancel, as they would in
// |q|^2 - 2 <q, k> + |k|^2, and at whole positions the score is the plain distance to the last bit.
//
// A block serves a tile of queries, one a thread. Neighbours look at nearly the same keys: the box of all keys of the tile is brought to
// shared memory once. Where the flow is too ragged for that, each warp's queries get a box of their own, one after the other;
// and where even that is too large, a warp samples the keys in global memory. The tile takes a searched frame after the other.
#pragma once

#include <math.h>

#include <cstdint>

#include "../geometry.h"
#include "../shapes.h"
#include "device.cuh"
#include "score.cuh"
#include "search_general.cuh"
#include "thread_list.cuh"

namespace stan::cuda {

constexpr int kTileWidth = 16;
constexpr int kTileThreads = 256;  // at most
constexpr int kGram = 4;           // numbers behind the channels of a key pixel

constexpr int queue_size(int window) { return window + 7; }  // a row of candidates, and what may wait before one

// Distances between a key pixel k(x, y) and its neighbours, behind its channels: to k(x+1, y); to k(x, y+1); and from k(x, y)
// to k(x+1, y+1) plus from k(x+1, y) to k(x, y+1). The fourth number fills the 16 bytes.
inline __device__ float squared_distance(const float* a, const float* b, int channels) {
  float sum = 0;
  for (int c = 0; c < channels; c += 4) {
    const Four<float> u = load4(a + c), v = load4(b + c);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += (u.v[i] - v.v[i]) * (u.v[i] - v.v[i]);
  }
  return sum;
}

template <typename S>  // float; a template so that it may be defined in several files
__global__ void __launch_bounds__(256) gram_kernel(Pixels<S> key, int64_t pixels) {
  const int64_t number = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (number >= pixels) return;
  const int x = int(number % key.width), y = int(number / key.width % key.height);
  const int64_t image = number / key.width / key.height;
  const int right = reflect_index(x + 1, key.width), below = reflect_index(y + 1, key.height);
  const S *k00 = key.at(image, y, x), *k01 = key.at(image, y, right), *k10 = key.at(image, below, x), *k11 = key.at(image, below, right);
  const int n = key.channels;
  store4(key.data + key.index(image, y, x) + n,
         Four<S>{{squared_distance(k00, k01, n), squared_distance(k00, k10, n),
                  squared_distance(k00, k11, n) + squared_distance(k01, k10, n), S(0)}});
}

struct TileProblem {
  SearchProblem<float> search;
  int tiles_x, tiles_y, tile_height;
  int capacity;  // pixels of the box in shared memory
  int pitch;     // numbers of one of its pixels: an odd multiple of four, so that neighbouring pixels never share banks
};

// Whole key pixels [x0, x1] x [y0, y1].
struct Box {
  int x0, y0, x1, y1;

  __device__ int width() const { return x1 - x0 + 1; }
  __device__ int height() const { return y1 - y0 + 1; }
  __device__ bool fits(int capacity) const { return int64_t(width()) * height() <= capacity; }
  __device__ Box with(const Box& other) const {
    return {other.x0 < x0 ? other.x0 : x0, other.y0 < y0 ? other.y0 : y0, other.x1 > x1 ? other.x1 : x1, other.y1 > y1 ? other.y1 : y1};
  }
};

// Shared memory of a block: the lists; a box for each warp; how much of each list is filled; the box of key pixels.
STAN_HD size_t boxes_start(int threads, int topk, int window) { return ThreadList::bytes(threads, topk, queue_size(window)); }
STAN_HD size_t filled_start(int threads, int topk, int window) {
  return boxes_start(threads, topk, window) + threads / kWarp * sizeof(Box);
}
STAN_HD size_t box_start(int threads, int topk, int window) { return filled_start(threads, topk, window) + threads * sizeof(int); }
__device__ inline float* box_memory(unsigned char* shared, int topk, int window) {
  return reinterpret_cast<float*>(shared + box_start(int(blockDim.x), topk, window));
}

// One query's window in one searched frame.
struct TileWindow {
  int64_t query;           // its number
  int64_t image;           // of the key
  int left, top;           // first whole pixel
  float a, b;              // fraction of the anchor, along x and y
  unsigned columns, rows;  // bit i: the i-th of the window is valid
  int self_row;            // where the query itself is left out; -1: nowhere
  unsigned self_column;    // as a bit
  int first;               // candidate index of the window's first place

  // Valid columns of a row, as bits.
  __device__ unsigned valid(int row) const {
    if (!(rows >> row & 1)) return 0;
    return row == self_row ? columns & ~self_column : columns;
  }
};

__device__ inline TileWindow tile_window(const SearchProblem<float>& p, const Query& q, const Target<float>& t, int slot, bool active) {
  const Window x = p.window_x(t), y = p.window_y(t);
  const Split<float> at_x = split(t.x.position), at_y = split(t.y.position);
  TileWindow w = {q.number, image_of_frame(p.sizes, q, t.frame), at_x.whole + x.begin, at_y.whole + y.begin, at_x.fraction, at_y.fraction, 0, 0,
                  -1, 0, slot * p.window * p.window};
  for (int i = 0; active && i < p.window; ++i) {
    w.columns |= x.valid(x.begin + i) ? 1u << i : 0u;
    w.rows |= y.valid(y.begin + i) ? 1u << i : 0u;
  }
  if (p.sets_apart(slot)) {
    w.self_row = -y.begin;
    w.self_column = 1u << -x.begin;
  }
  return w;
}

// The score of one candidate by sampling, as the general search computes it. It works from the query's number alone, so that its callers
// need not keep more.
__device__ __noinline__ float sampled_score(const SearchProblem<float>& p, int64_t query, int candidate) {
  float score = -INFINITY;
  score_candidate(p, query_at(p.sizes, query), candidate, &score);
  return score;
}

// Features of this size, infinite ones and NaN are left to sampling: the formulas above would take infinities from each other, or
// multiply them by a weight of zero.
__device__ inline bool is_wild(const Four<float>& v) {
  constexpr float kTame = 1e15f;
  return !(fabsf(v.v[0]) <= kTame && fabsf(v.v[1]) <= kTame && fabsf(v.v[2]) <= kTame && fabsf(v.v[3]) <= kTame);
}

// Copies a box of key pixels to shared memory; pixels outside the image reflect. All threads of the block. Returns whether this thread
// saw a wild feature.
__device__ inline bool fill_box(const Pixels<float>& key, int64_t image, const Box& box, float* memory, int pitch) {
  bool wild = false;
  const int quads = key.pitch / 4, count = box.width() * quads;
  for (int row = int(threadIdx.x) / kWarp; row < box.height(); row += int(blockDim.x) / kWarp) {
    const int y = reflect_index(box.y0 + row, key.height);
    for (int i = lane_of_thread(); i < count; i += kWarp) {
      const int pixel = i / quads, part = i - pixel * quads;
      const int x = reflect_index(box.x0 + pixel, key.width);
      const Four<float> v = load4(key.at(image, y, x) + 4 * part);
      wild |= 4 * part < key.channels && is_wild(v);
      store4(memory + (row * box.width() + pixel) * pitch + 4 * part, v);
    }
  }
  return wild;
}

// Adds four channels' share of the comparison of q with k.
template <bool kL2>
__device__ inline float compare4(const Four<float>& q, const Four<float>& k, float sum) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float d = kL2 ? q.v[i] - k.v[i] : q.v[i];
    sum += d * (kL2 ? d : k.v[i]);
  }
  return sum;
}

// Scores the window of one query a lane from the box. The rows of whole pixels pass by once; each is the upper row of one row of
// candidates and the lower row of the one before. All lanes of the warp.
//
// Not inlined, so that registers are shared out to these loops alone; and it finds shared memory by itself, so that the compiler sees
// which pointers are shared.
template <int kWindow, bool kL2, int kQuads>
__device__ __noinline__ ListState scan_box(const TileProblem& p, const float* features, const TileWindow w, const Box box,
                                           const ListState state) {
  STAN_DYNAMIC_SHARED(shared);
  ThreadList list(shared, int(blockDim.x), p.search.topk, queue_size(kWindow), state);
  Four<float> kept[kQuads > 0 ? kQuads : 1];
  if constexpr (kQuads > 0) {
#pragma unroll
    for (int c = 0; c < kQuads; ++c) kept[c] = load4(features + 4 * c);
  }
  const int channels = kQuads > 0 ? 4 * kQuads : p.search.key.channels;
  const float a = w.a, b = w.b;
  const float w00 = (1 - a) * (1 - b), w01 = a * (1 - b), w10 = (1 - a) * b, w11 = a * b;
  const float* pixel = box_memory(shared, p.search.topk, kWindow) + ((w.top - box.y0) * box.width() + w.left - box.x0) * p.pitch;
  float upper[kWindow];  // what the row above gives to its candidates
#pragma unroll
  for (int i = 0; i < kWindow; ++i) upper[i] = 0;

#pragma unroll 1
  for (int row = 0; row <= kWindow; ++row) {
    float whole[kWindow + 1];  // comparison with each whole pixel of the row
#pragma unroll
    for (int i = 0; i <= kWindow; ++i) whole[i] = 0;
    if constexpr (kQuads > 0) {
#pragma unroll
      for (int c = 0; c < kQuads; ++c) {
#pragma unroll
        for (int i = 0; i <= kWindow; ++i) whole[i] = compare4<kL2>(kept[c], load4(pixel + i * p.pitch + 4 * c), whole[i]);
      }
    } else {
#pragma unroll 1
      for (int c = 0; c < channels; c += 4) {
        const Four<float> f = load4(features + c);
#pragma unroll
        for (int i = 0; i <= kWindow; ++i) whole[i] = compare4<kL2>(f, load4(pixel + i * p.pitch + c), whole[i]);
      }
    }

    // What this row gives to the candidates above it completes them.
    float score[kWindow];
    unsigned passing = 0;
    Four<float> here = {};
    if constexpr (kL2) here = load4(pixel + channels);
#pragma unroll
    for (int i = 0; i < kWindow; ++i) {
      float lower = w10 * whole[i] + w11 * whole[i + 1];
      float next = w00 * whole[i] + w01 * whole[i + 1];
      if constexpr (kL2) {
        const Four<float> right = load4(pixel + (i + 1) * p.pitch + channels);
        lower -= w10 * w11 * here.v[0];
        next -= w00 * w01 * here.v[0] + w00 * w10 * here.v[1] + w01 * w11 * right.v[1] + w00 * w11 * here.v[2];
        here = right;
      }
      score[i] = kL2 ? fminf(-(upper[i] + lower), 0.0f) : upper[i] + lower;  // a distance may be rounded below zero
      passing |= list.passes(score[i]) ? 1u << i : 0u;
      upper[i] = next;
    }
    passing &= row > 0 ? w.valid(row - 1) : 0u;
    if (passing != 0) {
#pragma unroll
      for (int i = 0; i < kWindow; ++i) {
        if (passing >> i & 1) list.enqueue(score[i], w.first + (row - 1) * kWindow + i);
      }
    }
    list.make_room(kWindow);
    pixel += box.width() * p.pitch;
  }
  return list.state();
}

// The same without a box. All lanes of the warp.
template <int kWindow>
__device__ __noinline__ ListState scan_samples(const TileProblem& p, const TileWindow w, const ListState state) {
  STAN_DYNAMIC_SHARED(shared);
  ThreadList list(shared, int(blockDim.x), p.search.topk, queue_size(kWindow), state);
#pragma unroll 1
  for (int row = 0; row < kWindow; ++row) {
    const unsigned valid = w.valid(row);
#pragma unroll 1
    for (int column = 0; column < kWindow; ++column) {
      if (!(valid >> column & 1)) continue;
      const float score = sampled_score(p.search, w.query, w.first + row * kWindow + column);
      if (list.passes(score)) list.enqueue(score, w.first + row * kWindow + column);
    }
    list.make_room(kWindow);
  }
  return list.state();
}

// The smallest box with all windows of a warp; in every lane.
__device__ inline Box box_of_warp(Box box) {
  for (int step = 1; step < kWarp; step *= 2) {
    box = box.with({__shfl_xor_sync(kAllLanes, box.x0, step), __shfl_xor_sync(kAllLanes, box.y0, step),
                    __shfl_xor_sync(kAllLanes, box.x1, step), __shfl_xor_sync(kAllLanes, box.y1, step)});
  }
  return box;
}

// One searched frame. All threads of the block.
template <int kWindow, bool kL2, int kQuads>
__device__ ListState scan_frame(const TileProblem& p, const float* features, const TileWindow& w, Box* boxes, float* memory,
                                ListState list) {
  const int warps = int(blockDim.x) / kWarp, warp = int(threadIdx.x) / kWarp;
  const Box own = box_of_warp({w.left, w.top, w.left + kWindow, w.top + kWindow});
  if (lane_of_thread() == 0) boxes[warp] = own;
  __syncthreads();
  Box all = boxes[0];
  for (int i = 1; i < warps; ++i) all = all.with(boxes[i]);
  const bool together = all.fits(p.capacity);
  bool wild_query = false;
  for (int c = 0; c < p.search.key.channels; c += 4) wild_query |= is_wild(load4(features + c));
  wild_query = __any_sync(kAllLanes, wild_query);
  for (int part = 0; part < (together ? 1 : warps); ++part) {
    const Box box = together ? all : boxes[part];
    const bool mine = together || part == warp;
    if (!box.fits(p.capacity)) {
      if (mine) list = scan_samples<kWindow>(p, w, list);
      continue;  // the whole block: all see the same boxes
    }
    __syncthreads();  // the memory is free again
    const bool wild = __syncthreads_or(fill_box(p.search.key, w.image, box, memory, p.pitch));
    if (!mine) continue;
    list = wild || wild_query ? scan_samples<kWindow>(p, w, list) : scan_box<kWindow, kL2, kQuads>(p, features, w, box, list);
  }
  __syncthreads();  // the boxes are free again
  return list;
}

template <int kWindow, bool kL2, int kQuads>
__global__ void __launch_bounds__(kTileThreads, 2) search_tile_kernel(const __grid_constant__ TileProblem p) {
  STAN_DYNAMIC_SHARED(shared);
  const SearchProblem<float>& s = p.search;
  const Sizes& z = s.sizes;
  const int threads = int(blockDim.x), thread = int(threadIdx.x);
  Box* const boxes = reinterpret_cast<Box*>(shared + boxes_start(threads, s.topk, kWindow));
  int* const filled = reinterpret_cast<int*>(shared + filled_start(threads, s.topk, kWindow));
  ThreadList list(shared, threads, s.topk, queue_size(kWindow), ListState());

  // Threads past the edge of the grid work for the nearest query inside, with no valid candidate.
  const int64_t tile = int64_t(blockIdx.x) % (int64_t(p.tiles_x) * p.tiles_y), image = int64_t(blockIdx.x) / (int64_t(p.tiles_x) * p.tiles_y);
  const int first_column = int(tile % p.tiles_x) * kTileWidth, first_row = int(tile / p.tiles_x) * p.tile_height;
  const auto number_at = [&](int in_tile, bool* inside) {
    const int column = first_column + in_tile % kTileWidth, row = first_row + in_tile / kTileWidth;
    *inside = column < z.query_width && row < z.query_height;
    const int nearest_column = column < z.query_width ? column : z.query_width - 1;
    const int nearest_row = row < z.query_height ? row : z.query_height - 1;
    return image * queries_of(z) + int64_t(nearest_row) * z.query_width + nearest_column;
  };
  bool active;
  const int64_t own = number_at(thread, &active);
  const Query first_query = query_at(z, own);
  const float* const features = s.query.at(image, first_query.y, first_query.x);
  const bool each = s.select == Select::each;

#pragma unroll 1
  for (int slot = 0; slot < s.windows; ++slot) {
    const Query q = query_at(z, own);  // anew for each slot: cheaper than keeping it
    const Target<float> target = s.targets.of(s, q, slot);
    const bool searched = target.frame >= 0;  // the same for the whole block: it serves one frame of one head
    const TileWindow w = tile_window(s, q, target, slot, active);
    if (each || slot == 0) {
      const bool first = searched && s.leads(slot);
      list.clear(first ? 1 : 0, first ? s.topk - 1 : s.topk);
      const int self = w.first + w.self_row * kWindow + __ffs(int(w.self_column)) - 1;
      if (first) list.set(0, sampled_score(s, own, self), self);
    }
    if (searched) {
      const ListState scanned = scan_frame<kWindow, kL2, kQuads>(p, features, w, boxes, box_memory(shared, s.topk, kWindow), list.state());
      list = ThreadList(shared, threads, s.topk, queue_size(kWindow), scanned);
    }
    if (!each && slot + 1 < s.windows) continue;

    // Neighbouring threads write neighbouring places.
    list.make_room(queue_size(kWindow));
    filled[thread] = list.state().reserved + list.state().count;
    __syncthreads();
    for (int i = thread; i < threads * s.topk; i += threads) {
      const int in_tile = i / s.topk, place = i - in_tile * s.topk;
      bool inside;
      const int64_t number = number_at(in_tile, &inside);
      if (!inside) continue;
      const bool there = place < filled[in_tile];
      write_match(s, query_at(z, number), (each ? slot * s.topk : 0) + place, there ? list.score(in_tile, place) : 0.0f,
                  there ? list.candidate(in_tile, place) : -1);
    }
    __syncthreads();
  }
}

}  // namespace stan::cuda
