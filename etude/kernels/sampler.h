// State of one completion's sampling: llama.cpp's chain, counter-based random numbers, penalties' history.
//
// Words used throughout: the raw distribution is softmax(logits) of the untouched logits; the sampled distribution is
// what the token is drawn from, after mask, bias and chain. At temperature 0 the sampled distribution has one point,
// so its logprob is 0.
#pragma once
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "candidates.h"

namespace etude {

// Instead of a token id, when nothing can be drawn; the logprobs are NaN then.
constexpr int32_t kBadLogits = -1;       // a logit is NaN or +inf
constexpr int32_t kNothingAllowed = -2;  // every token has probability 0: mask, bias and chain leave none

struct Sampled {
  int32_t token_id;
  float logprob;      // of the distribution it was drawn from
  float raw_logprob;  // of softmax(logits)
  float entropy;      // of softmax(logits), nats
};

struct TokenLogprob {
  int32_t token_id;
  float logprob;
};

enum class Step : uint8_t { penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc, temperature };

// Token sequences that DRY does not match across: for each head token, the tails that complete a breaker.
struct Breakers {
  std::unordered_map<int32_t, std::vector<std::vector<int32_t>>> tails;
};

struct PenaltySettings {
  float repeat = 1, frequency = 0, presence = 0;
  int last_n = 64;  // -1: all tokens
};

struct DrySettings {
  float multiplier = 0, base = 1.75f;
  int allowed_length = 2;
  int last_n = -1;  // -1: all tokens
  std::shared_ptr<const Breakers> breakers;
};

struct MirostatSettings {
  int version = 0;  // 0: off
  float tau = 5, eta = 0.1f;
};

// What the chain does and in which order (llama.cpp's default one); the values given here switch each step off.
struct ChainSettings {
  std::vector<Step> steps = {Step::penalties, Step::dry,   Step::top_n_sigma, Step::top_k,      Step::typ_p,
                             Step::top_p,     Step::min_p, Step::xtc,         Step::temperature};
  float temperature = 1, dynamic_range = 0, dynamic_exponent = 1;
  int top_k = 0;
  float top_p = 1, min_p = 0, typical_p = 1, top_n_sigma = -1;
  float xtc_probability = 0, xtc_threshold = 0.1f;
  int min_keep = 0;  // top_p, min_p, typ_p and xtc leave at least so many tokens
  PenaltySettings penalties;
  DrySettings dry;
  MirostatSettings mirostat;
  std::vector<std::pair<int32_t, float>> logit_bias;
};

class Sampler {
 public:
  Sampler(int n_vocab, uint64_t seed, uint64_t index, ChainSettings settings);

  Sampled sample(const float* logits, const uint32_t* allowed, int64_t position);
  void accept(int32_t token_id);
  // The sampled distribution itself, ascending token id; empty where sample() would return an error. For tests.
  std::vector<TokenLogprob> distribution(const float* logits, const uint32_t* allowed, int64_t position);
  // Whether prompt tokens need to be accepted at all.
  bool reads_history() const { return reads_history_; }
  int n_vocab() const { return n_vocab_; }

 private:
  bool prepare(const float* logits, const uint32_t* allowed, int64_t position, Sampled* error);
  void apply(Step step, double chance);
  void apply_penalties();
  void apply_dry();
  int dry_limit(int n) const;
  int32_t recent(int i) const { return history_[history_.size() - 1 - size_t(i)]; }

  const int n_vocab_;
  const uint64_t seed_, index_;
  ChainSettings settings_;
  bool reads_history_ = false;
  std::vector<int32_t> history_;              // every accepted token, oldest first
  std::unordered_map<int32_t, int> counts_;   // of the tokens in the penalties' window
  double mu_, drawn_surprise_ = 0;            // mirostat: maximal surprise (bits), and that of the last draw
  int32_t drawn_ = -1;
  Softmax raw_;                               // of the untouched logits
  Candidates candidates_;
  std::vector<int> match_lengths_;            // scratch of DRY
};

// Draws from `logits` (n_vocab). allowed: bitmask or nullptr. position: index of the token that the
// draw produces in its sequence; the random number depends on (seed, index of the completion, position) alone.
// Does not accept() the token.
Sampled sample(Sampler& sampler, const float* logits, int n_vocab, const uint32_t* allowed, int64_t position);

// Adds a token to the history that penalties, DRY and mirostat look at.
void accept(Sampler& sampler, int32_t token_id);

// logprob, raw_logprob and entropy of a given token (both logprobs are the raw one).
Sampled score(const float* logits, int n_vocab, int32_t token_id);

// The n most likely tokens with raw logprobs, best first; equal ones by id. Places without a token (probability 0) get id -1 and logprob -inf.
void top_logprobs(const float* logits, int n_vocab, int n, TokenLogprob* out);

}  // namespace etude
