// The K best candidates of a query, kept sorted while the candidates pass by in the order of their index.
#pragma once

#include <cstdint>

#include "../geometry.h"
#include "device.cuh"

namespace stan::cuda {

// A sorted list owned by one warp, in shared or global memory. All lanes call every function together.
template <typename S>
class WarpList {
 public:
  __device__ WarpList(S* scores, int32_t* candidates) : scores_(scores), candidates_(candidates) {}

  __device__ void clear(int capacity) {
    capacity_ = capacity;
    count_ = 0;
    __syncwarp();
  }

  // Each lane offers one candidate, lower lanes the lower indices. Most are rejected by the one comparison with the worst that is
  // kept; the others are inserted one after the other.
  __device__ void offer(S score, int32_t candidate, bool valid) {
    unsigned waiting = __ballot_sync(kAllLanes, valid && passes(score));
    while (waiting != 0) {
      const int lane = __ffs(int(waiting)) - 1;
      waiting &= waiting - 1;
      const S s = __shfl_sync(kAllLanes, score, lane);
      const int32_t c = __shfl_sync(kAllLanes, candidate, lane);
      if (passes(s)) insert(s, c);
    }
  }

  __device__ int count() const { return count_; }
  __device__ S score(int i) const { return scores_[i]; }
  __device__ int32_t candidate(int i) const { return candidates_[i]; }

 private:
  __device__ bool passes(S score) const { return count_ < capacity_ || (capacity_ > 0 && better(score, worst_)); }

  __device__ void insert(S score, int32_t candidate) {
    const int lane = lane_of_thread();
    int at = 0;  // how many stay before the new one: a prefix, as the list is sorted
    for (int base = 0; base < count_; base += kWarp) {
      const bool stays = base + lane < count_ && !better(score, scores_[base + lane]);
      const int n = __popc(__ballot_sync(kAllLanes, stays));
      at += n;
      if (n < kWarp) break;
    }
    // Those behind it move up by one, the topmost 32 first; the last one of a full list falls off.
    const int end = count_ < capacity_ ? count_ : capacity_ - 1;
    for (int top = end; top > at; top -= kWarp) {
      const int from = top - 1 - lane;
      const bool moves = from >= at;
      const S s = moves ? scores_[from] : S(0);
      const int32_t c = moves ? candidates_[from] : 0;
      __syncwarp();
      if (moves) {
        scores_[from + 1] = s;
        candidates_[from + 1] = c;
      }
      __syncwarp();
    }
    if (lane == 0) {
      scores_[at] = score;
      candidates_[at] = candidate;
    }
    __syncwarp();
    if (count_ < capacity_) ++count_;
    worst_ = scores_[count_ - 1];
    __syncwarp();
  }

  S* scores_;
  int32_t* candidates_;
  int capacity_ = 0;
  int count_ = 0;
  S worst_ = 0;
};

}  // namespace stan::cuda
