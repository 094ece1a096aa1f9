// The end of a step: final norm, logits of the rows that are wanted, sampling.
#include <algorithm>
#include <cstring>

#include "decoder.h"

namespace etude {

void Decoder::sample_row(const StepInput& in, const StepResult& out, int row, float* logits, std::vector<float>& scratch) {
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
  Sampled drawn;
  if (Sampler* sampler = in.samplers[row]) {
    const bool shared = (row > 0 && row_of_[row - 1] == row_of_[row]) || (row + 1 < in.n_rows && row_of_[row + 1] == row_of_[row]);
    if (shared) {  // the chain works in place
      scratch.assign(logits, logits + vocab);
      logits = scratch.data();
    }
    drawn = sample(*sampler, logits, vocab, in.masks[row], int64_t(position_of_[in.rows[row]]) + 1);
    if (drawn.token_id >= 0) accept(*sampler, drawn.token_id);
  } else {
    drawn = score(logits, vocab, in.targets[row]);
  }
  out.token_ids[row] = drawn.token_id;
  out.logprobs[row] = drawn.logprob;
  out.raw_logprobs[row] = drawn.raw_logprob;
  out.entropies[row] = drawn.entropy;
}

void Decoder::output(const StepInput& in, const StepResult& out, int thread) {
  const Matrix& head = model_.head();
  const int unique = int(unique_.size());
  std::vector<float> normed(d_stride_);
  for (int first = 0; first < unique; first += logit_rows_) {
    const int rows = std::min(logit_rows_, unique - first), d = shape_.d_model;
    for (int i; (i = pool_.take(1)) < rows;) {
      k_.rms_norm(x_.as<float>() + size_t(unique_[first + i]) * d_stride_, model_.output_norm.data(), d, shape_.norm_eps, normed.data());
      k_.encode(normed.data(), d, encoding_for(head), act_head_.view, i);
      if (!out.hidden) continue;
      const auto [begin, end] = std::equal_range(row_of_.begin(), row_of_.end(), first + i);
      for (auto r = begin; r != end; ++r) std::copy(normed.begin(), normed.begin() + d, out.hidden + size_t(r - row_of_.begin()) * d);
    }
    pool_.barrier();
    float* logits = logits_.as<float>();
    const int piece = piece_of(head.tiles);
    for (int begin; (begin = pool_.take(piece)) < head.tiles;) {
      const int end = std::min(begin + piece, head.tiles);
      k_.matmul(head, act_head_.view, 0, rows, begin, end, logits, vocab_stride_);
      if (shape_.logit_softcap > 0)
        for (int i = 0; i < rows; i++) k_.softcap_row(logits + size_t(i) * vocab_stride_ + begin * 16, shape_.logit_softcap, (end - begin) * 16);
    }
    pool_.barrier();
    const int row_begin = int(std::lower_bound(row_of_.begin(), row_of_.end(), first) - row_of_.begin());
    const int row_end = int(std::lower_bound(row_of_.begin(), row_of_.end(), first + rows) - row_of_.begin());
    for (int r; (r = row_begin + pool_.take(1)) < row_end;)
      sample_row(in, out, r, logits + size_t(row_of_[r] - first) * vocab_stride_, scratch_[thread]);
    pool_.barrier();
  }
}

}  // namespace etude
