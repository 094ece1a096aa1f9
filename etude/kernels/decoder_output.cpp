// The end of a step: final norm, logits of the rows that are wanted, sampling. Rows of which only the hidden state is wanted stop at the norm.
#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "decoder.h"

namespace etude {

void Decoder::sample_row(const StepInput& in, const StepResult& out, int row, const float* logits) {
  const int vocab = shape_.n_vocab;
  if (out.logits) std::memcpy(out.logits + size_t(row) * vocab, logits, size_t(vocab) * 4);
  if (in.n_top[row]) {
    std::vector<TokenLogprob> top(in.n_top[row]);
    top_logprobs(logits, vocab, in.n_top[row], top.data());
    for (int i = 0; i < in.n_top[row]; i++) {
      out.top_ids[size_t(row) * in.max_top + i] = top[i].token_id;
      out.top_logprobs[size_t(row) * in.max_top + i] = top[i].logprob;
    }
  }
  constexpr float none = std::numeric_limits<float>::quiet_NaN();
  Sampled drawn{-1, none, none, none};
  if (Sampler* sampler = in.samplers[row]) {
    drawn = sample(*sampler, logits, vocab, in.masks[row], int64_t(position_of_[in.rows[row]]) + 1);
    if (drawn.token_id >= 0) accept(*sampler, drawn.token_id);
  } else if (in.targets[row] != hidden_only) {
    drawn = score(logits, vocab, in.targets[row]);
  }
  out.token_ids[row] = drawn.token_id;
  out.logprobs[row] = drawn.logprob;
  out.raw_logprobs[row] = drawn.raw_logprob;
  out.entropies[row] = drawn.entropy;
}

// For each unique row, and one more, how many before it have logits.
std::vector<int> Decoder::logit_columns(const StepInput& in, const StepResult& out) const {
  std::vector<int> column(unique_.size() + 1);
  for (int r = 0; r < in.n_rows; r++)
    if (out.logits || in.samplers[r] || in.n_top[r] || in.targets[r] != hidden_only) column[row_of_[r] + 1] = 1;
  std::partial_sum(column.begin(), column.end(), column.begin());
  return column;
}

bool Decoder::adapts_head() const {
  return std::any_of(lora_.begin(), lora_.end(), [](const LoraRange& range) { return bool(range.adapter->head()); });
}

void Decoder::norm_rows(const StepResult& out, const HeadRound& round) {
  const int rows = round.last - round.first, d = shape_.d_model;
  const unsigned encodings = encoding_for(model_.head()) | (adapts_head() ? unsigned(encode_f32) : 0);
  std::vector<float> normed(d_stride_);
  for (int i; (i = pool_.take(rows, 1)) < rows;) {
    const int u = round.first + i;
    k_.rms_norm(x_.as<float>() + size_t(unique_[u]) * d_stride_, model_.output_norm.data(), d, shape_.norm_eps, normed.data());
    if (round.column[u + 1] > round.column[u]) k_.encode(normed.data(), d, encodings, act_head_.view, round.column_of(u));
    if (!out.hidden) continue;
    const auto [begin, end] = std::equal_range(row_of_.begin(), row_of_.end(), u);
    for (auto r = begin; r != end; ++r) std::copy(normed.begin(), normed.begin() + d, out.hidden + size_t(r - row_of_.begin()) * d);
  }
  pool_.barrier();
}

// The columns of a round whose tokens an adapter serves.
std::pair<int, int> Decoder::columns_of(const LoraRange& range, const HeadRound& round) const {
  const auto column = [&](int token) {
    const int u = int(std::lower_bound(unique_.begin(), unique_.end(), token) - unique_.begin());
    return round.column_of(std::clamp(u, round.first, round.last));
  };
  return {column(range.begin), column(range.end)};
}

void Decoder::lora_down_head(const HeadRound& round) {
  if (!adapts_head()) return;
  const int ranges = int(lora_.size()), tiles = lora_stride_ / 16;
  for (int i; (i = pool_.take(ranges * tiles, 1)) < ranges * tiles;) {
    const LowRank& pair = lora_[i / tiles].adapter->head();
    const int tile = i % tiles;
    const auto [begin, end] = columns_of(lora_[i / tiles], round);
    if (pair && tile < pair.a.matrix.tiles && begin < end)
      k_.matmul(pair.a.matrix, act_head_.view, begin, end, tile, tile + 1, lora_u_.as<float>(), lora_stride_);
  }
  pool_.barrier();
}

void Decoder::lora_up_head(const HeadRound& round, int tile_begin, int tile_end) {
  if (!adapts_head()) return;
  Activations low;
  low.k_padded = lora_stride_;
  low.f32 = lora_u_.as<float>();
  const int width = (tile_end - tile_begin) * 16;
  for (const LoraRange& range : lora_) {
    const auto [begin, end] = columns_of(range, round);
    if (!range.adapter->head() || begin == end) continue;
    k_.matmul(range.adapter->head().b.matrix, low, begin, end, tile_begin, tile_end, lora_logits_.as<float>(), vocab_stride_);
    for (int column = begin; column < end; column++) {
      const size_t place = size_t(column) * vocab_stride_ + tile_begin * 16;
      k_.scale_row(lora_logits_.as<float>() + place, range.factor, width);
      k_.add(logits_.as<float>() + place, lora_logits_.as<float>() + place, width);
    }
  }
}

void Decoder::multiply_head(const HeadRound& round) {
  if (round.columns() == 0) return;
  lora_down_head(round);
  const Matrix& head = model_.head();
  float* logits = logits_.as<float>();
  const int piece = piece_of(head.tiles);
  for (int begin; (begin = pool_.take(head.tiles, piece)) < head.tiles;) {
    const int end = std::min(begin + piece, head.tiles);
    k_.matmul(head, act_head_.view, 0, round.columns(), begin, end, logits, vocab_stride_);
    lora_up_head(round, begin, end);
    if (shape_.logit_softcap > 0)
      for (int i = 0; i < round.columns(); i++) k_.softcap_row(logits + size_t(i) * vocab_stride_ + begin * 16, shape_.logit_softcap, (end - begin) * 16);
  }
  pool_.barrier();
}

void Decoder::output(const StepInput& in, const StepResult& out) {
  const std::vector<int> column = logit_columns(in, out);
  const int unique = int(unique_.size());
  for (int first = 0; first < unique; first += logit_rows_) {
    const HeadRound round{first, std::min(first + logit_rows_, unique), column.data()};
    norm_rows(out, round);
    multiply_head(round);
    const int row_begin = int(std::lower_bound(row_of_.begin(), row_of_.end(), round.first) - row_of_.begin());
    const int row_end = int(std::lower_bound(row_of_.begin(), row_of_.end(), round.last) - row_of_.begin());
    for (int r; (r = row_begin + pool_.take(row_end - row_begin, 1)) < row_end;)
      sample_row(in, out, r, logits_.as<float>() + size_t(round.column_of(row_of_[r])) * vocab_stride_);
    pool_.barrier();
  }
}

}  // namespace etude
