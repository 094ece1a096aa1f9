// The tokens still in play while a chain of samplers runs, and the operations the samplers are made of.
//
// Two forms. All tokens: the row of logits, read by the vector passes of vocab.cpp and copied when something edits it. A list: the
// survivors of the first truncation. A list stays in ascending order of token id, and truncations find a threshold
// instead of sorting; so the draw walks the tokens in the same order in both forms.
//
// Logits are kept undivided: temperature is one number beside them, the inverse temperature, and a token's weight is
// exp((logit - peak) * inverse temperature). A token with logit -inf has probability 0 and is never listed.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace etude {

struct Candidate {
  int32_t id;
  float logit;
};

struct Softmax {
  float peak = 0;      // largest logit; NaN: some logit is NaN or +inf; -inf: no token is left
  double total = 0;    // sum of the weights
  double entropy = 0;  // nats
  double log_total = 0;
};

// Order of preference in a truncation: ascending score, then ascending id. `mass` is the probability.
struct Scored {
  float score;
  int32_t id;
  double mass;
};

class Candidates {
 public:
  void reset(const float* logits, int n_vocab);

  // The current distribution. Also leaves the sums that pick() uses.
  Softmax softmax();
  // Index of the token that `uniform` in [0, 1) falls on in the distribution softmax() last computed; its logit in *logit.
  int32_t pick(const Softmax& now, double uniform, float* logit) const;
  double log_probability(const Softmax& now, float logit) const;

  void mask(const uint32_t* allowed);
  // Replaces the tempered logit z of a token by change(z), if the token is in play.
  template <class Change>
  void edit(int32_t id, Change change) {
    const int place = find(id);
    if (place < 0) return;
    const float logit = listed_ ? list_[std::size_t(place)].logit : logits_[place];
    if (logit != -kInfinity) write(place, float(change(double(logit) * inverse_temperature_) / inverse_temperature_));
  }

  // llama.cpp's samplers (src/llama-sampler.cpp), same names and arithmetic
  void top_k(int k);
  void top_p(double p, int min_keep);
  void min_p(double p, int min_keep);
  void typical_p(double p, int min_keep);
  void top_n_sigma(double n);
  void xtc(double threshold, int min_keep);
  void temperature(double t);  // 0: only the first of the most likely tokens stays
  void dynamic_temperature(double t, double range, double exponent);
  void mirostat1(double mu, int n_vocab);
  void mirostat2(double mu);

  template <class Visit>
  void each(Visit visit) const {
    if (listed_)
      for (const Candidate& c : list_) visit(c.id, c.logit);
    else
      for (int32_t i = 0; i < n_vocab_; i++)
        if (logits_[i] != -kInfinity) visit(i, logits_[i]);
  }

 private:
  static constexpr float kInfinity = __builtin_huge_valf();
  static constexpr int kBlock = 1024;

  Softmax softmax_of_row();
  int find(int32_t id) const;  // its place in the row or in the list; -1: out
  void write(int place, float logit);
  float* own_row();
  void list_above(float threshold);  // makes the list: logit >= threshold
  void keep_above(float threshold);
  void keep_best(int k);
  void keep_until(const Scored& last);
  void keep_reaching(double mass, bool strictly, int min_keep);
  void score_by_logit(const Softmax& now);
  float threshold_of_mass(const Softmax& now, double mass);
  double probability(const Softmax& now, float logit) const;
  float as_logit(const Softmax& now, double log_probability) const;

  const float* logits_ = nullptr;
  std::vector<float> own_;   // the copy, once there is one
  int n_vocab_ = 0;
  int size_ = 0;             // as llama.cpp counts: with the tokens of probability 0 that no truncation removed
  double inverse_temperature_ = 1;
  bool listed_ = false;
  bool touched_ = false;     // the row differs from what softmax() last saw
  Softmax row_softmax_;      // of the row as softmax() last saw it,
  double row_inverse_ = 0;   // at this inverse temperature
  std::vector<Candidate> list_;
  std::vector<double> sums_;                         // row: weights per block of 1024; list: weight of each
  std::vector<Scored> scored_, order_;
  std::vector<int32_t> ids_;
};

// A threshold that at least k of the n logits reach (fewer only if fewer are finite), and few more.
float threshold_of_best(const float* logits, int n, int k);
// Appends the tokens with logit >= threshold, ascending id.
void select_above(const float* logits, int n, float threshold, std::vector<int32_t>& ids);

}  // namespace etude
