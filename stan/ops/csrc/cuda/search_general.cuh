// Search and refine for every setting: one warp a query, one candidate a lane.
#pragma once

#include <cstdint>

#include "../geometry.h"
#include "../shapes.h"
#include "device.cuh"
#include "score.cuh"
#include "selection.cuh"

namespace stan::cuda {

constexpr int kGeneralWarps = 4;  // queries of one block

template <typename S>
struct SearchProblem : SearchParameters {
  Pixels<S> query, key;
  Targets<S> targets;
  int64_t queries;  // in all
  S step;           // the key stride
  bool shared_lists;  // lists in shared memory; else in the outputs themselves
  S* scores;
  S* offsets;
  int32_t* frames;
  int32_t* parents;  // of refine; null for a search

  __device__ Window window_x(const Target<S>& t) const {
    return window_of(t.x.position, step, window, sizes.key_width, slide);
  }
  __device__ Window window_y(const Target<S>& t) const {
    return window_of(t.y.position, step, window, sizes.key_height, slide);
  }
};

// A candidate: its slot, and its place in that slot's window.
struct Place {
  int slot, row, column;
};

__device__ inline Place place_of(int32_t candidate, int window) {
  const int area = window * window;
  const int slot = candidate / area, inside = candidate - slot * area;
  return {slot, inside / window, inside % window};
}

// Writes one result of query q; candidate -1 is an empty place.
template <typename S>
__device__ void write_match(const SearchProblem<S>& p, const Query& q, int64_t place, S score, int32_t candidate) {
  const int64_t at = q.number * p.matches + place;
  S dx = 0, dy = 0;
  int frame = -1, parent = -1;
  if (candidate < 0) {
    score = minus_infinity<S>();
  } else {
    const Place c = place_of(candidate, p.window);
    const Target<S> t = p.targets.of(p, q, c.slot);
    frame = t.frame;
    parent = c.slot;
    dx = step_position(t.x.position, p.step, p.window_x(t).begin + c.column) - S(q.x);
    dy = step_position(t.y.position, p.step, p.window_y(t).begin + c.row) - S(q.y);
  }
  p.scores[at] = score;
  p.offsets[2 * at] = dx;
  p.offsets[2 * at + 1] = dy;
  p.frames[at] = frame;
  if (p.parents != nullptr) p.parents[at] = parent;
}

// Index of the candidate at the anchor of a slot (of slot 0: the query's own position); -1 where there is no frame to search.
template <typename S>
__device__ inline int32_t anchor_candidate(const SearchProblem<S>& p, const Query& q, int slot) {
  const Target<S> t = p.targets.of(p, q, slot);
  if (t.frame < 0) return -1;
  return (slot * p.window - p.window_y(t).begin) * p.window - p.window_x(t).begin;
}

// Score of one candidate, and whether it is valid at all.
template <typename S>
__device__ bool score_candidate(const SearchProblem<S>& p, const Query& q, int32_t candidate, S* score) {
  const Place c = place_of(candidate, p.window);
  const Target<S> t = p.targets.of(p, q, c.slot);
  if (t.frame < 0) return false;
  const Window wx = p.window_x(t), wy = p.window_y(t);
  const int kx = wx.begin + c.column, ky = wy.begin + c.row;
  if (!wx.valid(kx) || !wy.valid(ky)) return false;
  *score = score_at(p.query, p.key, p.patch, p.metric, q, image_of_frame(p.sizes, q, t.frame),
                    split(step_position(t.x.position, p.step, kx)), split(step_position(t.y.position, p.step, ky)));
  return true;
}

template <typename S>
__global__ void __launch_bounds__(kGeneralWarps* kWarp) search_general_kernel(SearchProblem<S> p) {
  STAN_DYNAMIC_SHARED(shared);
  const int warp = int(threadIdx.x) / kWarp, lane = lane_of_thread();
  const int64_t number = int64_t(blockIdx.x) * kGeneralWarps + warp;
  if (number >= p.queries) return;  // a whole warp; no barrier of the block follows
  const Query q = query_at(p.sizes, number);
  const int area = p.window * p.window;
  const bool each = p.select == Select::each;
  const int groups = each ? p.windows : 1, group_size = each ? area : area * p.windows;

  for (int group = 0; group < groups; ++group) {
    int64_t place = int64_t(group) * p.topk;
    int capacity = p.topk;
    int32_t self = -1;
    if (p.sets_apart(group)) {  // the first slot of the group is that of its number
      self = anchor_candidate(p, q, group);
      if (self >= 0 && p.leads(group)) {
        S score = 0;
        score_candidate(p, q, self, &score);
        if (lane == 0) write_match(p, q, place, score, self);
        ++place;
        --capacity;
      }
    }
    // Without shared memory the list grows where the results will be: scores in place, candidates in the frames.
    S* const list_scores = p.shared_lists ? reinterpret_cast<S*>(shared) + warp * p.topk : p.scores + number * p.matches + place;
    int32_t* const list_candidates = p.shared_lists
                                         ? reinterpret_cast<int32_t*>(shared + sizeof(S) * kGeneralWarps * p.topk) + warp * p.topk
                                         : p.frames + number * p.matches + place;
    WarpList<S> list(list_scores, list_candidates);
    list.clear(capacity);
    for (int base = 0; base < group_size; base += kWarp) {
      const int inside = base + lane;
      const int32_t candidate = group * area + inside;
      S score = 0;
      const bool valid = inside < group_size && candidate != self && score_candidate(p, q, candidate, &score);
      list.offer(score, candidate, valid);
    }
    for (int i = lane; i < capacity; i += kWarp) {
      const bool full = i < list.count();
      write_match(p, q, place + i, full ? list.score(i) : S(0), full ? list.candidate(i) : -1);
    }
    __syncwarp();
  }
}

}  // namespace stan::cuda
