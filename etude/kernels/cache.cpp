#include "cache.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "half.h"

namespace etude {
namespace {

size_t element_bytes(CacheType type) { return type == CacheType::f32 ? 4 : type == CacheType::q8 ? 1 : 2; }

size_t align64(size_t bytes) { return (bytes + 63) / 64 * 64; }

// `rows` elements a token and, for q8, a scale a token
size_t part_bytes(CacheType type, int elements, int page_tokens) {
  return align64(size_t(elements) * page_tokens * element_bytes(type) + (type == CacheType::q8 ? size_t(page_tokens) * 4 : 0));
}

float load_element(CacheType type, const uint8_t* p, size_t i) {
  if (type == CacheType::f32) return ((const float*)p)[i];
  if (type == CacheType::f16) return f16_to_f32(((const uint16_t*)p)[i]);
  if (type == CacheType::bf16) return bf16_to_f32(((const uint16_t*)p)[i]);
  return float(((const int8_t*)p)[i]);
}

// q8: value already divided by its scale
void store_element(CacheType type, uint8_t* p, size_t i, float value) {
  if (type == CacheType::f32) ((float*)p)[i] = value;
  else if (type == CacheType::f16) ((uint16_t*)p)[i] = f32_to_f16(value);
  else if (type == CacheType::bf16) ((uint16_t*)p)[i] = f32_to_bf16(value);
  else ((int8_t*)p)[i] = int8_t(std::nearbyintf(value));
}

// Scale of a token's q8 values; 1 for the other types.
float q8_scale(CacheType type, const float* x, int n) {
  if (type != CacheType::q8) return 1;
  float peak = 0;
  for (int i = 0; i < n; i++) peak = std::fmax(peak, std::fabs(x[i]));
  return peak / 127.0f;
}

int checked(const char* name, int value, int least, int most) {
  if (value < least || value > most)
    throw std::invalid_argument(std::string(name) + " = " + std::to_string(value) + ", allowed " + std::to_string(least) + " to " + std::to_string(most));
  return value;
}

}  // namespace

CacheType cache_type(const char* name) {
  const char* const names[] = {"f32", "f16", "bf16", "q8_0"};
  for (int i = 0; i < 4; i++)
    if (!std::strcmp(name, names[i])) return CacheType(i);
  throw std::invalid_argument(std::string("cache type ") + name + " is not supported; allowed: f32, f16, bf16, q8_0");
}

size_t Cache::bytes_per_page(const ModelShape& s, int page_tokens, CacheType type_k, CacheType type_v) {
  checked("page_tokens", page_tokens, 32, 4096);
  if (page_tokens % 32) throw std::invalid_argument("page_tokens = " + std::to_string(page_tokens) + ", must be a multiple of 32");
  return size_t(s.n_layers) * s.n_kv_heads * (part_bytes(type_k, s.head_dim, page_tokens) + part_bytes(type_v, s.head_stride(), page_tokens));
}

Cache::Cache(const ModelShape& s, int pages, int tokens, CacheType k, CacheType v)
    : n_pages(checked("n_pages", pages, 1, 1 << 24)), page_tokens(tokens), type_k(k), type_v(v),
      n_layers_(s.n_layers), n_kv_heads_(s.n_kv_heads), head_dim_(s.head_dim), head_stride_(s.head_stride()),
      k_bytes_(part_bytes(k, s.head_dim, tokens)), head_bytes_(k_bytes_ + part_bytes(v, head_stride_, tokens)),
      page_bytes_(bytes_per_page(s, tokens, k, v)) {
  memory_ = Memory(page_bytes_ * size_t(pages));
}

bool Cache::fits(const ModelShape& s) const { return s.n_layers == n_layers_ && s.n_kv_heads == n_kv_heads_ && s.head_dim == head_dim_; }

void Cache::write_key(uint8_t* keys, int slot, const float* k) {
  if (type_k == CacheType::f16 || type_k == CacheType::bf16) {
    uint16_t rounded[4096];  // head_dim is at most 4096
    kernels().convert(type_k, k, head_dim_, rounded);
    for (int d = 0; d < head_dim_; d++) ((uint16_t*)keys)[size_t(d) * page_tokens + slot] = rounded[d];
    return;
  }
  const float scale = q8_scale(type_k, k, head_dim_), inverse = scale > 0 ? 1 / scale : 0;
  for (int d = 0; d < head_dim_; d++) store_element(type_k, keys, size_t(d) * page_tokens + slot, k[d] * inverse);
  if (type_k == CacheType::q8) ((float*)(keys + size_t(head_dim_) * page_tokens))[slot] = scale;
}

void Cache::read_key(const uint8_t* keys, int slot, float* out) const {
  const float scale = type_k == CacheType::q8 ? ((const float*)(keys + size_t(head_dim_) * page_tokens))[slot] : 1;
  for (int d = 0; d < head_dim_; d++) out[d] = load_element(type_k, keys, size_t(d) * page_tokens + slot) * scale;
}

void Cache::write_value(uint8_t* values, int slot, const float* v) {
  if (type_v != CacheType::q8) {
    kernels().convert(type_v, v, head_dim_, values + size_t(slot) * head_stride_ * element_bytes(type_v));
    return;
  }
  const float scale = q8_scale(type_v, v, head_dim_), inverse = scale > 0 ? 1 / scale : 0;
  for (int d = 0; d < head_dim_; d++) store_element(type_v, values, size_t(slot) * head_stride_ + d, v[d] * inverse);
  if (type_v == CacheType::q8) ((float*)(values + size_t(head_stride_) * page_tokens))[slot] = scale;
}

void Cache::write(int id, int layer, int head, int slot, const float* k, const float* v) {
  write_key(keys(id, layer, head), slot, k);
  write_value(values(id, layer, head), slot, v);
}

void Cache::copy_page(int src, int dst) {
  checked("page", src, 0, n_pages - 1);
  checked("page", dst, 0, n_pages - 1);
  if (src != dst) std::memcpy(page(dst), page(src), page_bytes_);
}

void Cache::copy_value(const uint8_t* from, int from_slot, uint8_t* to, int to_slot) const {
  const size_t bytes = head_stride_ * element_bytes(type_v), scales = size_t(head_stride_) * page_tokens;
  std::memmove(to + to_slot * bytes, from + from_slot * bytes, bytes);
  if (type_v == CacheType::q8) ((float*)(to + scales))[to_slot] = ((const float*)(from + scales))[from_slot];
}

void Cache::shift(const ModelShape& shape, const int32_t* src, const int32_t* dst, int length, int keep, int discard) {
  if (!fits(shape)) throw std::invalid_argument("the cache was made for a model of another shape");
  checked("keep", keep, 0, length);
  checked("discard", discard, 1, length - keep);
  for (int i = 0; i < (length + page_tokens - 1) / page_tokens; i++) checked("page", src[i], 0, n_pages - 1);
  for (int i = 0; i < (length - discard + page_tokens - 1) / page_tokens; i++) checked("page", dst[i], 0, n_pages - 1);
  const int half = shape.rope_half;
  std::vector<float> key(head_stride_), cosine(half), sine(half);
  for (int layer = 0; layer < n_layers_; layer++) {
    for (int i = 0; i < half; i++) {
      const float angle = float(discard) * shape.inv_freqs[size_t(shape.rope_of_layer[layer]) * half + i];
      cosine[i] = float(std::cos(double(angle)));
      sine[i] = -float(std::sin(double(angle)));  // backwards
    }
    for (int to = 0; to < length - discard; to++) {
      const int from = to < keep ? to : to + discard;
      const int from_slot = from % page_tokens, to_slot = to % page_tokens;
      if (from == to && src[from / page_tokens] == dst[to / page_tokens]) continue;
      for (int h = 0; h < n_kv_heads_; h++) {
        read_key(keys(src[from / page_tokens], layer, h), from_slot, key.data());
        if (from != to) kernels().rope(key.data(), cosine.data(), sine.data(), half);
        write_key(keys(dst[to / page_tokens], layer, h), to_slot, key.data());
        copy_value(values(src[from / page_tokens], layer, h), from_slot, values(dst[to / page_tokens], layer, h), to_slot);
      }
    }
  }
}

}  // namespace etude
