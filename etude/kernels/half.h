// f16, bf16 and E8M0 <-> f32 in plain C++, bit-exact (round to nearest even), for packing and for the portable path.
// Everything is `static inline`: each instruction-set path keeps its own copy, so the linker cannot hand AVX-512
// code to a CPU without it.
#pragma once
#include <cstdint>
#include <cstring>

namespace etude {

static inline float bits_to_f32(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

static inline uint32_t f32_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

static inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
  if (exponent == 31) return bits_to_f32(sign | 0x7f800000 | (mantissa << 13) | (mantissa ? 0x400000 : 0));
  if (exponent) return bits_to_f32(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = float(mantissa) * 5.9604644775390625e-8f;  // denormal: mantissa * 2^-24, exact
  return bits_to_f32(sign | f32_to_bits(magnitude));
}

static inline uint16_t f32_to_f16(float f) {
  const uint32_t u = f32_to_bits(f), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return uint16_t(sign | 0x7e00 | ((a >> 13) & 0x1ff));  // NaN stays NaN
  if (a >= 0x477ff000) return uint16_t(sign | 0x7c00);                       // rounds to infinity
  if (a < 0x38800000) {                                                      // denormal half: add 0.5 to round at 2^-24
    const float rounded = bits_to_f32(a) + 0.5f;
    return uint16_t(sign | (f32_to_bits(rounded) - 0x3f000000));
  }
  const uint32_t rounded = a + 0xfff + ((a >> 13) & 1);
  return uint16_t(sign | ((rounded - 0x38000000) >> 13));
}

static inline float bf16_to_f32(uint16_t h) { return bits_to_f32(uint32_t(h) << 16); }

static inline uint16_t f32_to_bf16(float f) {
  const uint32_t u = f32_to_bits(f);
  if ((u & 0x7fffffff) > 0x7f800000) return uint16_t((u >> 16) | 64);
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// 2^(e - 128): half of the E8M0 value, because MXFP4's table holds doubled values.
static inline float e8m0_half(uint8_t e) {
  return bits_to_f32(e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23);
}

}  // namespace etude
