// The portable path of simd.h: sixteen-element arrays and loops that any C++17 compiler accepts (and most vectorise).
// Included by simd.h inside namespace etude::ETUDE_ISA; not for use by itself.

struct F { float v[16]; };
struct I { int32_t v[16]; };
struct W { uint8_t v[64]; };

#define ETUDE_EACH(expression)              \
  for (int i = 0; i < 16; i++) r.v[i] = (expression); \
  return r

static inline F set1(float x) { F r; ETUDE_EACH(x); }
static inline F load(const float* p) { F r; ETUDE_EACH(p[i]); }
static inline void store(float* p, F a) { for (int i = 0; i < 16; i++) p[i] = a.v[i]; }
static inline F operator+(F a, F b) { F r; ETUDE_EACH(a.v[i] + b.v[i]); }
static inline F operator-(F a, F b) { F r; ETUDE_EACH(a.v[i] - b.v[i]); }
static inline F operator*(F a, F b) { F r; ETUDE_EACH(a.v[i] * b.v[i]); }
static inline F operator/(F a, F b) { F r; ETUDE_EACH(a.v[i] / b.v[i]); }
static inline F fma(F a, F b, F c) { F r; ETUDE_EACH(a.v[i] * b.v[i] + c.v[i]); }
static inline F max(F a, F b) { F r; ETUDE_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
static inline F min(F a, F b) { F r; ETUDE_EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
static inline F abs(F a) { F r; ETUDE_EACH(a.v[i] < 0 ? -a.v[i] : a.v[i]); }
static inline F sqrt(F a) { F r; ETUDE_EACH(__builtin_sqrtf(a.v[i])); }
static inline F where_positive(F m, F a, F b) { F r; ETUDE_EACH(m.v[i] > 0 ? a.v[i] : b.v[i]); }
// nearest even by the 2^23 trick: exact for |x| < 2^22, and larger values are integers already
static inline float round_one(float x) {
  const float big = x < 0 ? -12582912.0f : 12582912.0f;
  const float a = x < 0 ? -x : x;
  volatile float shifted = x + big;
  return a < 4194304.0f ? shifted - big : x;
}
static inline F round(F a) { F r; ETUDE_EACH(round_one(a.v[i])); }
static inline F load_f16(const uint16_t* p) { F r; ETUDE_EACH(f16_to_f32(p[i])); }
static inline F load_bf16(const uint16_t* p) { F r; ETUDE_EACH(bf16_to_f32(p[i])); }
static inline void store_f16(uint16_t* p, F a) { for (int i = 0; i < 16; i++) p[i] = f32_to_f16(a.v[i]); }
static inline I set1_i(int32_t x) { I r; ETUDE_EACH(x); }
static inline I load_i(const int32_t* p) { I r; ETUDE_EACH(p[i]); }
static inline void store_i(int32_t* p, I a) { for (int i = 0; i < 16; i++) p[i] = a.v[i]; }
static inline I operator+(I a, I b) { I r; ETUDE_EACH(a.v[i] + b.v[i]); }
static inline F to_f32(I a) { F r; ETUDE_EACH(float(a.v[i])); }
static inline I to_i32(F a) { I r; ETUDE_EACH(int32_t(round_one(a.v[i]))); }
static inline I as_bits(F a) { I r; ETUDE_EACH(int32_t(f32_to_bits(a.v[i]))); }
static inline F as_float(I a) { F r; ETUDE_EACH(bits_to_f32(uint32_t(a.v[i]))); }
template <int N> static inline I shift_left(I a) { I r; ETUDE_EACH(int32_t(uint32_t(a.v[i]) << N)); }
static inline F load_i8(const int8_t* p) { F r; ETUDE_EACH(float(p[i])); }
static inline F load_u8(const uint8_t* p) { F r; ETUDE_EACH(float(p[i])); }
static inline I load_u8_i(const uint8_t* p) { I r; ETUDE_EACH(int32_t(p[i])); }
static inline void store_i8(int8_t* p, I a) {
  for (int i = 0; i < 16; i++) p[i] = int8_t(a.v[i] > 127 ? 127 : a.v[i] < -128 ? -128 : a.v[i]);
}
static inline float sum(F a) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) a.v[i] += a.v[i + half];
  return a.v[0];
}
static inline float max_lane(F a) {
  float m = a.v[0];
  for (int i = 1; i < 16; i++) m = a.v[i] > m ? a.v[i] : m;
  return m;
}
static inline int32_t sum_i(I a) {
  int32_t s = 0;
  for (int i = 0; i < 16; i++) s += a.v[i];
  return s;
}

static inline W load_w(const uint8_t* p) { W r; for (int i = 0; i < 64; i++) r.v[i] = p[i]; return r; }
static inline void store_w(uint8_t* p, W a) { for (int i = 0; i < 64; i++) p[i] = a.v[i]; }
static inline W low_nibbles(W a) { for (int i = 0; i < 64; i++) a.v[i] &= 15; return a; }
static inline W high_nibbles(W a) { for (int i = 0; i < 64; i++) a.v[i] >>= 4; return a; }
struct Table { uint8_t v[16]; };
static inline Table load_table(const uint8_t* p) { Table r; ETUDE_EACH(p[i]); }
static inline W lookup(Table t, W a) { for (int i = 0; i < 64; i++) a.v[i] = t.v[a.v[i]]; return a; }

struct X4 { int8_t v[4]; };
static inline X4 broadcast4(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
static inline I dot4(I acc, W w, X4 x) {
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 4; j++) acc.v[i] += int32_t(w.v[4 * i + j]) * x.v[j];
  return acc;
}

struct P { uint16_t v[32]; };
static inline P load_pairs(const uint16_t* p) { P r; for (int i = 0; i < 32; i++) r.v[i] = p[i]; return r; }
static inline P broadcast_pair(const uint16_t* p) {
  P r;
  for (int i = 0; i < 32; i++) r.v[i] = p[i % 2];
  return r;
}
static inline F dot2(F acc, P w, P x) {
  for (int i = 0; i < 16; i++) {
    acc.v[i] += bf16_to_f32(w.v[2 * i + 1]) * bf16_to_f32(x.v[2 * i + 1]);
    acc.v[i] += bf16_to_f32(w.v[2 * i]) * bf16_to_f32(x.v[2 * i]);
  }
  return acc;
}

#undef ETUDE_EACH
