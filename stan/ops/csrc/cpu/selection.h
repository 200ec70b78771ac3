// The K best candidates of a query, kept while the candidates pass by in the order of their index.
#pragma once

#include "support.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

// A sorted list filled by insertion. Most candidates fail the first comparison with the worst that is kept, so the
// cost of insertion is met about K(1 + ln(n/K)) times in n candidates.
template <typename S>
class Selection {
 public:
  Selection(S* scores, int64_t* candidates) : scores_(scores), candidates_(candidates) {}

  void clear(int capacity) {
    capacity_ = capacity;
    count_ = 0;
  }
  void offer(S score, int64_t candidate) {
    if (count_ == capacity_) {
      if (capacity_ == 0 || !better(score, scores_[count_ - 1])) return;
      --count_;
    }
    int at = count_++;
    for (; at > 0 && better(score, scores_[at - 1]); --at) {
      scores_[at] = scores_[at - 1];
      candidates_[at] = candidates_[at - 1];
    }
    scores_[at] = score;
    candidates_[at] = candidate;
  }
  int count() const { return count_; }
  S score(int i) const { return scores_[i]; }
  int64_t candidate(int i) const { return candidates_[i]; }

 private:
  S* scores_;
  int64_t* candidates_;
  int capacity_ = 0;
  int count_ = 0;
};

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
