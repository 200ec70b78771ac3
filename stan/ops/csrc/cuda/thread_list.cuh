// The K best candidates of a query, kept by one thread in shared memory.
#pragma once

#include <math.h>

#include <cstdint>

#include "../geometry.h"
#include "device.cuh"

namespace stan::cuda {

// What a thread knows of its list while the entries lie in shared memory.
struct ListState {
  int reserved = 0;  // places before the sorted ones
  int capacity = 0;  // sorted places
  int count = 0;     // of them filled
  int queued = 0;
  float threshold = 0;  // a score must not be <= this to enter; NaN while everything may
};

// A sorted list and a short queue before it. Candidates come in the order of their index. One that beats the worst of the
// list goes to the queue; when the queue of any lane might overflow, all lanes of the warp empty theirs together. Inserting
// at once would cost more: nearly every candidate beats the list of some lane, and the other 31 would wait for it.
//
// Entry i of a thread lies `threads` (of the block) apart from entry i+1, so that lanes never share a bank.
class ThreadList {
 public:
  // `memory` is the shared memory of the block's lists; `bytes` of it are used.
  __device__ ThreadList(unsigned char* memory, int threads, int topk, int queue, const ListState& state)
      : scores_(reinterpret_cast<float*>(memory)),
        queue_scores_(scores_ + topk * threads),
        candidates_(reinterpret_cast<uint16_t*>(queue_scores_ + queue * threads)),
        queue_candidates_(candidates_ + topk * threads),
        threads_(threads),
        queue_(queue),
        s_(state) {}

  STAN_HD static size_t bytes(int threads, int topk, int queue) {
    return (size_t(threads) * (topk + queue) * (sizeof(float) + sizeof(uint16_t)) + 15) / 16 * 16;
  }

  __device__ const ListState& state() const { return s_; }

  // Starts anew, with `capacity` places behind `reserved` ones that only `set` writes to.
  __device__ void clear(int reserved, int capacity) {
    s_.reserved = reserved;
    s_.capacity = capacity;
    s_.count = s_.queued = 0;
    renew_threshold();
  }

  __device__ void set(int place, float score, int candidate) {
    scores_[index(place)] = score;
    candidates_[index(place)] = uint16_t(candidate);
  }

  // Whether a candidate may enter; at worst it is turned away later.
  __device__ bool passes(float score) const { return !(score <= s_.threshold); }

  __device__ void enqueue(float score, int candidate) {
    queue_scores_[index(s_.queued)] = score;
    queue_candidates_[index(s_.queued)] = uint16_t(candidate);
    ++s_.queued;
  }

  // Inserts what waits in the queues of a warp, if one of them has fewer than `room` places left. All lanes of the warp.
  __device__ void make_room(int room) {
    if (!__any_sync(kAllLanes, s_.queued > queue_ - room)) return;
#pragma unroll 1
    for (int i = 0; i < s_.queued; ++i) insert(queue_scores_[index(i)], queue_candidates_[index(i)]);
    s_.queued = 0;
    renew_threshold();
  }

  // Another thread's entry of the list.
  __device__ float score(int thread, int place) const { return scores_[place * threads_ + thread]; }
  __device__ int candidate(int thread, int place) const { return candidates_[place * threads_ + thread]; }

 private:
  __device__ int index(int place) const { return place * threads_ + int(threadIdx.x); }

  __device__ void insert(float score, uint16_t candidate) {
    if (s_.count == s_.capacity) {
      if (s_.capacity == 0 || !better(score, scores_[index(s_.reserved + s_.count - 1)])) return;
      --s_.count;
    }
    int at = s_.reserved + s_.count++;
    for (; at > s_.reserved && better(score, scores_[index(at - 1)]); --at) {
      scores_[index(at)] = scores_[index(at - 1)];
      candidates_[index(at)] = candidates_[index(at - 1)];
    }
    scores_[index(at)] = score;
    candidates_[index(at)] = candidate;
  }

  // The worst score of a full list; should that be NaN, everything passes, as it does while places are free.
  __device__ void renew_threshold() {
    s_.threshold = s_.capacity == 0 ? INFINITY : s_.count < s_.capacity ? NAN : scores_[index(s_.reserved + s_.count - 1)];
  }

  float* scores_;
  float* queue_scores_;
  uint16_t* candidates_;
  uint16_t* queue_candidates_;
  int threads_;
  int queue_;
  ListState s_;
};

}  // namespace stan::cuda
