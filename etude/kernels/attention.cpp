// Attention of many queries over one cache page, in chunks of 32 keys.
//
// The queries of a group that share a prompt page are the columns of one small matrix product with the page's keys, then of
// one with its values: a shared prefix is read once for all of them. Each query's own arithmetic (order of d in q.k, order of
// keys in the sum, one rescale per chunk) does not depend on who shares the page, so shared = unshared, prefill = decode.
#include "operators.h"
#include "simd.h"

namespace etude {
namespace ETUDE_ISA {

constexpr int chunk = 32;
#if defined(__AVX512F__)
constexpr int max_rows = 6;
#else
constexpr int max_rows = 2;
#endif

template <CacheType C>
static inline F load_cached(const uint8_t* p, size_t i) {
  if constexpr (C == CacheType::f32) return load((const float*)p + i);
  if constexpr (C == CacheType::f16) return load_f16((const uint16_t*)p + i);
  if constexpr (C == CacheType::bf16) return load_bf16((const uint16_t*)p + i);
  return load_i8((const int8_t*)p + i);
}

static const float lane_index[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Loops over queries are unrolled by hand: else GCC 12 zeroes the accumulators with memset and keeps them in memory.

// scores[t][32] = q_t . K for T queries; K (head_dim, page_tokens)
template <CacheType C, int T>
static void dot_keys(const AttentionShape& shape, const uint8_t* k_page, int key0, const AttentionRow* const* rows, float (*scores)[chunk]) {
  const float* queries[T];  // apart from `rows`, which the compiler must expect every store to change
  F low[T], high[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) {
    queries[t] = rows[t]->q;
    low[t] = high[t] = set1(0.0f);
  }
  for (int d = 0; d < shape.head_dim; d++) {
    const size_t i = size_t(d) * shape.page_tokens + key0;
    const F k0 = load_cached<C>(k_page, i), k1 = load_cached<C>(k_page, i + 16);
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      const F q = set1(queries[t][d]);
      low[t] = fma(q, k0, low[t]);
      high[t] = fma(q, k1, high[t]);
    }
  }
  if constexpr (C == CacheType::q8) {
    const float* scale = (const float*)(k_page + size_t(shape.head_dim) * shape.page_tokens) + key0;
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      low[t] = low[t] * load(scale);
      high[t] = high[t] * load(scale + 16);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) {
    store(scores[t], low[t]);
    store(scores[t] + 16, high[t]);
  }
}

// Masks one query's 32 scores, folds them into its running softmax and leaves exp(score - peak) in `scores`.
static void fold(const AttentionShape& shape, int first_key, const AttentionRow& row, int head_stride, float* scores) {
  F s[2] = {load(scores), load(scores + 16)};
  if (shape.softcap > 0)
    for (F& part : s) part = softcap(part, shape.softcap);
  const int first_seen = shape.window ? row.position - shape.window + 1 : 0;
  if (first_key + chunk - 1 > row.position || first_key < first_seen)
    for (int h = 0; h < 2; h++) {
      const F key = load(lane_index) + set1(float(first_key + 16 * h));
      const F hidden = set1(-__builtin_inff());
      s[h] = where_positive(set1(float(row.position) + 0.5f) - key, s[h], hidden);
      s[h] = where_positive(key - set1(float(first_seen) - 0.5f), s[h], hidden);
    }
  const float peak = max_lane(max(s[0], s[1]));
  if (peak > *row.peak) {
    float factor[16];
    store(factor, exp(set1(*row.peak - peak)));  // exp(-inf) = 0 at the first chunk
    *row.total *= factor[0];
    scale_row(row.out, factor[0], head_stride);
    *row.peak = peak;
  }
  for (int h = 0; h < 2; h++) {
    s[h] = exp(s[h] - set1(*row.peak));
    store(scores + 16 * h, s[h]);
  }
  *row.total += sum(s[0] + s[1]);
}

// out_t += p_t @ V for T queries, N vectors of 16 dimensions from `d0`; V (page_tokens, head_dim), its first `keys` tokens
template <CacheType C, int T, int N>
static void add_values(const uint8_t* v, size_t v_stride, int d0, int keys, const AttentionRow* const* rows, const float (*p)[chunk]) {
  float* out[T];
  F acc[T][N];
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) {
    out[t] = rows[t]->out + d0;
    for (int j = 0; j < N; j++) acc[t][j] = load(out[t] + 16 * j);
  }
  for (int key = 0; key < keys; key++) {
    F value[N];
    for (int j = 0; j < N; j++) value[j] = load_cached<C>(v, size_t(key) * v_stride + d0 + 16 * j);
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      const F weight = set1(p[t][key]);
      for (int j = 0; j < N; j++) acc[t][j] = fma(weight, value[j], acc[t][j]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; t++)
    for (int j = 0; j < N; j++) store(out[t] + 16 * j, acc[t][j]);
}

template <CacheType K, int T>
static void keys_step(const AttentionShape& shape, const uint8_t* k_page, int key0, int, const AttentionRow* const* rows, float (*scores)[chunk]) {
  dot_keys<K, T>(shape, k_page, key0, rows, scores);
}

template <CacheType V, int T>
static void values_step(const AttentionShape& shape, const uint8_t* v_page, int key0, int keys, const AttentionRow* const* rows, float (*p)[chunk]) {
  const int head_stride = (shape.head_dim + 15) / 16 * 16;
  size_t element = V == CacheType::f32 ? 4 : V == CacheType::q8 ? 1 : 2;
  if constexpr (V == CacheType::q8) {
    const float* scale = (const float*)(v_page + size_t(head_stride) * shape.page_tokens) + key0;
    for (int t = 0; t < T; t++)
      for (int h = 0; h < 2; h++) store(p[t] + 16 * h, load(p[t] + 16 * h) * load(scale + 16 * h));
  }
  const uint8_t* v = v_page + size_t(key0) * head_stride * element;
  int d = 0;
  for (; d + 64 <= head_stride; d += 64) add_values<V, T, 4>(v, head_stride, d, keys, rows, p);
  for (; d < head_stride; d += 16) add_values<V, T, 1>(v, head_stride, d, keys, rows, p);
}

using Step = void (*)(const AttentionShape&, const uint8_t*, int, int, const AttentionRow* const*, float (*)[chunk]);

#define ETUDE_STEPS(f, c) {f<CacheType::c, 1>, f<CacheType::c, 2>, f<CacheType::c, (max_rows > 2 ? 3 : 1)>, f<CacheType::c, (max_rows > 2 ? 4 : 1)>, \
                           f<CacheType::c, (max_rows > 2 ? 5 : 1)>, f<CacheType::c, (max_rows > 2 ? 6 : 1)>}
static const Step key_steps[4][6] = {ETUDE_STEPS(keys_step, f32), ETUDE_STEPS(keys_step, f16), ETUDE_STEPS(keys_step, bf16), ETUDE_STEPS(keys_step, q8)};
static const Step value_steps[4][6] = {ETUDE_STEPS(values_step, f32), ETUDE_STEPS(values_step, f16), ETUDE_STEPS(values_step, bf16), ETUDE_STEPS(values_step, q8)};
#undef ETUDE_STEPS

static void flush(const AttentionShape& shape, const uint8_t* k_page, const uint8_t* v_page, int key0, int first_key,
                  const AttentionRow* const* rows, int count) {
  float scores[max_rows][chunk];
  int last = 0;
  for (int t = 0; t < count; t++) last = rows[t]->position > last ? rows[t]->position : last;
  // Cells after the last query may hold anything, also NaN, which a weight of 0 would not hide.
  const int keys = last - first_key < chunk ? last - first_key + 1 : chunk;
  key_steps[int(shape.type_k)][count - 1](shape, k_page, key0, keys, rows, scores);
  const int head_stride = (shape.head_dim + 15) / 16 * 16;
  for (int t = 0; t < count; t++) fold(shape, first_key, *rows[t], head_stride, scores[t]);
  value_steps[int(shape.type_v)][count - 1](shape, v_page, key0, keys, rows, scores);
}

template <CacheType C>
static void widen(const AttentionShape& shape, const uint8_t* k_page, const uint8_t* v_page, int key0, float* k, float* v) {
  const int head_stride = (shape.head_dim + 15) / 16 * 16;
  for (int d = 0; d < shape.head_dim; d++)
    for (int h = 0; h < chunk; h += 16) store(k + d * chunk + h, load_cached<C>(k_page, size_t(d) * shape.page_tokens + key0 + h));
  for (int i = 0; i < chunk * head_stride; i += 16) store(v + i, load_cached<C>(v_page, size_t(key0) * head_stride + i));
}

static void attend_rows(const AttentionShape& shape, const uint8_t* k_page, const uint8_t* v_page, int key0, int first_key, const AttentionRow* rows, int count) {
  const AttentionRow* seeing[max_rows];
  int n = 0;
  for (int i = 0; i < count; i++) {
    const bool future = first_key > rows[i].position;
    const bool past = shape.window && first_key + chunk - 1 <= rows[i].position - shape.window;
    if (future || past) continue;
    seeing[n++] = &rows[i];
    if (n == max_rows) {
      flush(shape, k_page, v_page, key0, first_key, seeing, n);
      n = 0;
    }
  }
  if (n) flush(shape, k_page, v_page, key0, first_key, seeing, n);
}

constexpr int widen_rows = 24, widen_dim = 256;  // so many queries pay for widening a chunk once; so large a head fits the stack

void attend(const AttentionShape& shape, const uint8_t* k_page, const uint8_t* v_page, int key0, int first_key, const AttentionRow* rows, int count) {
  const bool f16 = shape.type_k == CacheType::f16 && shape.type_v == CacheType::f16;
  const bool bf16 = shape.type_k == CacheType::bf16 && shape.type_v == CacheType::bf16;
  if (count < widen_rows || shape.head_dim > widen_dim || !(f16 || bf16)) return attend_rows(shape, k_page, v_page, key0, first_key, rows, count);
  alignas(64) float k[widen_dim * chunk], v[widen_dim * chunk];
  if (f16) widen<CacheType::f16>(shape, k_page, v_page, key0, k, v);
  else widen<CacheType::bf16>(shape, k_page, v_page, key0, k, v);
  AttentionShape wide = shape;
  wide.type_k = wide.type_v = CacheType::f32;
  wide.page_tokens = chunk;
  attend_rows(wide, (const uint8_t*)k, (const uint8_t*)v, 0, first_key, rows, count);
}

}  // namespace ETUDE_ISA
}  // namespace etude
