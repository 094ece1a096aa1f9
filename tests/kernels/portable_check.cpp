// The native code without Python on one machine: every operator of the portable path against plain loops in double, and a small
// decoder whose prefill, single tokens and thread counts must agree bit for bit. For compilers and processors on which the Python
// tests do not run: tests/kernels/cross_aarch64.sh builds it. Prints one line a check; exits with the number that failed.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../../etude/kernels/decoder.h"
#include "../../etude/kernels/half.h"
#include "../../etude/kernels/pack.h"
#include "../../etude/kernels/pool.h"

using namespace etude;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

namespace {

std::mt19937 random_bits(7);
int failures = 0;

void report(const char* what, double error, double limit) {
  const bool good = error <= limit;  // false for NaN
  failures += !good;
  std::printf("%s %-28s %.2e (limit %.0e)\n", good ? "ok  " : "FAIL", what, error, limit);
}

Floats normal(size_t n, float size = 1) {
  std::normal_distribution<float> draw(0, size);
  Floats x(n);
  for (float& v : x) v = draw(random_bits);
  return x;
}

struct TypeCase {
  const char* name;
  int id, values, bytes;
  std::vector<int> halves;  // where the f16 scales are
};

const TypeCase type_cases[] = {
    {"F32", 0, 1, 4, {}},          {"F16", 1, 1, 2, {0}},         {"BF16", 30, 1, 2, {0}},       {"Q4_0", 2, 32, 18, {0}},
    {"Q4_1", 3, 32, 20, {0, 2}},   {"Q5_0", 6, 32, 22, {0}},      {"Q5_1", 7, 32, 24, {0, 2}},   {"Q8_0", 8, 32, 34, {0}},
    {"Q2_K", 10, 256, 84, {80, 82}}, {"Q3_K", 11, 256, 110, {108}}, {"Q4_K", 12, 256, 144, {0, 2}}, {"Q5_K", 13, 256, 176, {0, 2}},
    {"Q6_K", 14, 256, 210, {208}}, {"IQ4_NL", 20, 32, 18, {0}},   {"IQ4_XS", 23, 256, 136, {0}}, {"MXFP4", 39, 32, 17, {}},
};

std::vector<uint8_t> random_weights(const TypeCase& type, int n, int k) {
  std::vector<uint8_t> bytes(size_t(n) * k / type.values * type.bytes);
  for (uint8_t& b : bytes) b = uint8_t(random_bits());
  if (type.id == 0) {
    const Floats values = normal(size_t(n) * k);
    std::memcpy(bytes.data(), values.data(), bytes.size());
  }
  for (size_t block = 0; block < bytes.size(); block += type.bytes) {
    for (int at : type.halves) {
      const float value = 0.001f * float(1 + random_bits() % 100);
      const uint16_t half = type.id == 30 ? f32_to_bf16(value) : f32_to_f16(value);
      std::memcpy(&bytes[block + at], &half, 2);
    }
    if (type.id == 39) bytes[block] = uint8_t(118 + random_bits() % 8);
  }
  return bytes;
}

// What the kernel multiplies with, out of the encoding itself.
double input_at(const Matrix& w, const Activations& x, int t, int i) {
  if (encoding_for(w) == encode_f32) return x.f32[size_t(t) * x.k_padded + i];
  if (encoding_for(w) == encode_bf16) return bf16_to_f32(x.bf16[size_t(t) * x.k_padded + i]);
  const int blocks = x.k_padded / 32;
  const uint16_t* outliers = x.outliers + size_t(t) * blocks;
  double value = double(x.scale[size_t(t) * blocks + i / 32]) * x.q[size_t(t) * x.k_padded + i];
  if (std::find(outliers, outliers + x.outlier_count[t], i / 32) != outliers + x.outlier_count[t]) {
    const size_t r = size_t(t) + x.residual_rows;
    value += double(x.scale[r * blocks + i / 32]) * x.q[r * x.k_padded + i];
  }
  return value;
}

void check_matmul(const TypeCase& type) {
  const int n = 19, k = 512, t = 7, stride = 32;
  const std::vector<uint8_t> bytes = random_weights(type, n, k);
  const PackedMatrix packed = pack(type.id, n, k, bytes.data(), bytes.size(), nullptr, 1);
  const Matrix& w = packed.matrix;
  Floats x = normal(size_t(t) * k), y(size_t(t) * stride), row(k);
  for (int i = 0; i < t; i += 2) x[size_t(i) * k + 40 * i] *= 90;  // outliers
  ActivationBuffer buffer;
  buffer.reserve(t, k);
  for (int i = 0; i < t; i++) kernels().encode(&x[size_t(i) * k], k, encoding_for(w), buffer.view, i);
  kernels().matmul(w, buffer.view, 0, t, 0, w.tiles, y.data(), stride);
  double worst = 0, rough = 0, total = 0;
  for (int i = 0; i < n; i++) {
    kernels().decode_row(w, i, row.data());
    for (int j = 0; j < t; j++) {
      double exact = 0, size = 0, plain = 0;
      for (int c = 0; c < k; c++) {
        const double term = double(row[c]) * input_at(w, buffer.view, j, c);
        exact += term;
        size += std::fabs(term);
        plain += double(row[c]) * x[size_t(j) * k + c];
      }
      worst = std::max(worst, std::fabs(y[size_t(j) * stride + i] - exact) / size);
      rough += (y[size_t(j) * stride + i] - plain) * (y[size_t(j) * stride + i] - plain);
      total += plain * plain;
    }
  }
  report((std::string("matmul ") + type.name).c_str(), worst, 1e-6);
  report((std::string("encoding for ") + type.name).c_str(), rough / total, 5e-4);
}

void check_rows() {
  const int n = 75;
  const Floats x = normal(n, 8), weight = normal(n);
  Floats y(n), gate = x, cap = x, up = normal(n);
  kernels().rms_norm(x.data(), weight.data(), n, 1e-5f, y.data());
  kernels().gate(gate.data(), up.data(), n, false);
  kernels().softcap_row(cap.data(), 5, n);
  double mean = 0, norm_error = 0, gate_error = 0, cap_error = 0;
  for (float v : x) mean += double(v) * v / n;
  for (int i = 0; i < n; i++) {
    norm_error = std::max(norm_error, std::fabs(y[i] - x[i] / std::sqrt(mean + 1e-5) * weight[i]));
    gate_error = std::max(gate_error, std::fabs(gate[i] - double(x[i]) / (1 + std::exp(-double(x[i]))) * up[i]));
    cap_error = std::max(cap_error, std::fabs(cap[i] - 5 * std::tanh(x[i] / 5.0)));
  }
  report("rms_norm", norm_error, 5e-6);
  report("silu gate (exp)", gate_error, 5e-5);
  report("soft cap (exp)", cap_error, 5e-6);
  Floats wide(4001);
  for (int i = 0; i < 4001; i++) wide[i] = -88 + 0.022f * i;
  double sum = 0;
  for (float v : wide) sum += std::exp(double(v));
  report("vocab_sum_exp", std::fabs(kernels().vocab_sum_exp(wide.data(), 4001, 0, 1, nullptr) / sum - 1), 1e-6);
  uint16_t halves[4];
  const float values[4] = {1.0f, -65504.0f, 6.1e-5f, 2.0e-8f};
  kernels().convert(CacheType::f16, values, 4, halves);
  report("f16", std::fabs(f16_to_f32(halves[0]) - 1) + std::fabs(f16_to_f32(halves[1]) + 65504) + std::fabs(f16_to_f32(halves[2]) - 6.1e-5f), 1e-7);
}

// One page of 64 keys, queries in the middle and at the end, with and without a window.
void check_attention(int window) {
  const int dim = 20, stride = 32, tokens = 64, queries = 5;
  AttentionShape shape;
  shape.head_dim = dim;
  shape.page_tokens = tokens;
  shape.type_k = shape.type_v = CacheType::f32;
  shape.window = window;
  const Floats k = normal(size_t(dim) * tokens), q = normal(size_t(queries) * dim);
  Floats v(size_t(tokens) * stride), out(size_t(queries) * stride), peak(queries, -INFINITY), total(queries);
  for (int s = 0; s < tokens; s++)
    for (int d = 0; d < dim; d++) v[size_t(s) * stride + d] = float(std::sin(s + 3 * d));
  const int positions[queries] = {0, 31, 32, 50, 63};
  std::vector<AttentionRow> rows;
  for (int i = 0; i < queries; i++) rows.push_back({&q[size_t(i) * dim], &out[size_t(i) * stride], &peak[i], &total[i], positions[i]});
  for (int key = 0; key < tokens; key += 32)
    kernels().attend(shape, (const uint8_t*)k.data(), (const uint8_t*)v.data(), key, key, rows.data(), queries);
  double worst = 0;
  for (int i = 0; i < queries; i++) {
    const int first = window ? std::max(0, positions[i] - window + 1) : 0;
    Doubles sums(dim);
    double weights = 0;
    for (int s = first; s <= positions[i]; s++) {
      double score = 0;
      for (int d = 0; d < dim; d++) score += double(q[size_t(i) * dim + d]) * k[size_t(d) * tokens + s];
      weights += std::exp(score);
      for (int d = 0; d < dim; d++) sums[d] += std::exp(score) * v[size_t(s) * stride + d];
    }
    for (int d = 0; d < dim; d++) worst = std::max(worst, std::fabs(out[size_t(i) * stride + d] / total[i] - sums[d] / weights));
  }
  report(window ? "attention with a window" : "attention", worst, 5e-6);
}

ModelShape small_shape() {
  ModelShape s;
  s.n_layers = 2;
  s.d_model = 64;
  s.n_heads = 4;
  s.n_kv_heads = 2;
  s.head_dim = 32;
  s.d_ff = 96;
  s.n_vocab = 50;
  s.attention_scale = 0.17f;
  s.windows = {0, 20};
  s.rope_of_layer = {0, 0};
  s.rope_half = 16;
  for (int i = 0; i < 16; i++) s.inv_freqs.push_back(float(std::pow(10000.0, -i / 16.0)));
  s.rope_scales = {1};
  return s;
}

void fill(Model& model, const TypeCase& type) {
  auto set = [&](const char* slot, int layer) {
    int n, k;
    model.matrix_shape(slot, layer, &n, &k);
    const std::vector<uint8_t> bytes = random_weights(type, n, k);
    model.set_matrix(slot, layer, type.id, n, k, bytes.data(), bytes.size(), nullptr, 1);
  };
  const Floats ones(model.shape.d_model, 1);
  set("token_embd", -1);
  model.set_vector("output_norm", -1, ones.data(), ones.size());
  for (int layer = 0; layer < model.shape.n_layers; layer++) {
    for (const char* slot : {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}) set(slot, layer);
    for (const char* slot : {"attn_norm", "ffn_norm"}) model.set_vector(slot, layer, ones.data(), ones.size());
  }
}

// Logits of the last of `count` tokens, read `at_once` a step.
Floats last_logits(const Model& model, int count, int at_once, int threads) {
  Cache cache(model.shape, 4, 32, CacheType::f16, CacheType::q8);
  Pool pool(threads);
  Decoder decoder(model, cache, pool);
  Floats logits(model.shape.n_vocab);
  const int32_t pages[4] = {2, 0, 3, 1};
  for (int begin = 0; begin < count; begin += at_once) {
    const int n = std::min(at_once, count - begin);
    std::vector<int32_t> ids(n);
    for (int i = 0; i < n; i++) ids[i] = (begin + i) * 7 % 50;
    const int32_t first_token[2] = {0, n}, first_page[2] = {0, 4}, position = begin, row = n - 1, target = 0, top = 0;
    int32_t id;
    float logprob, raw, entropy;
    StepInput in{};
    in.n_tokens = n;
    in.n_sequences = in.n_rows = 1;
    in.token_ids = ids.data();
    in.first_token = first_token;
    in.first_position = &position;
    in.pages = pages;
    in.first_page = first_page;
    in.rows = &row;
    in.targets = &target;
    in.n_top = &top;
    in.samplers = {nullptr};
    in.masks = {nullptr};
    StepResult out{};
    out.token_ids = &id;
    out.logprobs = &logprob;
    out.raw_logprobs = &raw;
    out.entropies = &entropy;
    out.logits = logits.data();
    decoder.step(in, out);
  }
  return logits;
}

void check_decoder(const TypeCase& type) {
  Model model(small_shape());
  fill(model, type);
  const Floats whole = last_logits(model, 100, 100, 1);
  double finite = 0;
  for (float v : whole) finite += std::isfinite(v) ? 0 : 1;
  report((std::string("decoder is finite, ") + type.name).c_str(), finite, 0);
  for (const auto& [at_once, threads] : {std::pair{1, 1}, {33, 1}, {7, 2}, {100, 3}, {1, 3}}) {
    const Floats cut = last_logits(model, 100, at_once, threads);
    char what[64];
    std::snprintf(what, sizeof what, "bits: %d at once, %d threads", at_once, threads);
    report(what, std::memcmp(cut.data(), whole.data(), whole.size() * 4) ? 1 : 0, 0);
  }
}

}  // namespace

// Every piece of every phase is handed out once, whichever number of threads the job before had.
void check_pool() {
  constexpr int pieces = 37, phases = 3;
  std::mt19937 random(1);
  Pool pool(3);
  int wrong = 0;
  for (int job = 0; job < 2000; job++) {
    std::atomic<int> done[phases] = {};
    pool.run([&](int) {
      for (int phase = 0; phase < phases; phase++) {
        for (int i; (i = pool.take(pieces, 2)) < pieces;) done[phase] += std::min(2, pieces - i);
        pool.barrier();
      }
    }, 1 + int(random() % 3));
    for (const std::atomic<int>& phase : done) wrong += phase != pieces;
  }
  report("pool", wrong, 0.5);
}

int main() {
  std::printf("path: %s\n", kernels().name);
  for (const TypeCase& type : type_cases) check_matmul(type);
  check_rows();
  check_pool();
  check_attention(0);
  check_attention(20);
  check_decoder(type_cases[0]);
  check_decoder(type_cases[7]);
  std::printf("%d failed\n", failures);
  return failures;
}
