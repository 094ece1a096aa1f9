// One completion's sampler: mask, bias, chain, draw; and the two history samplers, penalties and DRY.
#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.h"
#include "random.h"

namespace etude {

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool is_active(Step step, const ChainSettings& s) {
  switch (step) {
    case Step::penalties:
      return s.penalties.last_n != 0 && (s.penalties.repeat != 1 || s.penalties.frequency != 0 || s.penalties.presence != 0);
    case Step::dry: return s.dry.multiplier != 0 && s.dry.base >= 1 && s.dry.last_n != 0;
    case Step::top_n_sigma: return s.top_n_sigma > 0;
    case Step::top_k: return s.top_k > 0;
    case Step::typ_p: return s.typical_p < 1;
    case Step::top_p: return s.top_p < 1;
    case Step::min_p: return s.min_p > 0;
    case Step::xtc: return s.xtc_probability > 0 && s.xtc_threshold <= 0.5f;
    case Step::temperature: return s.temperature != 1 || s.dynamic_range > 0;
  }
  return false;
}

bool keeps_the_best(Step step) {
  return step == Step::top_n_sigma || step == Step::top_k || step == Step::top_p || step == Step::min_p;
}

// The steps that can change the outcome: those switched on and, for greedy decoding, not the truncations right before the
// choice of the best token (they keep it) nor anything after it (one token is left).
std::vector<Step> effective_steps(const ChainSettings& s) {
  std::vector<Step> steps;
  for (const Step step : s.steps) {
    if (!is_active(step, s)) continue;
    const bool greedy = step == Step::temperature && s.temperature <= 0 && !(s.dynamic_range > 0);
    while (greedy && !steps.empty() && keeps_the_best(steps.back())) steps.pop_back();
    steps.push_back(step);
    if (greedy) break;
  }
  return steps;
}

bool is_finite(const Softmax& s) { return std::fabs(s.peak) < kInfinity; }
int32_t error_of(const Softmax& s) { return s.peak == -kInfinity ? kNothingAllowed : kBadLogits; }

}  // namespace

Sampler::Sampler(int n_vocab, uint64_t seed, uint64_t index, ChainSettings settings)
    : n_vocab_(n_vocab), seed_(seed), index_(index), settings_(std::move(settings)), mu_(2 * double(settings_.mirostat.tau)) {
  if (settings_.mirostat.version) settings_.steps = {Step::temperature};
  settings_.steps = effective_steps(settings_);
  for (const Step step : settings_.steps) reads_history_ |= step == Step::penalties || step == Step::dry;
}

void Sampler::apply(Step step, double chance) {
  const ChainSettings& s = settings_;
  switch (step) {
    case Step::penalties: return apply_penalties();
    case Step::dry: return apply_dry();
    case Step::top_n_sigma: return candidates_.top_n_sigma(double(s.top_n_sigma));
    case Step::top_k: return candidates_.top_k(s.top_k);
    case Step::typ_p: return candidates_.typical_p(double(s.typical_p), s.min_keep);
    case Step::top_p: return candidates_.top_p(double(s.top_p), s.min_keep);
    case Step::min_p: return candidates_.min_p(double(s.min_p), s.min_keep);
    case Step::xtc:
      if (chance < double(s.xtc_probability)) candidates_.xtc(double(s.xtc_threshold), s.min_keep);
      return;
    case Step::temperature:
      if (s.dynamic_range > 0)
        return candidates_.dynamic_temperature(double(s.temperature), double(s.dynamic_range), double(s.dynamic_exponent));
      return candidates_.temperature(double(s.temperature));
  }
}

// Runs everything up to the draw; false: there is nothing to draw from, and *error says why.
bool Sampler::prepare(const float* logits, const uint32_t* allowed, int64_t position, Sampled* error) {
  *error = {kBadLogits, kNaN, kNaN, kNaN};
  candidates_.reset(logits, n_vocab_);
  raw_ = candidates_.softmax();
  if (!is_finite(raw_)) {
    error->token_id = error_of(raw_);
    return false;
  }
  if (allowed) candidates_.mask(allowed);
  for (const auto& [id, bias] : settings_.logit_bias) {
    const double added = double(bias);
    candidates_.edit(id, [added](double logit) { return logit + added; });
  }
  const double chance = Philox(seed_, index_, uint64_t(position)).uniform(1);
  for (const Step step : settings_.steps) apply(step, chance);
  if (settings_.mirostat.version == 1) candidates_.mirostat1(mu_, n_vocab_);
  if (settings_.mirostat.version == 2) candidates_.mirostat2(mu_);
  return true;
}

Sampled Sampler::sample(const float* logits, const uint32_t* allowed, int64_t position) {
  Sampled result;
  if (!prepare(logits, allowed, position, &result)) return result;
  const Softmax now = candidates_.softmax();
  if (!is_finite(now)) {
    result.token_id = error_of(now);
    return result;
  }
  float logit;
  const int32_t id = candidates_.pick(now, Philox(seed_, index_, uint64_t(position)).uniform(0), &logit);
  const double log_p = candidates_.log_probability(now, logit);
  const double raw = double(logits[id]) - double(raw_.peak) - raw_.log_total;
  drawn_ = id;
  drawn_surprise_ = -log_p / std::log(2.0);
  return {id, float(std::min(log_p, 0.0)), float(std::min(raw, 0.0)), float(raw_.entropy)};
}

std::vector<TokenLogprob> Sampler::distribution(const float* logits, const uint32_t* allowed, int64_t position) {
  Sampled error;
  std::vector<TokenLogprob> tokens;
  if (!prepare(logits, allowed, position, &error)) return tokens;
  const Softmax now = candidates_.softmax();
  if (!is_finite(now)) return tokens;
  candidates_.each([&](int32_t id, float logit) { tokens.push_back({id, float(candidates_.log_probability(now, logit))}); });
  return tokens;
}

void Sampler::accept(int32_t token_id) {
  if (settings_.mirostat.version && token_id == drawn_) mu_ -= double(settings_.mirostat.eta) * (drawn_surprise_ - double(settings_.mirostat.tau));
  drawn_ = -1;
  if (!reads_history_) return;
  history_.push_back(token_id);
  counts_[token_id]++;
  const int window = settings_.penalties.last_n;
  if (window < 0 || history_.size() <= size_t(window)) return;
  const auto oldest = counts_.find(recent(window));
  if (--oldest->second == 0) counts_.erase(oldest);
}

void Sampler::apply_penalties() {
  const PenaltySettings& s = settings_.penalties;
  for (const auto& entry : counts_) {
    const double fixed = double(entry.second) * double(s.frequency) + double(s.presence), repeat = double(s.repeat);
    candidates_.edit(entry.first, [=](double logit) { return (logit <= 0 ? logit * repeat : logit / repeat) - fixed; });
  }
}

// How far back from the end of the last n tokens a match may reach: up to the latest breaker.
int Sampler::dry_limit(int n) const {
  if (!settings_.dry.breakers) return n;
  const auto& tails = settings_.dry.breakers->tails;
  for (int i = 0; i < n; i++) {
    const auto found = tails.find(recent(i));
    if (found == tails.end()) continue;
    int longest = -1;
    for (const std::vector<int32_t>& tail : found->second) {
      const int length = int(tail.size());
      bool matches = length <= i && length > longest;
      for (int j = 0; matches && j < length; j++) matches = tail[size_t(j)] == recent(i - j - 1);
      if (matches) longest = length;
    }
    if (longest >= 0) return i - longest;
  }
  return n;
}

// DRY (https://github.com/oobabooga/text-generation-webui/pull/5677): a token that followed an earlier occurrence of
// the text's last `length` tokens loses multiplier * base^(length - allowed_length), for the longest such length.
// Lengths are the Z-function of the reversed history: match_lengths_[k] = how many of the last tokens equal those k before.
void Sampler::apply_dry() {
  const DrySettings& s = settings_.dry;
  const int n = s.last_n < 0 ? int(history_.size()) : std::min(int(history_.size()), s.last_n);
  if (n <= s.allowed_length) return;
  const int limit = dry_limit(n);
  if (limit < s.allowed_length) return;
  match_lengths_.assign(size_t(n), 0);
  std::unordered_map<int32_t, int> longest;
  for (int k = 1, left = 0, right = 0; k < n; k++) {  // [left, right): the match that reaches furthest back
    int& z = match_lengths_[size_t(k)];
    if (k < right) z = std::min(right - k, match_lengths_[size_t(k - left)]);
    while (k + z < n && recent(z) == recent(k + z)) z++;
    if (k + z > right) {
      left = k;
      right = k + z;
    }
    const int length = std::min(z, limit);
    if (length < s.allowed_length) continue;
    int& best = longest.emplace(recent(k - 1), length).first->second;
    best = std::max(best, length);
  }
  const int most = s.base > 1.000001f ? int(88.7228391f / std::log(s.base)) : 0;  // base^most still fits in f32
  for (const auto& entry : longest) {
    if (s.breakers) {
      const auto tails = s.breakers->tails.find(entry.first);
      const auto is_empty = [](const std::vector<int32_t>& tail) { return tail.empty(); };
      if (tails != s.breakers->tails.end() && std::any_of(tails->second.begin(), tails->second.end(), is_empty)) continue;
    }
    const int exponent = entry.second - s.allowed_length;
    const double penalty = double(s.multiplier) * std::pow(double(s.base), most > 0 ? std::min(exponent, most) : exponent);
    candidates_.edit(entry.first, [penalty](double logit) { return logit - penalty; });
  }
}

Sampled sample(Sampler& sampler, const float* logits, int, const uint32_t* allowed, int64_t position) {
  return sampler.sample(logits, allowed, position);
}

void accept(Sampler& sampler, int32_t token_id) { sampler.accept(token_id); }

Sampled score(const float* logits, int n_vocab, int32_t token_id) {
  Candidates all;
  all.reset(logits, n_vocab);
  const Softmax raw = all.softmax();
  if (!is_finite(raw)) return {error_of(raw), kNaN, kNaN, kNaN};
  const float logprob = float(std::min(all.log_probability(raw, logits[token_id]), 0.0));
  return {token_id, logprob, logprob, float(raw.entropy)};
}

void top_logprobs(const float* logits, int n_vocab, int n, TokenLogprob* out) {
  std::fill(out, out + n, TokenLogprob{-1, -kInfinity});
  if (n <= 0) return;
  Candidates all;
  all.reset(logits, n_vocab);
  const Softmax raw = all.softmax();
  if (!is_finite(raw)) return;
  std::vector<int32_t> ids;
  select_above(logits, n_vocab, threshold_of_best(logits, n_vocab, n), ids);
  const auto count = std::min(size_t(n), ids.size());
  std::partial_sort(ids.begin(), ids.begin() + long(count), ids.end(), [&](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  });
  for (size_t i = 0; i < count; i++) out[i] = {ids[i], float(std::min(all.log_probability(raw, logits[ids[i]]), 0.0))};
}

}  // namespace etude
