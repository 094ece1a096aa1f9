// llama.cpp's samplers (src/llama-sampler.cpp) as operations on the tokens in play: what each of them keeps.
//
// A truncation keeps a prefix of some order of the tokens, so it needs the last token of that prefix and not the order:
// std::nth_element on halves finds it in linear time. Ties go to the smaller token id; llama.cpp leaves them to its sort.
#include <algorithm>
#include <cmath>

#include "candidates.h"

namespace etude {

namespace {

constexpr float kLowest = -3.402823466e38f;

bool before(const Scored& a, const Scored& b) { return a.score < b.score || (a.score == b.score && a.id < b.id); }

// How many of the first tokens in order it takes to reach `mass` (all, if it is not reached). Reorders `v` so that
// those come first and the last of them stands at its place.
int reach(std::vector<Scored>& v, double mass, bool strictly) {
  size_t first = 0, end = v.size();
  double held = 0;
  while (end - first > 1) {
    const size_t middle = first + (end - first) / 2;
    std::nth_element(v.begin() + long(first), v.begin() + long(middle), v.begin() + long(end), before);
    double half = held;
    for (size_t i = first; i < middle; i++) half += v[i].mass;
    if (strictly ? half > mass : half >= mass) {
      end = middle;
    } else {
      held = half;
      first = middle;
    }
  }
  return int(first) + 1;
}

}  // namespace

// Rounded to f32, as llama.cpp compares it.
double Candidates::probability(const Softmax& now, float logit) const {
  return double(float(std::exp(log_probability(now, logit))));
}

void Candidates::score_by_logit(const Softmax& now) {
  scored_.clear();
  for (const Candidate& c : list_) scored_.push_back({-c.logit, c.id, probability(now, c.logit)});
}

// Keeps the tokens of the list up to `last` in order of scored_.
void Candidates::keep_until(const Scored& last) {
  size_t out = 0;
  for (size_t i = 0; i < list_.size(); i++)
    if (!before(last, scored_[i])) list_[out++] = list_[i];
  list_.resize(out);
}

// Keeps the first tokens in order of scored_ until they hold `mass`, at least min_keep.
void Candidates::keep_reaching(double mass, bool strictly, int min_keep) {
  if (list_.empty()) return;
  order_ = scored_;
  int kept = reach(order_, mass, strictly);
  size_ = std::min(size_, std::max(kept, min_keep));
  if (kept < min_keep) {
    kept = std::min(min_keep, int(order_.size()));
    std::nth_element(order_.begin(), order_.begin() + (kept - 1), order_.end(), before);
  }
  keep_until(order_[size_t(kept) - 1]);
}

void Candidates::keep_best(int k) {
  if (!listed_) list_above(threshold_of_best(logits_, n_vocab_, k));
  if (int(list_.size()) <= k) return;
  scored_.clear();
  for (const Candidate& c : list_) scored_.push_back({-c.logit, c.id, 0});
  order_ = scored_;
  std::nth_element(order_.begin(), order_.begin() + (k - 1), order_.end(), before);
  keep_until(order_[size_t(k) - 1]);
}

// The logit at which a token has this log probability.
float Candidates::as_logit(const Softmax& now, double log_probability) const {
  return float(double(now.peak) + (log_probability + now.log_total) / inverse_temperature_);
}

void Candidates::top_k(int k) {
  if (k <= 0) return;
  keep_best(k);
  size_ = std::min(size_, k);
}

// A logit such that the tokens of the row at or above it hold the mass, and not many more. Most nuclei are small, so
// the best few are tried first. Tokens under log probability log((1 - mass) / 2n) hold less than (1 - mass) / 2 together.
float Candidates::threshold_of_mass(const Softmax& now, double mass) {
  for (int k = 32; k <= n_vocab_ / 64; k *= 8) {
    const float threshold = threshold_of_best(logits_, n_vocab_, k);
    select_above(logits_, n_vocab_, threshold, ids_);
    double held = 0;
    for (const int32_t id : ids_) held += probability(now, logits_[id]);
    if (held >= mass) return threshold;
  }
  return as_logit(now, std::log((1 - mass) / (2.0 * n_vocab_)));
}

void Candidates::top_p(double p, int min_keep) {
  if (p >= 1) return;
  const Softmax now = softmax();
  if (!(std::fabs(now.peak) < kInfinity)) return;
  if (!listed_) {
    const float nucleus = threshold_of_mass(now, p);
    list_above(min_keep > 1 ? std::min(nucleus, threshold_of_best(logits_, n_vocab_, min_keep)) : nucleus);
  }
  score_by_logit(now);
  keep_reaching(p, false, min_keep);
}

void Candidates::min_p(double p, int min_keep) {
  if (p <= 0) return;
  const Softmax now = softmax();
  if (!(std::fabs(now.peak) < kInfinity)) return;
  const float threshold = float(double(now.peak) + std::log(p) / inverse_temperature_);
  if (min_keep > 1) {
    int count = 0;
    each([&](int32_t, float logit) { count += logit >= threshold; });
    if (count < min_keep) {
      keep_best(min_keep);
      size_ = std::min(size_, min_keep);
      return;
    }
  }
  list_above(std::min(threshold, now.peak));
  size_ = std::min(size_, int(list_.size()));
}

// Locally typical sampling (arXiv:2202.00666): tokens whose surprise is closest to the entropy.
void Candidates::typical_p(double p, int min_keep) {
  if (p >= 1) return;
  const Softmax now = softmax();
  if (!(std::fabs(now.peak) < kInfinity)) return;
  list_above(kLowest);
  scored_.clear();
  for (const Candidate& c : list_) {
    const double log_p = log_probability(now, c.logit);
    scored_.push_back({float(std::fabs(-log_p - now.entropy)), c.id, probability(now, c.logit)});
  }
  keep_reaching(p, true, min_keep);
}

// arXiv:2411.07641: logits within n standard deviations of the largest.
void Candidates::top_n_sigma(double n) {
  if (n <= 0 || size_ <= 1) return;
  double sum = 0, squares = 0;
  int count = 0;
  float peak = -kInfinity;
  each([&](int32_t, float logit) {
    sum += double(logit);
    count++;
    peak = std::max(peak, logit);
  });
  if (!(std::fabs(peak) < kInfinity)) return;
  const double mean = sum / count;
  each([&](int32_t, float logit) { squares += (double(logit) - mean) * (double(logit) - mean); });
  list_above(float(double(peak) - n * std::sqrt(squares / count)));  // llama.cpp sets the others to -inf: size_ stays
}

// Removes the tokens at or above the threshold except the least likely of them.
void Candidates::xtc(double threshold, int min_keep) {
  if (size_ < 2) return;
  const Softmax now = softmax();
  if (!(std::fabs(now.peak) < kInfinity)) return;
  const float least = std::max(as_logit(now, std::log(threshold)), kLowest);
  Candidate stays{-1, kInfinity};
  int count = 0;
  const auto consider = [&](int32_t id, float logit) {
    if (logit < least) return;
    count++;
    if (logit <= stays.logit) stays = {id, logit};  // of equals the last one: the least preferred
  };
  each(consider);
  if (count < 2 || size_ - (count - 1) < min_keep) return;
  const auto removed = [&](int32_t id, float logit) { return logit >= least && id != stays.id; };
  if (listed_) {
    list_.erase(std::remove_if(list_.begin(), list_.end(), [&](const Candidate& c) { return removed(c.id, c.logit); }), list_.end());
  } else {
    select_above(logits_, n_vocab_, least, ids_);
    for (const int32_t id : ids_)
      if (id != stays.id) edit(id, [](double) { return -double(kInfinity); });
  }
  size_ -= count - 1;
}

void Candidates::temperature(double t) {
  if (t > 0) {
    inverse_temperature_ /= t;
    return;
  }
  keep_best(1);  // llama.cpp sets the others to -inf: size_ stays
}

// Entropy over its maximum, to the power `exponent`, picks a temperature in [max(0, t - range), t + range].
void Candidates::dynamic_temperature(double t, double range, double exponent) {
  if (size_ <= 1) return;
  const Softmax now = softmax();
  const double least = std::max(0.0, t - range), most = t + range;
  temperature(least + (most - least) * std::pow(now.entropy / std::log(double(size_)), exponent));
}

// arXiv:2007.14966, algorithm 1: estimates Zipf's exponent from the 100 most likely tokens, then truncates to k.
void Candidates::mirostat1(double mu, int n_vocab) {
  constexpr int kMost = 100;
  order_.clear();
  if (listed_) {
    for (const Candidate& c : list_) order_.push_back({-c.logit, c.id, 0});
  } else {
    select_above(logits_, n_vocab_, threshold_of_best(logits_, n_vocab_, kMost), ids_);
    for (const int32_t id : ids_) order_.push_back({-logits_[id], id, 0});
  }
  const int count = std::min(kMost, int(order_.size()));
  std::partial_sort(order_.begin(), order_.begin() + count, order_.end(), before);
  double tb = 0, tt = 0;
  for (int i = 0; i + 1 < count; i++) {
    const double t = std::log(double(i + 2) / double(i + 1));
    tb += t * (double(order_[size_t(i) + 1].score) - double(order_[size_t(i)].score)) * inverse_temperature_;
    tt += t * t;
  }
  const double s = tb / tt, epsilon = s - 1;
  const double scale = std::fabs(epsilon) < 1e-9 ? 1 / std::log(double(n_vocab)) : epsilon / (1 - std::pow(double(n_vocab), -epsilon));
  const double k = tt > 0 ? std::pow(scale * std::exp2(mu), 1 / s) : 1;
  top_k(int(std::min(std::max(k, 1.0), double(size_))));
}

// Algorithm 2: drops tokens with a surprise above mu bits, but never all.
void Candidates::mirostat2(double mu) {
  const Softmax now = softmax();
  if (!(std::fabs(now.peak) < kInfinity)) return;
  list_above(std::min(as_logit(now, -mu * std::log(2.0)), now.peak));
  if (log_probability(now, now.peak) < -mu * std::log(2.0)) keep_best(1);
}

}  // namespace etude
