#include "model.h"

#include <stdexcept>

namespace etude {
namespace {

const char* const matrix_names[] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
const char* const vector_names[] = {"attn_norm",   "ffn_norm",    "attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm",
                                    "attn_q_bias", "attn_k_bias", "attn_v_bias", "attn_output_bias"};

[[noreturn]] void refuse(const std::string& text) { throw std::invalid_argument(text); }

template <size_t N>
int find(const char* const (&names)[N], const std::string& name) {
  for (size_t i = 0; i < N; i++)
    if (name == names[i]) return int(i);
  return -1;
}

int vector_length(const ModelShape& s, VectorSlot slot) {
  switch (slot) {
    case VectorSlot::attn_q_norm:
    case VectorSlot::attn_k_norm: return s.head_dim;
    case VectorSlot::attn_q_bias: return s.n_heads * s.head_dim;
    case VectorSlot::attn_k_bias:
    case VectorSlot::attn_v_bias: return s.n_kv_heads * s.head_dim;
    default: return s.d_model;
  }
}

}  // namespace

void ModelShape::check() const {
  auto positive = [](const char* name, int value, int most) {
    if (value < 1 || value > most) refuse(std::string(name) + " = " + std::to_string(value) + ", allowed 1 to " + std::to_string(most));
  };
  positive("n_layers", n_layers, 4096);
  positive("d_model", d_model, 1 << 20);
  positive("n_heads", n_heads, 1 << 14);
  positive("n_kv_heads", n_kv_heads, n_heads);
  positive("head_dim", head_dim, 1 << 12);
  positive("d_ff", d_ff, 1 << 22);
  positive("n_vocab", n_vocab, 1 << 24);
  if (n_heads % n_kv_heads) refuse("n_heads = " + std::to_string(n_heads) + " must be a multiple of n_kv_heads = " + std::to_string(n_kv_heads));
  if (int(windows.size()) != n_layers || int(rope_of_layer.size()) != n_layers) refuse("windows and rope_of_layer need one value a layer");
  if (rope_half < 1 || 2 * rope_half > head_dim) refuse("rope dimension " + std::to_string(2 * rope_half) + " must be 2 to head_dim = " + std::to_string(head_dim));
  const int tables = int(rope_scales.size());
  if (!tables || int(inv_freqs.size()) != tables * rope_half) refuse("inv_freqs needs one row for each of rope_scales");
  for (int i = 0; i < n_layers; i++) {
    if (rope_of_layer[i] < 0 || rope_of_layer[i] >= tables) refuse("rope_of_layer has no table " + std::to_string(rope_of_layer[i]));
    if (windows[i] < 0) refuse("window = " + std::to_string(windows[i]) + ", allowed 0 (full) or more");
  }
}

Model::Model(ModelShape s) : shape(std::move(s)) {
  shape.check();
  layers.resize(shape.n_layers);
}

PackedMatrix& Model::packed(const std::string& slot, int layer) {
  if (slot == "token_embd" && layer == -1) return token_embd;
  if (slot == "output" && layer == -1) return output;
  const int i = find(matrix_names, slot);
  if (i < 0 || layer < 0 || layer >= shape.n_layers) refuse("no matrix " + slot + " in layer " + std::to_string(layer));
  return layers[layer].matrices[i];
}

void Model::matrix_shape(const std::string& slot, int layer, int* n, int* k) const {
  const int q = shape.n_heads * shape.head_dim, kv = shape.n_kv_heads * shape.head_dim;
  if ((slot == "token_embd" || slot == "output") && layer == -1) {
    *n = shape.n_vocab;
    *k = shape.d_model;
    return;
  }
  const int i = find(matrix_names, slot);
  if (i < 0 || layer < 0 || layer >= shape.n_layers) refuse("no matrix " + slot + " in layer " + std::to_string(layer));
  const int rows[] = {q, kv, kv, shape.d_model, shape.d_ff, shape.d_ff, shape.d_model};
  *n = rows[i];
  *k = MatrixSlot(i) == MatrixSlot::attn_output ? q : MatrixSlot(i) == MatrixSlot::ffn_down ? shape.d_ff : shape.d_model;
}

void Model::set_matrix(const std::string& slot, int layer, int type, int n, int k, const uint8_t* data, size_t bytes, const int32_t* row_order, int threads) {
  int want_n, want_k;
  matrix_shape(slot, layer, &want_n, &want_k);
  if (n != want_n || k != want_k)
    refuse(slot + " in layer " + std::to_string(layer) + " is " + std::to_string(n) + " x " + std::to_string(k) + ", expected " +
           std::to_string(want_n) + " x " + std::to_string(want_k));
  if (row_order)
    for (int i = 0; i < n; i++)
      if (row_order[i] < 0 || row_order[i] >= n) refuse("row_order holds " + std::to_string(row_order[i]) + ", allowed 0 to " + std::to_string(n - 1));
  packed(slot, layer) = pack(type, n, k, data, bytes, row_order, threads);
}

void Model::set_vector(const std::string& slot, int layer, const float* values, size_t n) {
  const bool last_norm = slot == "output_norm" && layer == -1;
  const int i = find(vector_names, slot);
  if (!last_norm && (i < 0 || layer < 0 || layer >= shape.n_layers)) refuse("no vector " + slot + " in layer " + std::to_string(layer));
  const size_t length = size_t(last_norm ? shape.d_model : vector_length(shape, VectorSlot(i)));
  if (n != length) refuse(slot + " in layer " + std::to_string(layer) + " has " + std::to_string(n) + " values, expected " + std::to_string(length));
  (last_norm ? output_norm : layers[layer].vectors[i]).assign(values, values + n);
}

const Matrix& Model::matrix(const std::string& slot, int layer) const {
  const Matrix& m = const_cast<Model*>(this)->packed(slot, layer).matrix;
  if (!m) refuse("matrix " + slot + " in layer " + std::to_string(layer) + " is not set");
  return m;
}

void Model::check() const {
  matrix("token_embd", -1);
  if (output_norm.empty()) refuse("vector output_norm is not set");
  for (int l = 0; l < shape.n_layers; l++) {
    for (const char* name : matrix_names) matrix(name, l);
    for (VectorSlot slot : {VectorSlot::attn_norm, VectorSlot::ffn_norm})
      if (!layers[l][slot]) refuse(std::string("vector ") + vector_names[int(slot)] + " in layer " + std::to_string(l) + " is not set");
    for (int i = int(VectorSlot::attn_q_norm); i < int(VectorSlot::count); i++)
      if (layers[l].vectors[i].empty() != layers[0].vectors[i].empty())
        refuse(std::string("vector ") + vector_names[i] + " is set in some layers and missing in layer " + std::to_string(layers[l].vectors[i].empty() ? l : 0));
  }
}

size_t Model::weight_bytes() const {
  size_t total = token_embd.memory.bytes() + output.memory.bytes();
  for (const Layer& layer : layers)
    for (const PackedMatrix& m : layer.matrices) total += m.memory.bytes();
  return total;
}

}  // namespace etude
