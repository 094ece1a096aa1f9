// Softmax, draw, edits and threshold search over the tokens in play; see candidates.h.
#include "candidates.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace etude {

namespace {
constexpr float kLowest = -3.402823466e38f;  // finite, so -inf stays below
}

void Candidates::reset(const float* logits, int n_vocab) {
  logits_ = logits;
  n_vocab_ = size_ = n_vocab;
  inverse_temperature_ = 1;
  listed_ = false;
  touched_ = true;
  list_.clear();
}

Softmax Candidates::softmax_of_row() {
  if (!touched_ && row_inverse_ == inverse_temperature_) return row_softmax_;
  Softmax now;
  now.peak = touched_ ? kernels().vocab_max(logits_, n_vocab_) : row_softmax_.peak;
  touched_ = false;
  row_inverse_ = inverse_temperature_;
  row_softmax_ = now;
  if (!(std::fabs(now.peak) < kInfinity)) return now;
  double weighted = 0;
  sums_.clear();
  for (int i = 0; i < n_vocab_; i += kBlock) {
    double block_weighted;
    sums_.push_back(kernels().vocab_sum_exp(logits_ + i, std::min(kBlock, n_vocab_ - i), now.peak, float(inverse_temperature_),
                                            &block_weighted));
    now.total += sums_.back();
    weighted += block_weighted;
  }
  now.log_total = std::log(now.total);
  now.entropy = std::max(0.0, now.log_total - weighted / now.total);
  return row_softmax_ = now;
}

Softmax Candidates::softmax() {
  if (!listed_) return softmax_of_row();
  Softmax now;
  now.peak = -kInfinity;
  for (const Candidate& c : list_) now.peak = std::max(now.peak, c.logit);
  if (!(std::fabs(now.peak) < kInfinity)) return now;
  double weighted = 0;
  sums_.clear();
  for (const Candidate& c : list_) {
    const double t = (double(c.logit) - double(now.peak)) * inverse_temperature_, weight = std::exp(t);
    sums_.push_back(weight);
    now.total += weight;
    if (weight > 0) weighted += weight * t;
  }
  now.log_total = std::log(now.total);
  now.entropy = std::max(0.0, now.log_total - weighted / now.total);
  return now;
}

int32_t Candidates::pick(const Softmax& now, double uniform, float* logit) const {
  const double target = uniform * now.total;
  double running = 0, before = 0;
  int chosen = -1;  // the last one with a weight, if rounding keeps the sum from exceeding the target
  for (int i = 0; i < int(sums_.size()); i++) {
    if (!(sums_[i] > 0)) continue;
    chosen = i;
    before = running;
    running += sums_[i];
    if (running > target) break;
  }
  if (listed_) {
    *logit = list_[size_t(chosen)].logit;
    return list_[size_t(chosen)].id;
  }
  const int first = chosen * kBlock, count = std::min(kBlock, n_vocab_ - first);
  const int32_t id = first + kernels().vocab_pick(logits_ + first, count, now.peak, float(inverse_temperature_), target - before);
  *logit = logits_[id];
  return id;
}

double Candidates::log_probability(const Softmax& now, float logit) const {
  return (double(logit) - double(now.peak)) * inverse_temperature_ - now.log_total;
}

float* Candidates::own_row() {
  if (logits_ != own_.data()) {
    own_.assign(logits_, logits_ + n_vocab_);
    logits_ = own_.data();
  }
  touched_ = true;
  return own_.data();
}

void Candidates::mask(const uint32_t* allowed) { kernels().vocab_mask(own_row(), n_vocab_, allowed); }

int Candidates::find(int32_t id) const {
  if (id < 0 || id >= n_vocab_) return -1;
  if (!listed_) return id;
  const auto at = std::lower_bound(list_.begin(), list_.end(), id, [](const Candidate& c, int32_t wanted) { return c.id < wanted; });
  return at != list_.end() && at->id == id ? int(at - list_.begin()) : -1;
}

void Candidates::write(int place, float logit) {
  if (listed_)
    list_[size_t(place)].logit = logit;
  else
    own_row()[place] = logit;
}

void select_above(const float* logits, int n, float threshold, std::vector<int32_t>& ids) {
  ids.resize(std::max(ids.capacity(), size_t(256)));
  const int found = kernels().vocab_select(logits, n, threshold, ids.data(), int(ids.size()));
  if (found > int(ids.size())) {
    ids.resize(size_t(found));
    kernels().vocab_select(logits, n, threshold, ids.data(), found);
  }
  ids.resize(size_t(found));
}

// The k-th largest of the maxima of disjoint blocks: at least k logits reach it, one in each of k blocks.
float threshold_of_best(const float* logits, int n, int k) {
  const int block = std::min(n / (4 * k), 1024);
  if (block < 16) return kLowest;
  std::vector<float> maxima;
  for (int i = 0; i < n; i += block) maxima.push_back(kernels().vocab_max(logits + i, std::min(block, n - i)));
  std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), [](float a, float b) { return a > b; });
  return std::max(maxima[size_t(k) - 1], kLowest);
}

void Candidates::list_above(float threshold) {
  threshold = std::max(threshold, kLowest);
  if (listed_) {
    list_.erase(std::remove_if(list_.begin(), list_.end(), [&](const Candidate& c) { return !(c.logit >= threshold); }), list_.end());
    return;
  }
  select_above(logits_, n_vocab_, threshold, ids_);
  list_.clear();
  for (const int32_t id : ids_) list_.push_back({id, logits_[id]});
  listed_ = true;
}

}  // namespace etude
