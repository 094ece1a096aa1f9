#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace etude {
namespace {

constexpr int short_step_tokens = 64;

int round_up(int n, int to) { return (n + to - 1) / to * to; }

void grow(Memory& memory, size_t floats) {
  if (memory.bytes() < floats * 4) memory = Memory(floats * 4);
}

[[noreturn]] void refuse(const std::string& text) { throw std::invalid_argument(text); }

}  // namespace

void ActivationBuffer::reserve(int rows, int k) {
  const int kp = round_up(k, 32);
  view.k_padded = kp;
  if (rows <= rows_ && kp == k_) return;
  rows_ = std::max(rows, rows_);
  k_ = kp;
  view.residual_rows = rows_;
  const size_t n = size_t(rows_) * kp, blocks = 2 * n / 32;  // int8 rows come with their residuals
  memory_ = Memory(n * 4 + n * 2 + 2 * n + blocks * 4 * 7 + blocks + size_t(rows_) * 4);
  uint8_t* p = memory_.as();
  auto place = [&p](auto*& field, size_t count) {
    field = reinterpret_cast<std::remove_reference_t<decltype(field)>>(p);
    p += count * sizeof(*field);
  };
  place(view.f32, n);
  place(view.bf16, n);
  place(view.q, 2 * n);
  place(view.scale, blocks);
  place(view.unbias, blocks);
  place(view.scaled_sum, blocks);
  place(view.bias8, blocks);
  place(view.bias128, blocks);
  place(view.sum16, 2 * blocks);
  place(view.outlier_count, size_t(rows_));
  place(view.outliers, blocks / 2);
}

Decoder::Decoder(const Model& model, Cache& cache, Pool& pool)
    : model_(model), shape_(model.shape), cache_(cache), pool_(pool), crowding_(pool.threads()), k_(kernels()), d_stride_(round_up(shape_.d_model, 32)),
      ff_stride_(round_up(shape_.d_ff, 32)), q_stride_(round_up(shape_.n_heads * shape_.head_dim, 32)),
      kv_stride_(round_up(shape_.n_kv_heads * shape_.head_dim, 32)), scratch_(pool.threads()), attention_rows_(pool.threads()) {
  model.check();
  if (!cache.fits(shape_)) refuse("the cache was made for a model of another shape");
  vocab_stride_ = model.head().tiles * 16;
}

void Decoder::check(const StepInput& in) const {
  if (in.n_tokens < 1 || in.n_sequences < 1) refuse("a step needs at least one token and one sequence");
  if (in.first_token[0] != 0 || in.first_token[in.n_sequences] != in.n_tokens) refuse("first_token must run from 0 to the number of tokens");
  for (int i = 0; i < in.n_tokens; i++)
    if (in.token_ids[i] < 0 || in.token_ids[i] >= shape_.n_vocab) refuse("token id " + std::to_string(in.token_ids[i]) + ", allowed 0 to " + std::to_string(shape_.n_vocab - 1));
  for (int s = 0; s < in.n_sequences; s++) {
    const int count = in.first_token[s + 1] - in.first_token[s], pages = in.first_page[s + 1] - in.first_page[s];
    if (count < 1) refuse("sequence " + std::to_string(s) + " has no token");
    if (in.first_position[s] < 0 || (int64_t(in.first_position[s]) + count + cache_.page_tokens - 1) / cache_.page_tokens > pages)
      refuse("sequence " + std::to_string(s) + " has " + std::to_string(pages) + " pages, too few for position " + std::to_string(int64_t(in.first_position[s]) + count - 1));
    for (int i = in.first_page[s]; i < in.first_page[s + 1]; i++)
      if (in.pages[i] < 0 || in.pages[i] >= cache_.n_pages) refuse("page " + std::to_string(in.pages[i]) + ", allowed 0 to " + std::to_string(cache_.n_pages - 1));
  }
  for (const Adapter* adapter : in.adapters)
    if (adapter && &adapter->model() != &model_) refuse("an adapter was made for another model");
  for (int r = 0; r < in.n_rows; r++) {
    if (in.rows[r] < 0 || in.rows[r] >= in.n_tokens || (r && in.rows[r] < in.rows[r - 1])) refuse("rows must be ascending token indices");
    if (in.samplers[r] && in.samplers[r]->n_vocab() != shape_.n_vocab)
      refuse("a sampler was made for " + std::to_string(in.samplers[r]->n_vocab()) + " tokens, the model has " + std::to_string(shape_.n_vocab));
    if (!in.samplers[r] && in.targets[r] != hidden_only && (in.targets[r] < 0 || in.targets[r] >= shape_.n_vocab)) refuse("row " + std::to_string(r) + " has neither a sampler nor a target token");
    if (in.n_top[r] < 0 || in.n_top[r] > shape_.n_vocab) refuse("n_top = " + std::to_string(in.n_top[r]));
  }
  std::vector<Sampler*> drawing(in.samplers);
  std::sort(drawing.begin(), drawing.end());
  for (size_t r = 1; r < drawing.size(); r++)
    if (drawing[r] && drawing[r] == drawing[r - 1]) refuse("a sampler is in two rows of a step; it can draw only one token");
}

void Decoder::reserve(int tokens) {
  const size_t t = tokens;
  grow(x_, t * d_stride_);
  grow(projected_, t * d_stride_);
  grow(q_, t * q_stride_);
  grow(key_, t * kv_stride_);
  grow(value_, t * kv_stride_);
  grow(gate_, t * ff_stride_);
  grow(up_, t * ff_stride_);
  grow(cosine_, t * shape_.rope_scales.size() * shape_.rope_half);
  grow(sine_, t * shape_.rope_scales.size() * shape_.rope_half);
  grow(states_, t * shape_.n_heads * size_t(state_slots_) * (shape_.head_stride() + 2));
  act_model_.reserve(tokens, shape_.d_model);
  act_attention_.reserve(tokens, shape_.n_heads * shape_.head_dim);
  act_ff_.reserve(tokens, shape_.d_ff);
  // Logits of many rows (prompt logprobs) come in rounds of at most 64 MiB.
  const int most = std::max(8, int((size_t(64) << 20) / (size_t(vocab_stride_) * 4)));
  logit_rows_ = std::min(int(unique_.size()), most);
  grow(logits_, size_t(logit_rows_) * vocab_stride_);
  act_head_.reserve(std::max(1, logit_rows_), shape_.d_model);
  if (lora_.empty()) return;
  if (adapts_head()) grow(lora_logits_, size_t(logit_rows_) * vocab_stride_);
  grow(lora_u_, t * 3 * lora_stride_);
  grow(lora_y_, t * 3 * size_t(std::max({q_stride_, kv_stride_, ff_stride_, d_stride_})));
}

void Decoder::plan_tokens(const StepInput& in) {
  sequence_of_.resize(in.n_tokens);
  position_of_.resize(in.n_tokens);
  for (int s = 0; s < in.n_sequences; s++)
    for (int t = in.first_token[s]; t < in.first_token[s + 1]; t++) {
      sequence_of_[t] = s;
      position_of_[t] = in.first_position[s] + t - in.first_token[s];
    }
  unique_.clear();
  row_of_.resize(in.n_rows);
  for (int r = 0; r < in.n_rows; r++) {
    if (unique_.empty() || unique_.back() != in.rows[r]) unique_.push_back(in.rows[r]);
    row_of_[r] = int(unique_.size()) - 1;
  }
}

void Decoder::plan_adapters(const StepInput& in) {
  lora_.clear();
  lora_stride_ = 0;
  for (int s = 0; s < int(in.adapters.size()); s++) {
    const Adapter* adapter = in.adapters[s];
    if (!adapter || !adapter->max_rank) continue;
    const float factor = adapter->scale * in.adapter_scales[s];
    lora_stride_ = std::max(lora_stride_, adapter->max_rank);
    if (!lora_.empty() && lora_.back().adapter == adapter && lora_.back().factor == factor && lora_.back().end == in.first_token[s])
      lora_.back().end = in.first_token[s + 1];
    else
      lora_.push_back({in.first_token[s], in.first_token[s + 1], adapter, factor});
  }
}

void Decoder::prepare(const StepInput& in) {
  check(in);
  in_ = &in;
  tokens_ = in.n_tokens;
  plan_tokens(in);
  plan_adapters(in);
  plan_attention();
  reserve(tokens_);
}

void Decoder::embed(const StepInput& in) {
  for (int t; (t = pool_.take(tokens_, 1)) < tokens_;) {
    float* x = x_.as<float>() + size_t(t) * d_stride_;
    k_.decode_row(model_.token_embd.matrix, in.token_ids[t], x);
    if (shape_.embedding_scale != 1) k_.scale_row(x, shape_.embedding_scale, shape_.d_model);
    const int tables = int(shape_.rope_scales.size()), half = shape_.rope_half;
    for (int table = 0; table < tables; table++)
      for (int i = 0; i < half; i++) {
        const size_t at = (size_t(t) * tables + table) * half + i;
        const float angle = float(position_of_[t]) * shape_.inv_freqs[size_t(table) * half + i];
        cosine_.as<float>()[at] = float(std::cos(double(angle))) * shape_.rope_scales[table];
        sine_.as<float>()[at] = float(std::sin(double(angle))) * shape_.rope_scales[table];
      }
  }
  pool_.barrier();
}

unsigned Decoder::encodings(int layer, std::initializer_list<MatrixSlot> slots) const {
  unsigned flags = lora_.empty() ? 0 : unsigned(encode_f32);
  for (MatrixSlot slot : slots) flags |= encoding_for(model_.layers[layer][slot]);
  return flags;
}

void Decoder::norm_and_encode(const float* weight, ActivationBuffer& to, unsigned flags) {
  std::vector<float> normed(d_stride_);
  for (int t; (t = pool_.take(tokens_, 1)) < tokens_;) {
    k_.rms_norm(x_.as<float>() + size_t(t) * d_stride_, weight, shape_.d_model, shape_.norm_eps, normed.data());
    k_.encode(normed.data(), shape_.d_model, flags, to.view, t);
  }
  pool_.barrier();
}

// Tiles a thread takes at a time: enough pieces to balance the threads, large enough to amortise the counter. One column
// goes through four tiles at once, several through two.
int Decoder::piece_of(int tiles) const {
  const int unit = tokens_ == 1 ? 4 : 2, fair = tiles / (pool_.threads() * 8) / unit * unit;
  return std::clamp(fair, unit, 32);
}

void Decoder::lora_down(int layer, const Product* products, int count, const Activations& x) {
  if (lora_.empty()) return;
  const int ranges = int(lora_.size()), tiles = lora_stride_ / 16;
  for (int i; (i = pool_.take(count * ranges * tiles, 1)) < count * ranges * tiles;) {
    const LoraRange& range = lora_[i / tiles % ranges];
    const int p = i / tiles / ranges, tile = i % tiles;
    const LowRank& pair = range.adapter->get(layer, products[p].slot);
    if (!pair || tile >= pair.a.matrix.tiles) continue;
    k_.matmul(pair.a.matrix, x, range.begin, range.end, tile, tile + 1, lora_u_.as<float>() + size_t(p) * tokens_ * lora_stride_, lora_stride_);
  }
  pool_.barrier();
}

void Decoder::multiply_piece(int layer, const Product& p, const Activations& x, int begin, int end) {
  k_.matmul(*p.w, x, 0, tokens_, begin, end, p.y, p.ldy);
  const int column = begin * 16, width = std::min(end * 16, p.w->n) - column;
  if (p.bias)
    for (int t = 0; t < tokens_; t++) k_.add(p.y + size_t(t) * p.ldy + column, p.bias + column, width);
  for (const LoraRange& range : lora_) {
    const LowRank& pair = range.adapter->get(layer, p.slot);
    if (!pair) continue;
    const int slot = p.slot == MatrixSlot::attn_k || p.slot == MatrixSlot::ffn_up ? 1 : p.slot == MatrixSlot::attn_v ? 2 : 0;
    Activations u;
    u.k_padded = lora_stride_;
    u.f32 = lora_u_.as<float>() + size_t(slot) * tokens_ * lora_stride_;
    // Products of different width run at the same time: each has a place of the widest.
    float* y = lora_y_.as<float>() + size_t(slot) * tokens_ * std::max({q_stride_, kv_stride_, ff_stride_, d_stride_});
    k_.matmul(pair.b.matrix, u, range.begin, range.end, begin, end, y, p.ldy);
    for (int t = range.begin; t < range.end; t++) {
      float* delta = y + size_t(t) * p.ldy + column;
      k_.scale_row(delta, range.factor, width);
      k_.add(p.y + size_t(t) * p.ldy + column, delta, width);
    }
  }
}

void Decoder::multiply(int layer, const Product* products, int count, const Activations& x) {
  lora_down(layer, products, count, x);
  int total = 0;
  for (int i = 0; i < count; i++) total += products[i].w->tiles;
  const int piece = piece_of(total);
  for (int begin; (begin = pool_.take(total, piece)) < total;) {
    int first = 0;
    for (int i = 0; i < count; i++) {
      const int a = std::max(begin - first, 0), b = std::min(begin + piece - first, products[i].w->tiles);
      if (a < b) multiply_piece(layer, products[i], x, a, b);
      first += products[i].w->tiles;
    }
  }
  pool_.barrier();
}

// x += product, with Gemma's norm of the product in between when the family has one.
void Decoder::add_to_residual(int layer, Product p, const Activations& x, const float* post_norm) {
  lora_down(layer, &p, 1, x);
  const int piece = piece_of(p.w->tiles);
  for (int begin; (begin = pool_.take(p.w->tiles, piece)) < p.w->tiles;) {
    const int end = std::min(begin + piece, p.w->tiles);
    multiply_piece(layer, p, x, begin, end);
    const int column = begin * 16, width = std::min(end * 16, p.w->n) - column;
    if (!post_norm)
      for (int t = 0; t < tokens_; t++) k_.add(x_.as<float>() + size_t(t) * d_stride_ + column, p.y + size_t(t) * p.ldy + column, width);
  }
  pool_.barrier();
  if (!post_norm) return;
  for (int t; (t = pool_.take(tokens_, 1)) < tokens_;) {
    float* y = p.y + size_t(t) * p.ldy;
    k_.rms_norm(y, post_norm, shape_.d_model, shape_.norm_eps, y);
    k_.add(x_.as<float>() + size_t(t) * d_stride_, y, shape_.d_model);
  }
  pool_.barrier();
}

// gate and up run over the same columns, so a piece ends with its part of the product.
void Decoder::feed_forward(int layer) {
  const Layer& l = model_.layers[layer];
  const Activations& x = act_model_.view;
  const Product gate{&l[MatrixSlot::ffn_gate], gate_.as<float>(), size_t(ff_stride_), nullptr, MatrixSlot::ffn_gate};
  const Product up{&l[MatrixSlot::ffn_up], up_.as<float>(), size_t(ff_stride_), nullptr, MatrixSlot::ffn_up};
  const Product both[] = {gate, up};
  lora_down(layer, both, 2, x);
  const unsigned flags = encodings(layer, {MatrixSlot::ffn_down});
  const int tiles = gate.w->tiles, piece = piece_of(tiles);
  for (int begin; (begin = pool_.take(tiles, piece)) < tiles;) {
    const int end = std::min(begin + piece, tiles), column = begin * 16, width = std::min(end * 16, shape_.d_ff) - column;
    multiply_piece(layer, gate, x, begin, end);
    multiply_piece(layer, up, x, begin, end);
    for (int t = 0; t < tokens_; t++)
      k_.gate(gate.y + size_t(t) * ff_stride_ + column, up.y + size_t(t) * ff_stride_ + column, width, shape_.gelu_tanh);
  }
  pool_.barrier();
  for (int t; (t = pool_.take(tokens_, 1)) < tokens_;) k_.encode(gate.y + size_t(t) * ff_stride_, shape_.d_ff, flags, act_ff_.view, t);
  pool_.barrier();
  const Product down{&l[MatrixSlot::ffn_down], projected_.as<float>(), size_t(d_stride_), nullptr, MatrixSlot::ffn_down};
  add_to_residual(layer, down, act_ff_.view, l[VectorSlot::post_ffw_norm]);
}

void Decoder::run_layer(int layer, int thread) {
  using M = MatrixSlot;
  using V = VectorSlot;
  const Layer& l = model_.layers[layer];
  norm_and_encode(l[V::attn_norm], act_model_, encodings(layer, {M::attn_q, M::attn_k, M::attn_v}));
  const Product qkv[] = {{&l[M::attn_q], q_.as<float>(), size_t(q_stride_), l[V::attn_q_bias], M::attn_q},
                         {&l[M::attn_k], key_.as<float>(), size_t(kv_stride_), l[V::attn_k_bias], M::attn_k},
                         {&l[M::attn_v], value_.as<float>(), size_t(kv_stride_), l[V::attn_v_bias], M::attn_v}};
  multiply(layer, qkv, 3, act_model_.view);
  rope_and_store(layer);
  attention(layer, thread);
  gather_attention(l);
  const Product o{&l[M::attn_output], projected_.as<float>(), size_t(d_stride_), l[V::attn_output_bias], M::attn_output};
  add_to_residual(layer, o, act_attention_.view, l[V::post_attention_norm]);
  norm_and_encode(l[V::ffn_norm], act_model_, encodings(layer, {M::ffn_gate, M::ffn_up}));
  feed_forward(layer);
}

void Decoder::step(const StepInput& in, const StepResult& out) {
  prepare(in);
  auto work = [&](int thread) {
    embed(in);
    for (int layer = 0; layer < shape_.n_layers; layer++) run_layer(layer, thread);
    output(in, out);
  };
  if (tokens_ > short_step_tokens) return pool_.run(work);  // long between barriers: the threads share what there is
  crowding_.run([&](int threads) { pool_.run(work, threads); });
}

}  // namespace etude
