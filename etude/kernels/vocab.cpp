// Passes over one row of logits (n_vocab floats), for the sampler and for the learner's loss. Compiled once per instruction set.
//
// Sums run in blocks of 1024 logits: f32 lanes inside a block (16 adds each), f64 across blocks, always in the same
// order; so a sum over a row equals the f64 sum of the sums over its 1024-blocks, which lets the sampler keep those
// and search only one block. Everything here tolerates -inf (probability 0); NaN and +inf are found by vocab_max.
#include "operators.h"
#include "simd.h"

namespace etude {
namespace ETUDE_ISA {

namespace {

constexpr int kBlock = 1024;
constexpr float kLowest = -3.402823466e38f;

static inline float minus_infinity() { return bits_to_f32(0xff800000); }

// The last, partial vector of a row.
static inline F load_part(const float* x, int count, float fill) {
  float lanes[16];
  for (int i = 0; i < 16; i++) lanes[i] = i < count ? x[i] : fill;
  return load(lanes);
}

// p = exp(t) and p * t of one vector, t = (x - peak) * inverse_temperature. t is clamped where p is 0: 0 * -inf is NaN.
struct Term { F p, weighted; };
static inline Term term(F x, F peak, F inverse_temperature) {
  const F t = (x - peak) * inverse_temperature, p = exp(t);
  return {p, p * max(t, set1(-100.0f))};
}

struct Sum { double p, weighted; };

// At most 1024 logits.
static Sum sum_block(const float* x, int n, F peak, F inverse_temperature) {
  F p[4] = {set1(0), set1(0), set1(0), set1(0)}, w[4] = {set1(0), set1(0), set1(0), set1(0)};
  int i = 0;
  for (; i + 64 <= n; i += 64)
    for (int j = 0; j < 4; j++) {
      const Term t = term(load(x + i + 16 * j), peak, inverse_temperature);
      p[j] = p[j] + t.p;
      w[j] = w[j] + t.weighted;
    }
  for (int j = 0; i < n; i += 16, j++) {
    const Term t = term(n - i >= 16 ? load(x + i) : load_part(x + i, n - i, minus_infinity()), peak, inverse_temperature);
    p[j] = p[j] + t.p;
    w[j] = w[j] + t.weighted;
  }
  return {double(sum((p[0] + p[1]) + (p[2] + p[3]))), double(sum((w[0] + w[1]) + (w[2] + w[3])))};
}

}  // namespace

// The largest logit; NaN if any is NaN or +inf. max(a, b) gives b when either is NaN, so max(lowest, x) keeps a NaN and
// makes -inf finite, and multiplying by 0 leaves NaN exactly for NaN and +inf; max(x, best) ignores a NaN.
float vocab_max(const float* x, int n) {
  F best = set1(minus_infinity()), best2 = best, bad = set1(0), bad2 = bad;
  const F zero = set1(0), lowest = set1(kLowest);
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    const F a = load(x + i), b = load(x + i + 16);
    best = max(a, best);
    best2 = max(b, best2);
    bad = fma(max(lowest, a), zero, bad);
    bad2 = fma(max(lowest, b), zero, bad2);
  }
  for (; i < n; i += 16) {
    const F a = n - i >= 16 ? load(x + i) : load_part(x + i, n - i, minus_infinity());
    best = max(a, best);
    bad = fma(max(lowest, a), zero, bad);
  }
  return max_lane(max(best, best2)) + sum(bad + bad2);
}

double vocab_sum_exp(const float* x, int n, float peak, float inverse_temperature, double* weighted) {
  const F peak_v = set1(peak), inverse_v = set1(inverse_temperature);
  Sum total = {0, 0};
  for (int i = 0; i < n; i += kBlock) {
    const Sum block = sum_block(x + i, n - i < kBlock ? n - i : kBlock, peak_v, inverse_v);
    total.p += block.p;
    total.weighted += block.weighted;
  }
  if (weighted) *weighted = total.weighted;
  return total.p;
}

void vocab_gradient(float* x, int n, float peak, float factor) {
  const F peak_v = set1(peak), factor_v = set1(factor);
  int i = 0;
  for (; i + 16 <= n; i += 16) store(x + i, exp(load(x + i) - peak_v) * factor_v);
  if (i == n) return;
  float last[16];
  store(last, exp(load_part(x + i, n - i, minus_infinity()) - peak_v) * factor_v);
  for (int j = 0; i < n; i++, j++) x[i] = last[j];
}

// -1 if every probability is 0.
int vocab_pick(const float* x, int n, float peak, float inverse_temperature, double target) {
  const F peak_v = set1(peak), inverse_v = set1(inverse_temperature);
  double running = 0;
  int last_possible = -1;
  for (int i = 0; i < n; i += 16) {
    const F t = (n - i >= 16 ? load(x + i) : load_part(x + i, n - i, minus_infinity())) - peak_v;
    float p[16];
    store(p, exp(t * inverse_v));
    for (int j = 0; j < 16; j++) {
      if (!(p[j] > 0)) continue;
      last_possible = i + j;
      running += double(p[j]);
      if (running > target) return last_possible;
    }
  }
  return last_possible;
}

void vocab_mask(float* x, int n, const uint32_t* allowed) {
  const float gone = minus_infinity();
  for (int i = 0; i < n; i += 32) {
    const uint32_t word = allowed[i / 32];
    const int count = n - i < 32 ? n - i : 32;
    if (word == 0xffffffffu) continue;
    if (word == 0 && count == 32) {
      store(x + i, set1(gone));
      store(x + i + 16, set1(gone));
      continue;
    }
    for (int j = 0; j < count; j++)
      if (!(word >> j & 1)) x[i + j] = gone;
  }
}

int vocab_select(const float* x, int n, float threshold, int32_t* indices, int capacity) {
  int found = 0, i = 0;
  for (; i < n; i += 64) {
    const int count = n - i < 64 ? n - i : 64;
    if (count == 64) {
      const F high = max(max(load(x + i), load(x + i + 16)), max(load(x + i + 32), load(x + i + 48)));
      if (max_lane(high) < threshold) continue;
    }
    for (int j = 0; j < count; j++)
      if (x[i + j] >= threshold) {
        if (found < capacity) indices[found] = i + j;
        found++;
      }
  }
  return found;
}

}  // namespace ETUDE_ISA
}  // namespace etude
