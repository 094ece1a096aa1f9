// Runs llama.cpp's own samplers on given logits and prints the distribution that is left: the peer of the sampler tests.
//
// stdin, per case, separated by white space:   n logit*n   n_history id*n_history   n_steps (name parameter*)*n_steps
// stdout, per case:                            n_left (id probability)*n_left, ascending id, probability 0 left out
#include <cmath>
#include <cstdio>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "llama.h"

extern struct llama_sampler* llama_sampler_init_dry_testing(float multiplier, float base, int32_t allowed_length, int32_t last_n,
                                                            const std::vector<std::vector<llama_token>>& breakers);

template <class T>
static T read() {
  T value{};
  if (!(std::cin >> value)) std::exit(1);
  return value;
}

// from_chars and >> do not read "-inf": hexadecimal floats and "-inf" through strtof
static float read_float() { return std::strtof(read<std::string>().c_str(), nullptr); }

static llama_sampler* read_dry() {
  const float multiplier = read_float(), base = read_float();
  const int allowed_length = read<int>(), last_n = read<int>(), n = read<int>();
  std::vector<std::vector<llama_token>> breakers(n);
  for (auto& breaker : breakers) {
    breaker.resize(read<int>());
    for (llama_token& id : breaker) id = read<int>();
  }
  return llama_sampler_init_dry_testing(multiplier, base, allowed_length, last_n, breakers);
}

static llama_sampler* read_bias(int n_vocab) {
  std::vector<llama_logit_bias> biases(read<int>());
  for (llama_logit_bias& b : biases) {
    b.token = read<int>();
    b.bias = read_float();
  }
  return llama_sampler_init_logit_bias(n_vocab, int(biases.size()), biases.data());
}

static llama_sampler* read_step(int n_vocab) {
  const std::string name = read<std::string>();
  if (name == "top_k") return llama_sampler_init_top_k(read<int>());
  if (name == "temperature") return llama_sampler_init_temp(read_float());
  if (name == "top_n_sigma") return llama_sampler_init_top_n_sigma(read_float());
  if (name == "dry") return read_dry();
  if (name == "logit_bias") return read_bias(n_vocab);
  const float a = read_float(), b = read_float();
  if (name == "top_p") return llama_sampler_init_top_p(a, size_t(b));
  if (name == "min_p") return llama_sampler_init_min_p(a, size_t(b));
  if (name == "typ_p") return llama_sampler_init_typical(a, size_t(b));
  if (name == "mirostat1") return llama_sampler_init_mirostat(n_vocab, 1, a, b, 100);
  if (name == "mirostat2") return llama_sampler_init_mirostat_v2(1, a, b);
  const float c = read_float();
  if (name == "xtc") return llama_sampler_init_xtc(a, b, size_t(c), 1);
  if (name == "dynamic_temperature") return llama_sampler_init_temp_ext(a, b, c);
  const float d = read_float();
  if (name == "penalties") return llama_sampler_init_penalties(n_vocab, int(d), a, b, c);
  std::exit(2);
}

static void run_case(int n_vocab) {
  std::vector<llama_token_data> tokens(n_vocab);
  for (int i = 0; i < n_vocab; i++) tokens[i] = {i, read_float(), 0.0f};
  std::vector<llama_token> history(read<int>());
  for (llama_token& id : history) id = read<int>();
  llama_token_data_array candidates = {tokens.data(), tokens.size(), -1, false};
  for (int n = read<int>(); n > 0; n--) {
    llama_sampler* step = read_step(n_vocab);
    for (const llama_token id : history) llama_sampler_accept(step, id);
    llama_sampler_apply(step, &candidates);
    llama_sampler_free(step);
  }
  llama_sampler* draw = llama_sampler_init_dist(1);
  llama_sampler_apply(draw, &candidates);
  llama_sampler_free(draw);
  std::map<int, float> left;
  for (size_t i = 0; i < candidates.size; i++)
    if (candidates.data[i].p > 0) left[candidates.data[i].id] = candidates.data[i].p;
  std::printf("%zu", left.size());
  for (const auto& [id, p] : left) std::printf(" %d %.9g", id, double(p));
  std::printf("\n");
}

int main() {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  for (int n_vocab; std::cin >> n_vocab;) run_case(n_vocab);
}
