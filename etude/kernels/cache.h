// Key/value cache in pages; which page belongs to whom is Python's business.
//
// A page holds `page_tokens` positions of all layers: [layer][kv head][K | V], K as (head_dim, page_tokens), V as
// (page_tokens, head_stride); q8 has a f32 scale per token after each.
#pragma once
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "model.h"

namespace etude {

CacheType cache_type(const char* name);  // "f32" "f16" "bf16" "q8_0"; std::invalid_argument otherwise

class Cache {
 public:
  Cache(const ModelShape& shape, int n_pages, int page_tokens, CacheType type_k, CacheType type_v);
  static size_t bytes_per_page(const ModelShape& shape, int page_tokens, CacheType type_k, CacheType type_v);

  bool fits(const ModelShape& shape) const;  // made for a model of this shape

  const int n_pages, page_tokens;
  const CacheType type_k, type_v;
  size_t page_bytes() const { return page_bytes_; }
  uint8_t* page(int id) { return memory_.as() + size_t(id) * page_bytes_; }
  uint8_t* keys(int id, int layer, int head) { return page(id) + size_t(layer * n_kv_heads_ + head) * head_bytes_; }
  uint8_t* values(int id, int layer, int head) { return keys(id, layer, head) + k_bytes_; }

  // Stores one token's K and V (head_dim each, f32, already rotated) at `slot` of a page.
  void write(int id, int layer, int head, int slot, const float* k, const float* v);
  void copy_page(int src, int dst);
  void release() { memory_.release(); }  // forget all pages' contents, and give their memory back
  // Context shift: tokens [0, keep) stay, [keep + discard, length) move down by `discard` with K rotated back.
  void shift(const ModelShape& shape, const int32_t* src_pages, const int32_t* dst_pages, int length, int keep, int discard);

 private:
  void read_key(const uint8_t* keys, int slot, float* out) const;
  void write_key(uint8_t* keys, int slot, const float* k);
  void write_value(uint8_t* values, int slot, const float* v);
  void copy_value(const uint8_t* from, int from_slot, uint8_t* to, int to_slot) const;

  int n_layers_, n_kv_heads_, head_dim_, head_stride_;
  size_t k_bytes_, head_bytes_, page_bytes_;
  Memory memory_;
};

}  // namespace etude
