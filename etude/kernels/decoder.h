// One model step in one call: embed, all layers, logits, sampling, on all threads of a pool.
//
// Every thread runs the same sequence of phases (run_layer and so on); inside a phase pieces are taken from a shared
// counter, between phases there is a barrier. No result depends on who took which piece.
#pragma once
#include <vector>

#include "adapter.h"
#include "cache.h"
#include "model.h"
#include "pool.h"
#include "sampler.h"

namespace etude {

// A target that is none: of this row only the hidden state is wanted, and no logits are computed for it.
constexpr int32_t hidden_only = -1;

struct StepInput {
  int n_tokens = 0, n_sequences = 0, n_rows = 0, max_top = 0;
  const int32_t *token_ids, *first_token, *first_position, *pages, *first_page;  // see _native.pyi
  const int32_t *rows, *targets, *n_top;
  std::vector<const Adapter*> adapters;  // one a sequence, or empty
  const float* adapter_scales = nullptr;
  std::vector<Sampler*> samplers;
  std::vector<const uint32_t*> masks;
};

struct StepResult {
  int32_t *token_ids, *top_ids;                                // (R), (R, max_top)
  float *logprobs, *raw_logprobs, *entropies, *top_logprobs;   // (R), (R), (R), (R, max_top)
  float *logits = nullptr, *hidden = nullptr;                  // (R, n_vocab), (R, d_model), or not wanted
};

// Activations with the memory they live in.
class ActivationBuffer {
 public:
  Activations view;
  void reserve(int rows, int k);

 private:
  Memory memory_;
  int rows_ = 0, k_ = 0;
};

class Decoder {
 public:
  Decoder(const Model& model, Cache& cache, Pool& pool);
  void step(const StepInput& in, const StepResult& out);
  int n_vocab() const { return shape_.n_vocab; }
  int d_model() const { return shape_.d_model; }

 private:
  // A product of the current input with one matrix; the products of a phase share their input and its encoding.
  struct Product {
    const Matrix* w;
    float* y;
    size_t ldy;
    const float* bias;
    MatrixSlot slot;
  };
  struct Piece {  // attention of the queries of tokens [begin, end) to one kv head, over splits [first, last)
    int kv_head, begin, end, first_split, last_split;
  };
  struct LoraRange {
    int begin, end;  // tokens
    const Adapter* adapter;
    float factor;
  };

  void check(const StepInput& in) const;
  void prepare(const StepInput& in);
  void plan_tokens(const StepInput& in);
  void plan_attention();
  void plan_adapters(const StepInput& in);
  void reserve(int tokens);

  void embed(const StepInput& in);
  void run_layer(int layer, int thread);
  void norm_and_encode(const float* weight, ActivationBuffer& to, unsigned encodings);
  void multiply(int layer, const Product* products, int count, const Activations& x);
  void multiply_piece(int layer, const Product& p, const Activations& x, int tile_begin, int tile_end);
  void lora_down(int layer, const Product* products, int count, const Activations& x);
  void add_to_residual(int layer, Product product, const Activations& x, const float* post_norm);
  void rope_and_store(int layer);
  void rope_token(int layer, int t, std::vector<float>& head);
  void attention(int layer, int thread);
  void attend_piece(int layer, const Piece& piece, int thread);
  void attend_split(int layer, const Piece& piece, int split, const AttentionRow* rows);
  AttentionRow state(int slot, int token, int head);
  void gather_attention(const Layer& layer);
  void feed_forward(int layer);

  // The unique rows [first, last) of a round of the output, and the columns of the activations that their logits come from.
  struct HeadRound {
    int first, last;
    const int* column;  // of each unique row and of one more; a row without logits has that of the next one
    int column_of(int unique) const { return column[unique] - column[first]; }
    int columns() const { return column_of(last); }
  };
  void output(const StepInput& in, const StepResult& out);
  std::vector<int> logit_columns(const StepInput& in, const StepResult& out) const;
  void norm_rows(const StepResult& out, const HeadRound& round);
  void multiply_head(const HeadRound& round);
  std::pair<int, int> columns_of(const LoraRange& range, const HeadRound& round) const;
  void lora_down_head(const HeadRound& round);
  void lora_up_head(const HeadRound& round, int tile_begin, int tile_end);
  bool adapts_head() const;
  void sample_row(const StepInput& in, const StepResult& out, int row, const float* logits);

  int piece_of(int tiles) const;
  unsigned encodings(int layer, std::initializer_list<MatrixSlot> slots) const;

  const Model& model_;
  const ModelShape& shape_;
  Cache& cache_;
  Pool& pool_;
  Crowding crowding_;
  const Kernels& k_;

  int tokens_ = 0, d_stride_, ff_stride_, q_stride_, kv_stride_;
  const StepInput* in_ = nullptr;
  std::vector<int> sequence_of_, position_of_;
  std::vector<Piece> pieces_;
  std::vector<LoraRange> lora_;
  int lora_stride_ = 0, n_splits_ = 1, state_slots_ = 1;

  Memory x_, q_, key_, value_, projected_, gate_, up_, cosine_, sine_, states_, lora_u_, lora_y_;
  ActivationBuffer act_model_, act_attention_, act_ff_, act_head_;
  std::vector<std::vector<float>> scratch_;               // one a thread
  std::vector<std::vector<AttentionRow>> attention_rows_;  // likewise
  int logit_rows_ = 0, vocab_stride_;
  Memory logits_, lora_logits_;
  std::vector<int> unique_;                   // unique rows of this step, ascending
  std::vector<int> row_of_;                   // (R) index into unique_
};

}  // namespace etude
