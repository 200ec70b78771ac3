// Selection from an array of scores, without looking at most of them one by one.
//
// The candidates are dealt into disjoint groups, a lane of every n-th vector each. The K-th largest of the groups' maxima is a
// score that at least K candidates reach, so whatever lies below it is out: one comparison for a whole vector of candidates. With
// half as many groups again as matches, 1.5 K of random candidates survive. The survivors are ranked against each other by
// counting: no branch depends on a score.
#pragma once

#include "simd.h"
#include "support.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

class ScoreSelection {
 public:
  ScoreSelection(int most_scores, int topk)
      : topk_(topk),
        group_vectors_((3 * topk / 2 + kLanes - 1) / kLanes),
        maxima_(int64_t(group_vectors_) * kLanes),
        values_(int64_t(most_scores) + 2 * kLanes),
        places_(int64_t(most_scores) + 2 * kLanes),
        order_(int64_t(most_scores) + 2 * kLanes) {}

  // Finds the `wanted` best of `size` scores, at most topk; false if there are not as many that beat -inf. The kLanes numbers
  // after the scores are used for a while.
  bool select(float* scores, int size, int wanted) {
    if (wanted == 0) return true;
    if (wanted == 1) return select_one(scores, size);
    const Floats after = load_floats(scores + size);
    store_floats(scores + size, all(-__builtin_inff()));
    const int vectors = (size + kLanes - 1) / kLanes;
    keep_at_least(threshold(scores, vectors, wanted), scores, vectors);
    store_floats(scores + size, after);
    rank();
    return count_ >= wanted && score(wanted - 1) > -__builtin_inff();
  }

  // The i-th best: its score, and where it was found.
  float score(int i) const { return values_[order_[i]]; }
  int place(int i) const { return places_[order_[i]]; }

 private:
  // The best alone, the first of equals.
  bool select_one(float* scores, int size) {
    const Floats after = load_floats(scores + size);
    store_floats(scores + size, all(-__builtin_inff()));
    Floats best = all(-__builtin_inff());
    for (int i = 0; i < size; i += kLanes) best = larger(load_floats(scores + i), best);  // a NaN never becomes a maximum
    float most = best[0];
    for (int i = 1; i < kLanes; ++i) most = best[i] > most ? best[i] : most;
    int at = 0;
    for (uint32_t found = 0; at < size; at += kLanes) {
      found = at_least(load_floats(scores + at), all(most));
      if (found == 0) continue;
      at += __builtin_ctz(found);
      break;
    }
    store_floats(scores + size, after);
    values_[0] = most;
    places_[0] = at;
    order_[0] = 0;
    count_ = 1;
    return most > -__builtin_inff();
  }

  // A score that at least `wanted` candidates reach, as large as the groups can tell; -inf if too few are valid.
  float threshold(const float* scores, int vectors, int wanted) {
    const int size = least(group_vectors_, vectors) * kLanes, end = vectors * kLanes;
    float* const maxima = maxima_.get();
    for (int i = 0; i < size; i += kLanes) {
      Floats best = all(-__builtin_inff());
      for (int at = i; at < end; at += size) best = larger(load_floats(scores + at), best);  // a NaN never becomes a maximum
      store_floats(maxima + i, best);
    }
    Floats limit = all(__builtin_inff());
    for (int i = 0; i < size; i += kLanes) {
      const Floats mine = load_floats(maxima + i);
      Ints above = {};
#pragma GCC unroll 8
      for (int j = 0; j < size; ++j) above = count_above(above, all(maxima[j]), mine);
      limit = above < all(wanted) && mine < limit ? mine : limit;
    }
    return smallest_lane(limit);
  }

  void keep_at_least(float limit, const float* scores, int vectors) {
    const Floats limits = all(limit);
    const int end = vectors * kLanes;
    float* values = values_.get();
    int32_t* places = places_.get();
    for (int i = 0; i < end; i += kLanes) {
      const Floats some = load_floats(scores + i);
      const int count = compress(some, at_least(some, limits), i, values, places);
      values += count;
      places += count;
    }
    count_ = int(values - values_.get());
  }

  // order_[n] is the n-th best survivor. Survivors come in the order of their index, which settles ties.
  void rank() {
    if (count_ > kMostRanked) return insert();
    for (int i = 0; i < kLanes; ++i) values_[count_ + i] = -__builtin_inff();
    const int count = count_;
    const float* const values = values_.get();
    int32_t* const order = order_.get();
    for (int i = 0; i < count; i += kLanes) {
      const Floats mine = load_floats(values + i);
      const Ints numbers = lane_numbers() + i;
      Ints before = {};
      for (int j = 0; j < count; ++j) {
        const Floats other = all(values[j]);
        before -= Ints(other > mine) | (Ints(other == mine) & Ints(numbers > j));
      }
      const int lanes = least(kLanes, count - i);
      for (int lane = 0; lane < lanes; ++lane) order[before[lane]] = i + lane;
    }
  }

  // For very many survivors, such as where all scores are equal: a sorted list of the best.
  void insert() {
    const int capacity = least(topk_, count_);
    int size = 0;
    for (int i = 0; i < count_; ++i) {
      if (size == capacity) {
        if (!(values_[i] > values_[order_[size - 1]])) continue;
        --size;
      }
      int at = size++;
      for (; at > 0 && values_[i] > values_[order_[at - 1]]; --at) order_[at] = order_[at - 1];
      order_[at] = i;
    }
    count_ = size;
  }

  static constexpr int kMostRanked = 128;  // counting takes n^2 / kLanes steps

  int topk_, group_vectors_;
  int count_ = 0;
  Block<float> maxima_, values_;
  Block<int32_t> places_, order_;
};

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
