// Row operators: activation encoding, norms, gates, rope, one row of a packed matrix.
#include "operators.h"
#include "simd.h"

namespace etude {
namespace ETUDE_ISA {

// Up to 16 values at p[0..n), zeros beyond.
static inline F load_part(const float* p, int n) {
  if (n >= 16) return load(p);
  if (n <= 0) return set1(0.0f);
  float t[16] = {};
  for (int i = 0; i < n; i++) t[i] = p[i];
  return load(t);
}

static inline void store_part(float* p, F a, int n) {
  if (n >= 16) return store(p, a);
  float t[16];
  store(t, a);
  for (int i = 0; i < n; i++) p[i] = t[i];
}

// One block of 32 to int8: scale = amax / 127 with the two lowest bits cleared, q = round_to_nearest_even(x * 127 / amax).
// Blocks below 1e-30 count as zero. Leaves x - scale * q in `values` and returns amax.
static float encode_block(F (&values)[2], Activations& x, size_t r, int block) {
  const size_t i = r * (x.k_padded / 32) + block;
  const float peak = max_lane(max(abs(values[0]), abs(values[1])));
  const bool tiny = peak < 1e-30f;
  const F inverse = set1(tiny ? 0.0f : 127.0f / peak);
  const float scale = tiny ? 0.0f : bits_to_f32(f32_to_bits(peak / 127.0f) & ~3u);
  int8_t* q = x.q + r * x.k_padded + size_t(block) * 32;
  int32_t total = 0;
  for (int h = 0; h < 2; h++) {
    const I codes = to_i32(values[h] * inverse);
    store_i8(q + 16 * h, codes);
    const int32_t part = sum_i(codes);
    x.sum16[2 * i + h] = part;
    total += part;
    values[h] = values[h] - to_f32(codes) * set1(scale);  // two roundings: the same bits on every path
  }
  x.scale[i] = scale;
  x.unbias[i] = -float_bias * scale;
  x.scaled_sum[i] = scale * float(total);
  x.bias8[i] = int_bias - 8 * total;
  x.bias128[i] = int_bias - 128 * total;
  return peak;
}

static bool all_finite(const float* row, int k) {
  F zero = set1(0.0f);  // inf * 0 and NaN * 0 are NaN
  for (int i = 0; i < k; i += 16) zero = fma(load_part(row + i, k - i), set1(0.0f), zero);
  return sum(zero) == 0;
}

// A row that is not finite comes out as NaN: codes cannot carry it, and a model that diverged must show.
static void encode_int8(const float* row, int k, Activations& x, int r) {
  F squares = set1(0.0f);
  for (int i = 0; i < k; i += 16) {
    const F v = load_part(row + i, k - i);
    squares = fma(v, v, squares);
  }
  const float limit = outlier_ratio * outlier_ratio * sum(squares) / float(k);
  const bool finite = limit < __builtin_inff() || all_finite(row, k);  // finite rows above 1e19 have limit = inf
  uint16_t* outliers = x.outliers + size_t(r) * (x.k_padded / 32);
  int count = 0;
  for (int block = 0; block < x.k_padded / 32; block++) {
    F values[2];
    for (int h = 0; h < 2; h++) values[h] = finite ? load_part(row + 32 * block + 16 * h, k - 32 * block - 16 * h) : set1(0.0f);
    const float peak = encode_block(values, x, size_t(r), block);
    if (!finite) {
      const size_t i = size_t(r) * (x.k_padded / 32) + block;
      x.scale[i] = x.unbias[i] = x.scaled_sum[i] = __builtin_nanf("");
      continue;
    }
    if (peak * peak <= limit) continue;
    outliers[count++] = uint16_t(block);
    encode_block(values, x, size_t(r) + x.residual_rows, block);
  }
  x.outlier_count[r] = count;
}

void encode(const float* row, int k, unsigned encodings, Activations& x, int r) {
  if (encodings & encode_i8) encode_int8(row, k, x, r);
  const size_t base = size_t(r) * x.k_padded;
  for (int i = 0; i < x.k_padded; i += 16) {
    const F v = load_part(row + i, k - i);
    if (encodings & encode_f32) store(x.f32 + base + i, v);
    if (encodings & encode_bf16) store_bf16(x.bf16 + base + i, v);
  }
}

void rms_norm(const float* x, const float* weight, int n, float eps, float* y) {
  F squares = set1(0.0f);
  for (int i = 0; i < n; i += 16) {
    const F v = load_part(x + i, n - i);
    squares = fma(v, v, squares);
  }
  const F factor = set1(1.0f) / sqrt(set1(sum(squares) / float(n) + eps));
  for (int i = 0; i < n; i += 16) store_part(y + i, load_part(x + i, n - i) * factor * load_part(weight + i, n - i), n - i);
}

void add(float* y, const float* x, int n) {
  for (int i = 0; i < n; i += 16) store_part(y + i, load_part(y + i, n - i) + load_part(x + i, n - i), n - i);
}

// silu(x) = x / (1 + exp(-x)); gelu_tanh(x) = x / (1 + exp(-2 z)), z = sqrt(2 / pi) (x + 0.044715 x^3)
void gate(float* gate, const float* up, int n, bool gelu_tanh) {
  const F one = set1(1.0f);
  for (int i = 0; i < n; i += 16) {
    const F x = load_part(gate + i, n - i);
    F z = x;
    if (gelu_tanh) z = set1(1.5957691216057308f) * fma(x * x * x, set1(0.044715f), x);
    const F activated = x / (one + exp(set1(0.0f) - z));
    store_part(gate + i, activated * load_part(up + i, n - i), n - i);
  }
}

void rope(float* head, const float* cosine, const float* sine, int half) {
  for (int i = 0; i < half; i += 16) {
    const int n = half - i;
    const F a = load_part(head + i, n), b = load_part(head + half + i, n), c = load_part(cosine + i, n), s = load_part(sine + i, n);
    const F rotated = a * c - b * s;
    store_part(head + half + i, a * s + b * c, n);
    store_part(head + i, rotated, n);
  }
}

void scale_row(float* y, float factor, int n) {
  for (int i = 0; i < n; i += 16) store_part(y + i, load_part(y + i, n - i) * set1(factor), n - i);
}

void softcap_row(float* y, float cap, int n) {
  for (int i = 0; i < n; i += 16) store_part(y + i, softcap(load_part(y + i, n - i), cap), n - i);
}

void convert(CacheType type, const float* x, int n, void* out) {
  for (int i = 0; i < n; i += 16) {
    const F v = load_part(x + i, n - i);
    if (type == CacheType::f32) {
      store_part((float*)out + i, v, n - i);
      continue;
    }
    uint16_t t[16];
    if (type == CacheType::f16) store_f16(t, v);
    else store_bf16(t, v);
    __builtin_memcpy((uint16_t*)out + i, t, size_t(n - i < 16 ? n - i : 16) * 2);
  }
}

static int code_at(const Matrix& w, const uint8_t* tile, int lane, int k) {
  const int g = k % 32 / 4, byte = lane * 4 + k % 4;
  if (w.codes == Codes::byte) return tile[size_t(k / 32) * 512 + 64 * g + byte];
  const int packed = tile[size_t(k / 32) * 256 + 64 * (g % 4) + byte];
  const int code = g < 4 ? packed & 15 : packed >> 4;
  return w.codes == Codes::table ? w.table[code] : code;
}

// scale (and minimum) of one row for the half block that holds input k, in ggml's order of f32 operations
static float scale_at(const Matrix& w, const uint8_t* scales, const uint8_t* super, int lane, int k, float* minimum) {
  const int b = k / 32, half = k % 32 / 16;
  const uint16_t* d = (const uint16_t*)super + size_t(b / 8) * (w.scales == Scales::k || w.scales == Scales::half ? 16 : 32) + lane;
  *minimum = 0;
  switch (w.scales) {
    case Scales::f16: return f16_to_f32(((const uint16_t*)scales)[b * 16 + lane]);
    case Scales::f16_min:
      *minimum = f16_to_f32(((const uint16_t*)scales)[b * 32 + 16 + lane]);
      return f16_to_f32(((const uint16_t*)scales)[b * 32 + lane]);
    case Scales::e8m0: return e8m0_half(scales[b * 16 + lane]);
    case Scales::k: return f16_to_f32(*d) * float(((const int8_t*)scales)[b * 16 + lane]);
    case Scales::k_min:
      *minimum = -(f16_to_f32(d[16]) * float(scales[b * 32 + 16 + lane]));
      return f16_to_f32(*d) * float(scales[b * 32 + lane]);
    case Scales::half: return f16_to_f32(*d) * float(((const int8_t*)scales)[b * 32 + 16 * half + lane]);
    case Scales::half_min:
      *minimum = -(f16_to_f32(d[16]) * float(scales[b * 64 + 32 + 16 * half + lane]));
      return f16_to_f32(*d) * float(scales[b * 64 + 16 * half + lane]);
    case Scales::none: break;
  }
  return 1;
}

void decode_row(const Matrix& w, int row, float* out) {
  const int tile = row / 16, lane = row % 16;
  const uint8_t* codes = w.code_data + tile * w.code_stride;
  const uint8_t* scales = w.scale_data + tile * w.scale_stride;
  const uint8_t* super = w.super_data + tile * w.super_stride;
  const bool has_minimum = w.scales == Scales::f16_min || w.scales == Scales::k_min || w.scales == Scales::half_min;
  const int offset = has_minimum ? 0 : w.codes == Codes::nibble ? 8 : 128;
  for (int k = 0; k < w.k; k++) {
    const size_t i = size_t(k) * 16 + lane;
    if (w.codes == Codes::f32) {
      out[k] = ((const float*)codes)[i];
    } else if (w.codes == Codes::f16) {
      out[k] = f16_to_f32(((const uint16_t*)codes)[i]);
    } else if (w.codes == Codes::bf16) {
      out[k] = bf16_to_f32(((const uint16_t*)codes)[size_t(k / 2) * 32 + 2 * lane + k % 2]);
    } else {
      float minimum;
      const float scale = scale_at(w, scales, super, lane, k, &minimum);
      const float value = scale * float(code_at(w, codes, lane, k) - offset);
      out[k] = has_minimum ? value + minimum : value;
    }
  }
}

void block_values(const uint8_t* codes, int n, float offset, float scale, const float* minimum, float* out) {
  const F scale_v = set1(scale), offset_v = set1(offset), minimum_v = set1(minimum ? *minimum : 0.0f);
  for (int i = 0; i < n; i += 16) {
    const F value = scale_v * (load_u8(codes + i) - offset_v);
    store(out + i, minimum ? value + minimum_v : value);  // adding 0 would change the sign of -0
  }
}

}  // namespace ETUDE_ISA
}  // namespace etude
