// Attention inside a step: who attends together, in which order, and how splits are merged.
//
// The keys of a sequence are cut at fixed multiples of `split_tokens` positions. A query's softmax runs from scratch over
// each split and the splits are merged in order by log-sum-exp, whether one thread does all of them or several do one each.
#include <algorithm>
#include <cmath>
#include <limits>

#include "decoder.h"

namespace etude {
namespace {

constexpr int split_tokens = 256;
constexpr int chunk_tokens = 32;
constexpr int rows_in_piece = 96;  // queries whose accumulators fit the nearest caches together
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// a <- softmax-weighted sum of a and b
void merge(const Kernels& k, AttentionRow a, AttentionRow b, int head_stride) {
  if (*b.total == 0) return;
  const float peak = std::max(*a.peak, *b.peak), fa = std::exp(*a.peak - peak), fb = std::exp(*b.peak - peak);
  k.scale_row(a.out, fa, head_stride);
  k.scale_row(b.out, fb, head_stride);
  k.add(a.out, b.out, head_stride);
  *a.total = *a.total * fa + *b.total * fb;
  *a.peak = peak;
}

void clear(AttentionRow row, int head_stride) {
  std::fill(row.out, row.out + head_stride, 0.0f);
  *row.peak = minus_infinity;
  *row.total = 0;
}

}  // namespace

void Decoder::plan_attention() {
  const int group = shape_.n_heads / shape_.n_kv_heads, threads = pool_.threads(), kv = shape_.n_kv_heads;
  const int most = std::max(1, rows_in_piece / group);
  int singles = 0, longest = 1;
  for (int t = 0; t < tokens_; t++) longest = std::max(longest, position_of_[t] + 1);
  auto count = [&](int s) { return in_->first_token[s + 1] - in_->first_token[s]; };
  for (int s = 0; s < in_->n_sequences; s++) singles += count(s) == 1;
  const int single_block = std::clamp((singles * kv + threads * 4 - 1) / (threads * 4), 1, most);
  std::vector<std::pair<int, int>> blocks;
  for (int s = 0; s < in_->n_sequences;) {
    int begin = in_->first_token[s], end = in_->first_token[s + 1];
    if (count(s) == 1) {
      for (s++; s < in_->n_sequences && count(s) == 1 && end - begin < single_block; s++) end++;
      blocks.push_back({begin, end});
      continue;
    }
    for (; begin < end; begin += most) blocks.push_back({begin, std::min(begin + most, end)});
    s++;
  }
  n_splits_ = (longest + split_tokens - 1) / split_tokens;
  const bool spread = n_splits_ > 1 && tokens_ <= 16 && int(blocks.size()) * kv < 2 * threads;
  state_slots_ = spread ? n_splits_ : 1;
  pieces_.clear();
  for (int split = 0; split < state_slots_; split++)
    for (const auto& [begin, end] : blocks)
      for (int head = 0; head < kv; head++) pieces_.push_back({head, begin, end, split, spread ? split + 1 : n_splits_});
}

// The running softmax of one query in the state memory: [slot][token][head][head_stride], then peaks, then totals.
AttentionRow Decoder::state(int slot, int token, int head) {
  const size_t rows = size_t(state_slots_) * tokens_ * shape_.n_heads;
  const size_t row = (size_t(slot) * tokens_ + token) * shape_.n_heads + head;
  float* base = states_.as<float>();
  float* peaks = base + rows * shape_.head_stride();
  const float* q = q_.as<float>() + size_t(token) * q_stride_ + size_t(head) * shape_.head_dim;
  return {q, base + row * shape_.head_stride(), peaks + row, peaks + rows + row, position_of_[token]};
}

void Decoder::rope_token(int layer, int t, std::vector<float>& head) {
  const Layer& l = model_.layers[layer];
  const int dim = shape_.head_dim, half = shape_.rope_half;
  const size_t at = (size_t(t) * shape_.rope_scales.size() + shape_.rope_of_layer[layer]) * half;
  const float *cosine = cosine_.as<float>() + at, *sine = sine_.as<float>() + at;
  auto rotate = [&](float* x, const float* norm) {
    if (norm) {
      k_.rms_norm(x, norm, dim, shape_.norm_eps, head.data());
      std::copy(head.begin(), head.begin() + dim, x);
    }
    k_.rope(x, cosine, sine, half);
  };
  for (int h = 0; h < shape_.n_heads; h++) {
    float* q = q_.as<float>() + size_t(t) * q_stride_ + size_t(h) * dim;
    rotate(q, l[VectorSlot::attn_q_norm]);
    k_.scale_row(q, shape_.attention_scale, dim);
  }
  const int page = in_->pages[in_->first_page[sequence_of_[t]] + position_of_[t] / cache_.page_tokens];
  for (int h = 0; h < shape_.n_kv_heads; h++) {
    float* k = key_.as<float>() + size_t(t) * kv_stride_ + size_t(h) * dim;
    rotate(k, l[VectorSlot::attn_k_norm]);
    cache_.write(page, layer, h, position_of_[t] % cache_.page_tokens, k, value_.as<float>() + size_t(t) * kv_stride_ + size_t(h) * dim);
  }
}

void Decoder::rope_and_store(int layer) {
  std::vector<float> head(shape_.head_stride());
  for (int t; (t = pool_.take(tokens_, 1)) < tokens_;) rope_token(layer, t, head);
  pool_.barrier();
}

// Chunk by chunk of 32 keys; neighbours whose page tables hold the same page there are one product.
void Decoder::attend_split(int layer, const Piece& piece, int split, const AttentionRow* rows) {
  const int group = shape_.n_heads / shape_.n_kv_heads, page_tokens = cache_.page_tokens;
  AttentionShape shape;
  shape.head_dim = shape_.head_dim;
  shape.page_tokens = page_tokens;
  shape.type_k = cache_.type_k;
  shape.type_v = cache_.type_v;
  shape.window = shape_.windows[layer];
  shape.softcap = shape_.attention_softcap;
  int last = 0, first_seen = std::numeric_limits<int>::max();
  for (int t = piece.begin; t < piece.end; t++) {
    last = std::max(last, position_of_[t]);
    first_seen = std::min(first_seen, shape.window ? position_of_[t] - shape.window + 1 : 0);
  }
  const int end = std::min((split + 1) * split_tokens, last + 1);
  const int begin = std::max(split * split_tokens, first_seen / chunk_tokens * chunk_tokens);
  for (int key = begin; key < end; key += chunk_tokens) {
    auto page_of = [&](int t) { return position_of_[t] < key ? -1 : in_->pages[in_->first_page[sequence_of_[t]] + key / page_tokens]; };
    for (int t = piece.begin; t < piece.end;) {
      const int page = page_of(t), first = t;
      for (t++; t < piece.end && page_of(t) == page; t++) {
      }
      if (page >= 0)
        k_.attend(shape, cache_.keys(page, layer, piece.kv_head), cache_.values(page, layer, piece.kv_head), key % page_tokens, key,
                  rows + size_t(first - piece.begin) * group, (t - first) * group);
    }
  }
}

void Decoder::attend_piece(int layer, const Piece& piece, int thread) {
  const int group = shape_.n_heads / shape_.n_kv_heads, stride = shape_.head_stride(), count = (piece.end - piece.begin) * group;
  std::vector<AttentionRow>& rows = attention_rows_[thread];
  rows.clear();
  for (int t = piece.begin; t < piece.end; t++)
    for (int h = 0; h < group; h++) rows.push_back(state(state_slots_ > 1 ? piece.first_split : 0, t, piece.kv_head * group + h));
  for (const AttentionRow& row : rows) clear(row, stride);
  attend_split(layer, piece, piece.first_split, rows.data());
  if (piece.last_split - piece.first_split < 2) return;
  std::vector<float>& memory = scratch_[thread];
  memory.resize(std::max(memory.size(), size_t(count) * (stride + 2)));
  std::vector<AttentionRow> part(rows);
  for (int i = 0; i < count; i++) {
    part[i].out = memory.data() + size_t(i) * stride;
    part[i].peak = memory.data() + size_t(count) * stride + i;
    part[i].total = part[i].peak + count;
  }
  for (int split = piece.first_split + 1; split < piece.last_split; split++) {
    for (const AttentionRow& row : part) clear(row, stride);
    attend_split(layer, piece, split, part.data());
    for (int i = 0; i < count; i++) merge(k_, rows[i], part[i], stride);
  }
}

void Decoder::attention(int layer, int thread) {
  for (int i; (i = pool_.take(int(pieces_.size()), 1)) < int(pieces_.size());) attend_piece(layer, pieces_[i], thread);
  pool_.barrier();
}

void Decoder::gather_attention(const Layer& layer) {
  unsigned flags = encoding_for(layer[MatrixSlot::attn_output]) | (lora_.empty() ? 0u : unsigned(encode_f32));
  const int dim = shape_.head_dim, stride = shape_.head_stride(), width = shape_.n_heads * dim;
  std::vector<float> row(q_stride_);
  for (int t; (t = pool_.take(tokens_, 1)) < tokens_;) {
    for (int h = 0; h < shape_.n_heads; h++) {
      const AttentionRow whole = state(0, t, h);
      for (int slot = 1; slot < state_slots_; slot++) merge(k_, whole, state(slot, t, h), stride);
      k_.scale_row(whole.out, 1.0f / *whole.total, dim);
      std::copy(whole.out, whole.out + dim, row.begin() + h * dim);
    }
    k_.encode(row.data(), width, flags, act_attention_.view, t);
  }
  pool_.barrier();
}

}  // namespace etude
