#include "adapter.h"

#include <algorithm>
#include <stdexcept>

namespace etude {

void Adapter::set(const std::string& slot, int layer, int rank, int k, int n, const float* a, const float* b) {
  int want_n, want_k;
  model_.matrix_shape(slot, layer, &want_n, &want_k);
  const char* const names[] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
  const auto found = std::find(std::begin(names), std::end(names), slot);
  if (found == std::end(names) && slot != "output")
    throw std::invalid_argument("no adapter for " + slot + "; allowed: attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down output");
  if (n != want_n || k != want_k || rank < 1 || rank > 4096)
    throw std::invalid_argument("adapter for " + slot + " in layer " + std::to_string(layer) + ": a (" + std::to_string(rank) + ", " + std::to_string(k) + "), b (" +
                                std::to_string(n) + ", " + std::to_string(rank) + "); expected inputs " + std::to_string(want_k) + ", outputs " +
                                std::to_string(want_n) + ", rank 1 to 4096");
  const int padded = (rank + 31) / 32 * 32;
  std::vector<float> a_padded(size_t(padded) * k, 0.0f), b_padded(size_t(n) * padded, 0.0f);
  std::copy(a, a + size_t(rank) * k, a_padded.begin());
  for (int i = 0; i < n; i++) std::copy(b + size_t(i) * rank, b + size_t(i + 1) * rank, b_padded.begin() + size_t(i) * padded);
  LowRank& pair = slot == "output" ? head_ : layers_[size_t(layer) * int(MatrixSlot::count) + (found - std::begin(names))];
  pair.a = pack(0, padded, k, (const uint8_t*)a_padded.data(), a_padded.size() * 4, nullptr, 1);
  pair.b = pack(0, n, padded, (const uint8_t*)b_padded.data(), b_padded.size() * 4, nullptr, 1);
  max_rank = std::max(max_rank, padded);
}

}  // namespace etude
