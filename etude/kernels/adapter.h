// A LoRA adapter (arXiv:2106.09685): y += factor * B (A x), beside the packed base weights, never merged into them.
#pragma once
#include <string>
#include <vector>

#include "model.h"

namespace etude {

struct LowRank {
  PackedMatrix a;  // (rank, k), rank padded to 32 with zero rows
  PackedMatrix b;  // (n, rank)
  explicit operator bool() const { return bool(a.matrix); }
};

class Adapter {
 public:
  Adapter(const Model& model, float scale_) : scale(scale_), layers_(model.layers.size() * int(MatrixSlot::count)), model_(model) {}
  Adapter(const Adapter&) = delete;
  const float scale;  // alpha / rank
  const Model& model() const { return model_; }
  int max_rank = 0;   // padded
  // a (rank, k), b (n, rank), row-major f32; the head is "output" in layer -1, also where the model ties it to its embedding
  void set(const std::string& slot, int layer, int rank, int k, int n, const float* a, const float* b);
  const LowRank& head() const { return head_; }
  const LowRank& get(int layer, MatrixSlot slot) const { return layers_[size_t(layer) * int(MatrixSlot::count) + int(slot)]; }

 private:
  std::vector<LowRank> layers_;
  LowRank head_;
  const Model& model_;
};

}  // namespace etude
