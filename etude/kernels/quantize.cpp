// A trainer hands over all weights after every step, so this is as parallel as packing and reads each value once.
#include "quantize.h"

#include <algorithm>
#include <cmath>
#include <thread>
#include <vector>

#include "half.h"
#include "kernels.h"

namespace etude {
namespace {

constexpr int values_at_once = 4096;

// Q8_0: d = max |x| / 127 as f16, q = x / d rounded half away from zero.
bool q8_0_block(const float* x, uint8_t* out) {
  float peak = 0;
  bool finite = true;
  for (int i = 0; i < 32; i++) {
    const float size = std::fabs(x[i]);
    finite &= size <= 3.402823466e38f;  // false for NaN
    peak = size > peak ? size : peak;
  }
  if (!finite) return false;
  const float scale = peak / 127.0f;
  float inverse = scale == 0 ? 0.0f : 1.0f / scale;
  if (inverse > 3.402823466e38f) inverse = 0;  // so small that the scale is stored as 0 anyway
  const uint16_t d = f32_to_f16(scale);
  out[0] = uint8_t(d);
  out[1] = uint8_t(d >> 8);
  for (int i = 0; i < 32; i++) {
    const float scaled = x[i] * inverse, size = std::fabs(scaled);
    const int whole = int(size), q = whole + (size - float(whole) >= 0.5f);
    out[2 + i] = uint8_t(scaled < 0 ? -q : q);
  }
  return (d & 0x7c00) != 0x7c00;
}

// n <= values_at_once
Unfit halves(CacheType type, const float* x, int n, uint8_t* out) {
  uint16_t h[values_at_once];
  if (type == CacheType::f16) kernels().convert(type, x, n, h);
  else  // not by the instruction for it, which makes denormal values zero
    for (int i = 0; i < n; i++) h[i] = f32_to_bf16(x[i]);
  const uint16_t infinite = type == CacheType::f16 ? 0x7c00 : 0x7f80;
  bool suspect = false;
  for (int i = 0; i < n; i++) suspect |= (h[i] & 0x7fff) == infinite;
  for (int i = 0; suspect && i < n; i++)
    if ((h[i] & 0x7fff) == infinite && std::isfinite(x[i])) return {true, x[i]};
  for (int i = 0; i < n; i++) {
    out[2 * i] = uint8_t(h[i]);
    out[2 * i + 1] = uint8_t(h[i] >> 8);
  }
  return {};
}

Unfit blocks(const float* x, int n, uint8_t* out) {
  for (int i = 0; i < n; i += 32)
    if (!q8_0_block(x + i, out + i / 32 * 34))
      return {true, *std::find_if(x + i, x + i + 32, [](float v) { return !(std::fabs(v) <= 8.3e6f); })};
  return {};
}

}  // namespace

Unfit quantize(int type, const float* x, size_t n, uint8_t* out, int threads) {
  const size_t pieces = (n + values_at_once - 1) / values_at_once;
  const int parts = int(std::min<size_t>(std::max(1, threads), pieces ? pieces : 1));
  std::vector<Unfit> found(parts);
  auto work = [&](int part) {
    for (size_t i = pieces * part / parts; i < pieces * (part + 1) / parts && !found[part].found; i++) {
      const size_t at = i * values_at_once;
      const int count = int(std::min<size_t>(values_at_once, n - at));
      found[part] = type == 8 ? blocks(x + at, count, out + at / 32 * 34) : halves(type == 1 ? CacheType::f16 : CacheType::bf16, x + at, count, out + 2 * at);
    }
  };
  std::vector<std::thread> helpers;
  for (int part = 1; part < parts; part++) helpers.emplace_back(work, part);
  work(0);
  for (std::thread& helper : helpers) helper.join();
  for (const Unfit& one : found)
    if (one.found) return one;
  return {};
}

}  // namespace etude
