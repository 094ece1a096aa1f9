// State of one completion's sampling: llama.cpp's chain, counter-based random numbers, penalties' history.
#pragma once
#include <cstdint>
#include <vector>

namespace etude {

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

class Sampler;

// Draws from `logits` (n_vocab, may be overwritten). allowed: bitmask or nullptr. position: index of the token that the
// draw produces in its sequence; the random number depends on (seed, index of the completion, position) alone.
// Does not accept() the token.
Sampled sample(Sampler& sampler, float* logits, int n_vocab, const uint32_t* allowed, int64_t position);

// Adds a token to the history that penalties, DRY and mirostat look at.
void accept(Sampler& sampler, int32_t token_id);

// logprob, raw_logprob and entropy of a given token (both logprobs are the raw one).
Sampled score(const float* logits, int n_vocab, int32_t token_id);

// The n most likely tokens with raw logprobs, best first; equal ones by id.
void top_logprobs(const float* logits, int n_vocab, int n, TokenLogprob* out);

}  // namespace etude
