// Hyperparameters and packed weights of a decoder-only transformer. A family is a choice of these values, not a class.
#pragma once
#include <string>
#include <vector>

#include "pack.h"

namespace etude {

struct ModelShape {
  int n_layers = 0, d_model = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0, d_ff = 0, n_vocab = 0;
  float norm_eps = 1e-5f, attention_scale = 1, embedding_scale = 1, logit_softcap = 0, attention_softcap = 0;
  bool gelu_tanh = false;
  std::vector<int> windows;         // (n_layers) sliding window in tokens, 0: full attention
  std::vector<int> rope_of_layer;   // (n_layers) row of inv_freqs
  std::vector<float> inv_freqs;     // (n_tables, rope_half)
  std::vector<float> rope_scales;   // (n_tables) factor on cos and sin
  int rope_half = 0;

  int head_stride() const { return (head_dim + 15) / 16 * 16; }
  void check() const;  // std::invalid_argument names the value
};

enum class MatrixSlot { attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down, count };
enum class VectorSlot {
  attn_norm, ffn_norm, attn_q_norm, attn_k_norm, post_attention_norm, post_ffw_norm,
  attn_q_bias, attn_k_bias, attn_v_bias, attn_output_bias, count
};

struct Layer {
  PackedMatrix matrices[int(MatrixSlot::count)];
  std::vector<float> vectors[int(VectorSlot::count)];
  const Matrix& operator[](MatrixSlot slot) const { return matrices[int(slot)].matrix; }
  // nullptr when the family has no such vector
  const float* operator[](VectorSlot slot) const {
    const std::vector<float>& v = vectors[int(slot)];
    return v.empty() ? nullptr : v.data();
  }
};

class Model {
 public:
  explicit Model(ModelShape shape);
  const ModelShape shape;
  std::vector<Layer> layers;
  PackedMatrix token_embd, output;
  std::vector<float> output_norm;

  const Matrix& head() const { return output.matrix ? output.matrix : token_embd.matrix; }
  // Slots as in GGUF ("attn_q", "token_embd", ...). std::invalid_argument for an unknown slot, layer or shape.
  void set_matrix(const std::string& slot, int layer, int type, int n, int k, const uint8_t* data, size_t bytes, const int32_t* row_order, int threads);
  void set_vector(const std::string& slot, int layer, const float* values, size_t n);
  const Matrix& matrix(const std::string& slot, int layer) const;
  void matrix_shape(const std::string& slot, int layer, int* n, int* k) const;
  void check() const;  // names the first missing tensor
  size_t weight_bytes() const;

 private:
  PackedMatrix& packed(const std::string& slot, int layer);
};

}  // namespace etude
