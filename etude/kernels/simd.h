// Sixteen lanes, three instruction sets. Operators are written once over these few operations and compiled three
// times, each into its own namespace ETUDE_ISA (avx512, avx2, portable); kernels.cpp picks one at run time.
//
//   F  sixteen f32      I  sixteen i32      W  sixty-four u8 weight codes (16 rows x 4 inputs)
//
// Reductions use one fixed tree (i with i+8, i+4, i+2, i+1), so a result never depends on batch or threads.
// No standard library in here: its inline functions could be merged across paths by the linker.
#pragma once
#include <cstdint>

#include "half.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace etude {
namespace ETUDE_ISA {

#if defined(__AVX512F__)

struct F { __m512 v; };
struct I { __m512i v; };
struct W { __m512i v; };

static inline F set1(float x) { return {_mm512_set1_ps(x)}; }
static inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
static inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
static inline F sqrt(F a) { return {_mm512_sqrt_ps(a.v)}; }
// a where m > 0 holds lane by lane, else b
static inline F where_positive(F m, F a, F b) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(m.v, _mm512_setzero_ps(), _CMP_GT_OQ), b.v, a.v)};
}
static inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
static inline F load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static inline F load_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
static inline void store_f16(uint16_t* p, F a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline I set1_i(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline I load_i(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_i(int32_t* p, I a) { _mm512_storeu_si512(p, a.v); }
static inline I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline F to_f32(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline I to_i32(F a) { return {_mm512_cvtps_epi32(a.v)}; }
static inline I as_bits(F a) { return {_mm512_castps_si512(a.v)}; }
static inline F as_float(I a) { return {_mm512_castsi512_ps(a.v)}; }
template <int N> static inline I shift_left(I a) { return {_mm512_slli_epi32(a.v, N)}; }
static inline F load_i8(const int8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))}; }
static inline F load_u8(const uint8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)))}; }
static inline I load_u8_i(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
static inline void store_i8(int8_t* p, I a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(a.v)); }
static inline float sum(F a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
static inline float max_lane(F a) { return _mm512_reduce_max_ps(a.v); }
static inline int32_t sum_i(I a) { return _mm512_reduce_add_epi32(a.v); }

static inline W load_w(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_w(uint8_t* p, W a) { _mm512_storeu_si512(p, a.v); }
static inline W low_nibbles(W a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
static inline W high_nibbles(W a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
struct Table { __m512i v; };
static inline Table load_table(const uint8_t* p) { return {_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p))}; }
static inline W lookup(Table t, W codes) { return {_mm512_shuffle_epi8(t.v, codes.v)}; }

// Four int8 activations, broadcast to all rows.
struct X4 { __m512i v; };
static inline X4 broadcast4(const int8_t* p) { int32_t x; __builtin_memcpy(&x, p, 4); return {_mm512_set1_epi32(x)}; }
// acc[row] += sum over 4 inputs of w (u8) * x (i8), exact
static inline I dot4(I acc, W w, X4 x) { return {_mm512_dpbusd_epi32(acc.v, w.v, x.v)}; }

// Two bf16 inputs: acc[row] += w[row][0] * x[0] + w[row][1] * x[1]
struct P { __m512i v; };
static inline P load_pairs(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
static inline P broadcast_pair(const uint16_t* p) { int32_t x; __builtin_memcpy(&x, p, 4); return {_mm512_set1_epi32(x)}; }
#if defined(__AVX512BF16__)
static inline F dot2(F acc, P w, P x) { return {_mm512_dpbf16_ps(acc.v, (__m512bh)w.v, (__m512bh)x.v)}; }
#else
static inline F dot2(F acc, P w, P x) {
  const __m512i high = _mm512_set1_epi32(int(0xffff0000));
  acc = fma(F{_mm512_castsi512_ps(_mm512_and_si512(w.v, high))}, F{_mm512_castsi512_ps(_mm512_and_si512(x.v, high))}, acc);
  return fma(F{_mm512_castsi512_ps(_mm512_slli_epi32(w.v, 16))}, F{_mm512_castsi512_ps(_mm512_slli_epi32(x.v, 16))}, acc);
}
#endif

#elif defined(__AVX2__)

struct F { __m256 a, b; };
struct I { __m256i a, b; };
struct W { __m256i a, b; };

static inline F set1(float x) { const __m256 v = _mm256_set1_ps(x); return {v, v}; }
static inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, F x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
static inline F operator+(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline F operator-(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline F operator*(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline F operator/(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline F abs(F x) {
  const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)};
}
static inline F sqrt(F x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
static inline F where_positive(F m, F x, F y) {
  const __m256 z = _mm256_setzero_ps();
  return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(m.a, z, _CMP_GT_OQ)), _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(m.b, z, _CMP_GT_OQ))};
}
static inline F round(F x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
static inline F load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline __m256 bf16_half(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
static inline F load_bf16(const uint16_t* p) { return {bf16_half(p), bf16_half(p + 8)}; }
static inline void store_f16(uint16_t* p, F x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, mode));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, mode));
}
static inline I set1_i(int32_t x) { const __m256i v = _mm256_set1_epi32(x); return {v, v}; }
static inline I load_i(const int32_t* p) { return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))}; }
static inline void store_i(int32_t* p, I x) { _mm256_storeu_si256((__m256i*)p, x.a); _mm256_storeu_si256((__m256i*)(p + 8), x.b); }
static inline I operator+(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline F to_f32(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline I to_i32(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static inline I as_bits(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
static inline F as_float(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
template <int N> static inline I shift_left(I x) { return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)}; }
static inline F load_i8(const int8_t* p) {
  return to_f32(I{_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)), _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))});
}
static inline I load_u8_i(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)), _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}
static inline F load_u8(const uint8_t* p) { return to_f32(load_u8_i(p)); }
static inline void store_i8(int8_t* p, I x) {
  int32_t t[16];
  store_i(t, x);
  for (int i = 0; i < 16; i++) p[i] = int8_t(t[i] > 127 ? 127 : t[i] < -128 ? -128 : t[i]);
}
static inline float sum(F x) {
  const __m256 h = _mm256_add_ps(x.a, x.b);
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
static inline float max_lane(F x) {
  const __m256 h = _mm256_max_ps(x.a, x.b);
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}
static inline int32_t sum_i(I x) {
  int32_t t[16], s = 0;
  store_i(t, x);
  for (int i = 0; i < 16; i++) s += t[i];
  return s;
}

static inline W load_w(const uint8_t* p) { return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))}; }
static inline void store_w(uint8_t* p, W x) { _mm256_storeu_si256((__m256i*)p, x.a); _mm256_storeu_si256((__m256i*)(p + 32), x.b); }
static inline W low_nibbles(W x) {
  const __m256i m = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
static inline W high_nibbles(W x) { return low_nibbles(W{_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
struct Table { __m256i v; };
static inline Table load_table(const uint8_t* p) { return {_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p))}; }
static inline W lookup(Table t, W x) { return {_mm256_shuffle_epi8(t.v, x.a), _mm256_shuffle_epi8(t.v, x.b)}; }

// maddubs would saturate with 8-bit codes, so even and odd inputs are widened to 16 bit and multiplied apart.
struct X4 { __m256i even, odd; };
static inline X4 broadcast4(const int8_t* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  const __m256i v = _mm256_set1_epi32(x);
  return {_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
}
static inline __m256i dot4_half(__m256i acc, __m256i w, X4 x) {
  const __m256i even = _mm256_and_si256(w, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(w, 8);
  return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(even, x.even), _mm256_madd_epi16(odd, x.odd)));
}
static inline I dot4(I acc, W w, X4 x) { return {dot4_half(acc.a, w.a, x), dot4_half(acc.b, w.b, x)}; }

struct P { __m256i a, b; };
static inline P load_pairs(const uint16_t* p) { return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 16))}; }
static inline P broadcast_pair(const uint16_t* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  const __m256i v = _mm256_set1_epi32(x);
  return {v, v};
}
static inline F dot2(F acc, P w, P x) {
  const __m256i high = _mm256_set1_epi32(int(0xffff0000));
  const F w1 = as_float(I{_mm256_and_si256(w.a, high), _mm256_and_si256(w.b, high)});
  const F x1 = as_float(I{_mm256_and_si256(x.a, high), _mm256_and_si256(x.b, high)});
  const F w0 = as_float(shift_left<16>(I{w.a, w.b})), x0 = as_float(shift_left<16>(I{x.a, x.b}));
  return fma(w0, x0, fma(w1, x1, acc));
}

#else
#include "simd_portable.h"
#endif

// 16 values rounded to bf16 (nearest even), as their bits
static inline void store_bf16(uint16_t* p, F x) {
  float t[16];
  store(t, x);
  for (int i = 0; i < 16; i++) p[i] = f32_to_bf16(t[i]);
}

// round(scale * (sum in `s` without int_bias)); see matmul.cpp for why one fused operation does it
#if defined(__AVX2__)
static inline F unbiased(I s, F scale, F minus_bias) { return fma(as_float(s), scale, minus_bias); }
#else
static inline F unbiased(I s, F scale, F) { return (as_float(s) - set1(12582912.0f)) * scale; }
#endif

// exp(x), relative error <= 2e-7 for x in [-87.3, 88.7]; 0 below, so exp(-inf) = 0. Cody-Waite reduction by ln 2 and a
// degree-6 polynomial on [-ln2/2, ln2/2] (Cephes expf coefficients).
static inline F exp(F x) {
  const F clamped = min(max(x, set1(-87.33f)), set1(88.37f));
  const F n = round(clamped * set1(1.44269504088896341f));
  F r = fma(n, set1(-0.693359375f), clamped);
  r = fma(n, set1(2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  const F y = fma(p, r * r, r + set1(1.0f));
  const F scale = as_float(shift_left<23>(to_i32(n) + set1_i(127)));
  return where_positive(x - set1(-87.33f), y * scale, set1(0.0f));
}

// cap * tanh(x / cap)
static inline F softcap(F x, float cap) {
  const F one = set1(1.0f), e = exp(x * set1(2.0f / cap));
  return set1(cap) * (one - set1(2.0f) / (e + one));
}

}  // namespace ETUDE_ISA
}  // namespace etude
