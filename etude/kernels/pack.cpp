#include "pack.h"

#include "half.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace etude {
namespace {

// One ggml block as codes and scales in the units of kernels.h. 32-value types use codes[0..32), d, dmin, factor[0].
struct Block {
  uint8_t codes[256];
  uint16_t d, dmin;
  uint8_t factor[16];   // per 32 (or, for `half` scales, per 16) inputs; int8 for k and half
  uint8_t minimum[16];
};

using Unpack = void (*)(const uint8_t*, Block&);

struct Type {
  int id, values, bytes;
  Codes codes;
  Scales scales;
  Unpack unpack;
  const uint8_t* table;
};

uint16_t u16(const uint8_t* p) { return uint16_t(p[0] | p[1] << 8); }

// 16 bytes: low nibbles are values 0..15, high nibbles 16..31
void nibbles(const uint8_t* qs, uint8_t* codes) {
  for (int j = 0; j < 16; j++) {
    codes[j] = qs[j] & 15;
    codes[j + 16] = qs[j] >> 4;
  }
}

void fifth_bits(const uint8_t* qh, uint8_t* codes, int plus) {
  const uint32_t bits = uint32_t(u16(qh)) | uint32_t(u16(qh + 2)) << 16;
  for (int j = 0; j < 32; j++) codes[j] = uint8_t((codes[j] | (bits >> j & 1) << 4) + plus);
}

void q4_0(const uint8_t* p, Block& b) { b.d = u16(p); nibbles(p + 2, b.codes); }
void q4_1(const uint8_t* p, Block& b) { b.d = u16(p); b.dmin = u16(p + 2); nibbles(p + 4, b.codes); }
void q5_0(const uint8_t* p, Block& b) { b.d = u16(p); nibbles(p + 6, b.codes); fifth_bits(p + 2, b.codes, 112); }
void q5_1(const uint8_t* p, Block& b) { b.d = u16(p); b.dmin = u16(p + 2); nibbles(p + 8, b.codes); fifth_bits(p + 4, b.codes, 0); }
void q8_0(const uint8_t* p, Block& b) {
  b.d = u16(p);
  for (int j = 0; j < 32; j++) b.codes[j] = p[2 + j] ^ 0x80;
}
void mxfp4(const uint8_t* p, Block& b) { b.factor[0] = p[0]; nibbles(p + 1, b.codes); }

void q2_k(const uint8_t* p, Block& b) {
  for (int i = 0; i < 16; i++) {
    b.factor[i] = p[i] & 15;
    b.minimum[i] = p[i] >> 4;
  }
  for (int i = 0; i < 256; i++) b.codes[i] = p[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
  b.d = u16(p + 80);
  b.dmin = u16(p + 82);
}

void q3_k(const uint8_t* p, Block& b) {  // hmask[32] qs[64] scales[12] d
  const uint8_t* s = p + 96;
  for (int i = 0; i < 16; i++) {
    const int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4, high = s[8 + i % 4] >> (2 * (i / 4)) & 3;
    b.factor[i] = uint8_t((low | high << 4) - 32);
  }
  for (int i = 0; i < 256; i++) {
    const int q = p[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    b.codes[i] = uint8_t(q + (p[i % 32] >> (i / 32) & 1 ? 4 : 0) + 4);  // value q2 - (h ? 0 : 4), stored + 8
  }
  b.d = u16(p + 108);
}

// 8 six-bit scales and minima in 12 bytes (get_scale_min_k4)
void scale_min_k4(const uint8_t* s, Block& b) {
  for (int j = 0; j < 4; j++) {
    b.factor[j] = s[j] & 63;
    b.minimum[j] = s[j + 4] & 63;
    b.factor[j + 4] = uint8_t((s[j + 8] & 15) | (s[j] >> 6) << 4);
    b.minimum[j + 4] = uint8_t(s[j + 8] >> 4 | (s[j + 4] >> 6) << 4);
  }
}

void q4_k(const uint8_t* p, Block& b) {
  b.d = u16(p);
  b.dmin = u16(p + 2);
  scale_min_k4(p + 4, b);
  for (int i = 0; i < 256; i++) b.codes[i] = p[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
}

void q5_k(const uint8_t* p, Block& b) {
  b.d = u16(p);
  b.dmin = u16(p + 2);
  scale_min_k4(p + 4, b);
  for (int i = 0; i < 256; i++)
    b.codes[i] = uint8_t((p[48 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15) | (p[16 + i % 32] >> (i / 32) & 1) << 4);
}

void q6_k(const uint8_t* p, Block& b) {  // ql[128] qh[64] scales[16] d
  for (int i = 0; i < 256; i++) {
    const int half = i / 128, quarter = i % 128 / 32, l = i % 32;
    const int low = p[half * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
    const int high = p[128 + half * 32 + l] >> (2 * quarter) & 3;
    b.codes[i] = uint8_t((low | high << 4) + 96);
  }
  for (int i = 0; i < 16; i++) b.factor[i] = p[192 + i];
  b.d = u16(p + 208);
}

void iq4_xs(const uint8_t* p, Block& b) {  // d scales_h scales_l[4] qs[128]
  b.d = u16(p);
  const uint16_t high = u16(p + 2);
  for (int i = 0; i < 8; i++) {
    b.factor[i] = uint8_t(((p[4 + i / 2] >> (i % 2 * 4) & 15) | (high >> (2 * i) & 3) << 4) - 32);
    nibbles(p + 8 + 16 * i, b.codes + 32 * i);
  }
}

// Code books + 128. IQ4: ggml's kvalues_iq4nl; MXFP4: doubled E2M1 values.
const uint8_t iq4_values[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
const uint8_t mxfp4_values[16] = {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116};

const Type types[] = {
    {0, 1, 4, Codes::f32, Scales::none, nullptr, nullptr},
    {1, 1, 2, Codes::f16, Scales::none, nullptr, nullptr},
    {30, 1, 2, Codes::bf16, Scales::none, nullptr, nullptr},
    {2, 32, 18, Codes::nibble, Scales::f16, q4_0, nullptr},
    {3, 32, 20, Codes::nibble, Scales::f16_min, q4_1, nullptr},
    {6, 32, 22, Codes::byte, Scales::f16, q5_0, nullptr},
    {7, 32, 24, Codes::byte, Scales::f16_min, q5_1, nullptr},
    {8, 32, 34, Codes::byte, Scales::f16, q8_0, nullptr},
    {10, 256, 84, Codes::nibble, Scales::half_min, q2_k, nullptr},
    {11, 256, 110, Codes::nibble, Scales::half, q3_k, nullptr},
    {12, 256, 144, Codes::nibble, Scales::k_min, q4_k, nullptr},
    {13, 256, 176, Codes::byte, Scales::k_min, q5_k, nullptr},
    {14, 256, 210, Codes::byte, Scales::half, q6_k, nullptr},
    {20, 32, 18, Codes::table, Scales::f16, q4_0, iq4_values},
    {23, 256, 136, Codes::table, Scales::k, iq4_xs, iq4_values},
    {39, 32, 17, Codes::table, Scales::e8m0, mxfp4, mxfp4_values},
};

// 32 values of part i of a block, in ggml's order of f32 operations (see decode_row).
void values_of(const Type& type, const Block& b, int i, float d, float dmin, float* out) {
  const uint8_t* codes = b.codes + 32 * i;
  uint8_t looked_up[32];
  if (type.codes == Codes::table) {
    for (int j = 0; j < 32; j++) looked_up[j] = type.table[codes[j]];
    codes = looked_up;
  }
  const float offset = type.codes == Codes::nibble ? 8 : 128;
  const auto values = kernels().block_values;
  switch (type.scales) {
    case Scales::f16: return values(codes, 32, offset, d, nullptr, out);
    case Scales::f16_min: return values(codes, 32, 0, d, &dmin, out);
    case Scales::e8m0: return values(codes, 32, offset, e8m0_half(b.factor[0]), nullptr, out);
    case Scales::k: return values(codes, 32, offset, d * float(int8_t(b.factor[i])), nullptr, out);
    case Scales::k_min: {
      const float minimum = -(dmin * float(b.minimum[i]));
      return values(codes, 32, 0, d * float(b.factor[i]), &minimum, out);
    }
    case Scales::half:
      for (int h = 0; h < 2; h++) values(codes + 16 * h, 16, offset, d * float(int8_t(b.factor[2 * i + h])), nullptr, out + 16 * h);
      return;
    case Scales::half_min:
      for (int h = 0; h < 2; h++) {
        const float minimum = -(dmin * float(b.minimum[2 * i + h]));
        values(codes + 16 * h, 16, 0, d * float(b.factor[2 * i + h]), &minimum, out + 16 * h);
      }
      return;
    case Scales::none: return;
  }
}

void row_values(const Type& type, int k, const uint8_t* data, float* out) {
  if (type.codes == Codes::f32) {
    std::memcpy(out, data, size_t(k) * 4);
  } else if (type.scales == Scales::none) {
    for (int i = 0; i < k; i++) out[i] = type.codes == Codes::f16 ? f16_to_f32(u16(data + 2 * i)) : bf16_to_f32(u16(data + 2 * i));
  } else {
    Block block{};
    for (int at = 0; at < k; at += type.values, data += type.bytes) {
      type.unpack(data, block);
      const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
      for (int i = 0; i < type.values / 32; i++) values_of(type, block, i, d, dmin, out + at + 32 * i);
    }
  }
}

const Type* find(int id) {
  for (const Type& type : types)
    if (type.id == id) return &type;
  return nullptr;
}

struct Layout {
  size_t code, scale, super;  // bytes a block of 32; super a block of 256
};

Layout layout_of(const Type& type) {
  Layout l{};
  l.code = type.codes == Codes::f32 ? 2048 : type.codes == Codes::f16 || type.codes == Codes::bf16 ? 1024 : type.codes == Codes::byte ? 512 : 256;
  switch (type.scales) {
    case Scales::none: break;
    case Scales::f16: l.scale = 32; break;
    case Scales::f16_min: l.scale = 64; break;
    case Scales::e8m0: l.scale = 16; break;
    case Scales::k: l.scale = 16; l.super = 32; break;
    case Scales::k_min: l.scale = 32; l.super = 64; break;
    case Scales::half: l.scale = 32; l.super = 32; break;
    case Scales::half_min: l.scale = 64; l.super = 64; break;
  }
  return l;
}

class TileWriter {
 public:
  TileWriter(const Type& type, const Matrix& m)
      : type_(type), layout_(layout_of(type)), codes_(const_cast<uint8_t*>(m.code_data)), scales_(const_cast<uint8_t*>(m.scale_data)),
        super_(const_cast<uint8_t*>(m.super_data)), m_(m) {}

  void row(int tile, int lane, const uint8_t* data) {
    uint8_t* codes = codes_ + tile * m_.code_stride;
    if (type_.scales == Scales::none) return floats(codes, lane, data);
    const int per_block = type_.values / 32;
    Block block{};
    for (int b = 0; b < m_.blocks; b += per_block) {
      type_.unpack(data + size_t(b / per_block) * type_.bytes, block);
      for (int i = 0; i < per_block; i++) {
        write_codes(codes + (b + i) * layout_.code, lane, block.codes + 32 * i);
        write_scales(scales_ + tile * m_.scale_stride + (b + i) * layout_.scale, lane, block, i);
      }
      if (layout_.super) write_super((uint16_t*)(super_ + tile * m_.super_stride + b / 8 * layout_.super), lane, block);
    }
  }

 private:
  void floats(uint8_t* tile, int lane, const uint8_t* data) const {
    for (int k = 0; k < m_.k; k++) {
      if (type_.codes == Codes::f32)
        std::memcpy(tile + (size_t(k) * 16 + lane) * 4, data + size_t(k) * 4, 4);
      else if (type_.codes == Codes::f16)
        std::memcpy(tile + (size_t(k) * 16 + lane) * 2, data + size_t(k) * 2, 2);
      else
        std::memcpy(tile + (size_t(k / 2) * 32 + 2 * lane + k % 2) * 2, data + size_t(k) * 2, 2);
    }
  }

  void write_codes(uint8_t* block, int lane, const uint8_t* codes) const {
    if (type_.codes == Codes::byte) {
      for (int g = 0; g < 8; g++) std::memcpy(block + 64 * g + 4 * lane, codes + 4 * g, 4);
      return;
    }
    for (int g = 0; g < 4; g++)
      for (int i = 0; i < 4; i++) block[64 * g + 4 * lane + i] = uint8_t(codes[4 * g + i] | codes[16 + 4 * g + i] << 4);
  }

  void write_scales(uint8_t* s, int lane, const Block& b, int i) const {
    uint16_t* h = (uint16_t*)s;
    switch (type_.scales) {
      case Scales::f16_min: h[16 + lane] = b.dmin; [[fallthrough]];
      case Scales::f16: h[lane] = b.d; break;
      case Scales::e8m0: s[lane] = b.factor[0]; break;
      case Scales::k_min: s[16 + lane] = b.minimum[i]; [[fallthrough]];
      case Scales::k: s[lane] = b.factor[i]; break;
      case Scales::half_min:
        s[32 + lane] = b.minimum[2 * i];
        s[48 + lane] = b.minimum[2 * i + 1];
        [[fallthrough]];
      case Scales::half:
        s[lane] = b.factor[2 * i];
        s[16 + lane] = b.factor[2 * i + 1];
        break;
      case Scales::none: break;
    }
  }

  void write_super(uint16_t* d, int lane, const Block& b) const {
    d[lane] = b.d;
    if (layout_.super == 64) d[16 + lane] = b.dmin;
  }

  const Type& type_;
  const Layout layout_;
  uint8_t *codes_, *scales_, *super_;
  const Matrix& m_;
};

}  // namespace

size_t ggml_row_bytes(int type, int k) {
  const Type* t = find(type);
  return t && k > 0 && k % t->values == 0 ? size_t(k / t->values) * t->bytes : 0;
}

static const Type* checked(int type_id, int n, int k, size_t bytes) {
  const Type* type = find(type_id);
  if (!type) throw std::invalid_argument("no kernel for ggml type " + std::to_string(type_id));
  const size_t row_bytes = ggml_row_bytes(type_id, k);
  if (n <= 0 || !row_bytes) throw std::invalid_argument("a matrix of " + std::to_string(n) + " x " + std::to_string(k) + " cannot hold ggml type " + std::to_string(type_id));
  if (bytes != row_bytes * size_t(n)) throw std::invalid_argument("got " + std::to_string(bytes) + " bytes, expected " + std::to_string(row_bytes * size_t(n)));
  return type;
}

// work(begin, end) on rows [begin, end), whose limits are multiples of 16.
template <class Work>
static void in_parts(int n, int k, int threads, const Work& work) {
  const int parts = size_t(n) * k < (1u << 18) ? 1 : std::max(1, threads);
  std::vector<std::thread> helpers;
  const int step = ((n + parts - 1) / parts + 15) / 16 * 16;
  for (int begin = step; begin < n; begin += step) helpers.emplace_back(work, begin, std::min(n, begin + step));
  work(0, std::min(n, step));
  for (std::thread& helper : helpers) helper.join();
}

PackedMatrix pack(int type_id, int n, int k, const uint8_t* data, size_t bytes, const int32_t* row_order, int threads) {
  const Type* type = checked(type_id, n, k, bytes);
  const size_t row_bytes = ggml_row_bytes(type_id, k);
  const Layout layout = layout_of(*type);
  PackedMatrix p;
  Matrix& m = p.matrix;
  m.type = type_id;
  m.codes = type->codes;
  m.scales = type->scales;
  m.n = n;
  m.k = k;
  m.tiles = (n + 15) / 16;
  m.blocks = (k + 31) / 32;
  m.code_stride = m.blocks * layout.code;
  m.scale_stride = m.blocks * layout.scale;
  m.super_stride = size_t(m.blocks / 8) * layout.super;
  m.table = type->table;
  p.memory = Memory(m.tiles * (m.code_stride + m.scale_stride + m.super_stride));
  m.code_data = p.memory.as();
  m.scale_data = m.code_data + m.tiles * m.code_stride;
  m.super_data = m.scale_data + m.tiles * m.scale_stride;
  auto work = [&](int begin, int end) {
    TileWriter writer(*type, m);
    for (int i = begin; i < end; i++) writer.row(i / 16, i % 16, data + size_t(row_order ? row_order[i] : i) * row_bytes);
  };
  in_parts(n, k, threads, work);
  return p;
}

void dequantize(int type_id, int n, int k, const uint8_t* data, size_t bytes, float* out, int threads) {
  const Type* type = checked(type_id, n, k, bytes);
  const size_t row_bytes = ggml_row_bytes(type_id, k);
  in_parts(n, k, threads, [=](int begin, int end) {
    for (int i = begin; i < end; i++) row_values(*type, k, data + i * row_bytes, out + size_t(i) * k);
  });
}

}  // namespace etude
