// The operators, as one table of function pointers per instruction set, and the data they work on.
//
// Layout of a packed matrix W (n, k): tiles of 16 output rows; per tile, blocks of 32 inputs in order of k.
//   8-bit codes: 8 groups of 64 bytes; group g holds, row by row, the codes of inputs 4g .. 4g+3       512 bytes a block
//   4-bit codes: 4 groups of 64 bytes; low nibbles = group g, high nibbles = group g + 4                256 bytes a block
//   f32, f16   : input by input, 16 rows                                              2048 / 1024 bytes a block
//   bf16       : pairs of inputs, 16 rows x 2                                                        1024 bytes a block
// n is padded to 16 and k to 32 with zeros (codes that decode to 0), so no kernel has a tail in either.
#pragma once
#include <cstddef>
#include <cstdint>

namespace etude {

// How a packed weight is read: value = scale * (code - offset) [+ minimum]. The offset is 0 for formats with a minimum,
// else 8 for nibbles and 128 for bytes and tables.
enum class Codes : uint8_t { nibble, table, byte, f32, f16, bf16 };
enum class Scales : uint8_t {
  none,      // float matrices
  f16,       // per block, 16 x f16 scale                                             Q4_0 Q5_0 Q8_0 IQ4_NL
  f16_min,   // per block, 16 x f16 scale, 16 x f16 minimum                           Q4_1 Q5_1
  e8m0,      // per block, 16 x u8 exponent                                           MXFP4
  k,         // per block, 16 x i8 factor; per 256 inputs 16 x f16 d                  IQ4_XS
  k_min,     // per block, 16 x u8 factor, 16 x u8 minimum; per 256: f16 d, f16 dmin  Q4_K Q5_K
  half,      // per 16 inputs, 16 x i8 factor; per 256: f16 d                         Q3_K Q6_K
  half_min,  // per 16 inputs, 16 x u8 factor, 16 x u8 minimum; per 256: f16 d, dmin  Q2_K
};

struct Matrix {
  int type = -1;  // ggml type id it was packed from
  Codes codes = Codes::f32;
  Scales scales = Scales::none;
  int n = 0, k = 0;                   // logical shape
  int tiles = 0, blocks = 0;          // ceil(n / 16), ceil(k / 32)
  const uint8_t* code_data = nullptr;   // tile t at t * code_stride
  const uint8_t* scale_data = nullptr;  // tile t at t * scale_stride
  const uint8_t* super_data = nullptr;  // per 256 inputs; tile t at t * super_stride
  const uint8_t* table = nullptr;       // Codes::table: 16 values + 128
  size_t code_stride = 0, scale_stride = 0, super_stride = 0;
  explicit operator bool() const { return code_data != nullptr; }
};

// Which encodings of an input a matrix multiplies with.
enum Encoding : unsigned { encode_f32 = 1, encode_i8 = 2, encode_bf16 = 4 };
inline unsigned encoding_for(const Matrix& m) {
  return m.codes == Codes::f32 || m.codes == Codes::f16 ? encode_f32 : m.codes == Codes::bf16 ? encode_bf16 : encode_i8;
}

// An integer accumulator starts at int_bias, so that its bits read as a float are float_bias + sum, exact for |sum| < 2^22.
constexpr int32_t int_bias = 0x4b400000;
constexpr float float_bias = 12582912.0f;  // 1.5 * 2^23

// Inputs X (t, k) of a matrix product, encoded once for all matrices that read them. Row r of each array starts at
// r * its stride; k_padded is a multiple of 32. i8: x ~ scale[block] * q, scale = amax / 127 (1 scale for 32 inputs).
//
// Most of the error of plain int8 comes from the few blocks that hold an outlier: their scale drowns the other 31 values. Where
// a block's amax is over outlier_ratio times the root mean square of its row, what int8 left over is encoded once more, as row
// r + residual_rows of the same arrays, and multiplied in a second pass over that block.
constexpr float outlier_ratio = 7.0f;
struct Activations {
  int residual_rows = 0;       // row offset of the residuals
  uint16_t* outliers = nullptr;      // (t, k_padded / 32) blocks with a residual, ascending
  int32_t* outlier_count = nullptr;  // (t) how many
  int k_padded = 0;            // stride of f32, q, bf16
  float* f32 = nullptr;        // (t, k_padded)
  uint16_t* bf16 = nullptr;    // (t, k_padded)
  int8_t* q = nullptr;         // (t, k_padded)
  float* scale = nullptr;      // (t, k_padded / 32), 22 bits of mantissa (see matmul.cpp)
  float* unbias = nullptr;     // (t, k_padded / 32) -float_bias * scale, exact
  float* scaled_sum = nullptr; // (t, k_padded / 32) scale * sum of q, for formats with a minimum
  int32_t* bias8 = nullptr;    // (t, k_padded / 32) int_bias - 8 * sum of q: takes the offset out of 4-bit codes
  int32_t* bias128 = nullptr;  // (t, k_padded / 32) int_bias - 128 * sum of q: out of 8-bit codes
  int32_t* sum16 = nullptr;    // (t, k_padded / 16) sums over 16 inputs, for types with sub-blocks of 16
};

enum class CacheType : uint8_t { f32, f16, bf16, q8 };

// One (page, layer, kv head) of the cache holds K as [head_dim][page_tokens] and V as [page_tokens][head_dim], so that both
// attention products read 16 contiguous lanes; q8 adds a f32 scale per token to each.
struct AttentionShape {
  int head_dim = 0;
  int page_tokens = 0;
  CacheType type_k = CacheType::f16, type_v = CacheType::f16;
  int window = 0;     // 0: full
  float softcap = 0;  // of scores (Gemma 2); 0: off
};

// Running softmax of one query: sum of exp(score - peak) * v, in chunks of 32 keys in order of position
// (Milakov & Gimelshein, arXiv:1805.02867). `out` has head_dim rounded up to 16 floats.
struct AttentionRow {
  const float* q;     // (head_dim), already multiplied by the attention scale
  float* out;         // (head_dim) accumulator
  float* peak;        // running maximum
  float* total;       // running sum of exp
  int position;       // of the query: sees keys <= position (and > position - window)
};

struct Kernels {
  const char* name;
  // Y (t, n) = X (t, k) @ W^T for tiles [tile_begin, tile_end); y row stride `ldy` floats, column 0 = row 0 of W.
  void (*matmul)(const Matrix& w, const Activations& x, int t_begin, int t_end, int tile_begin, int tile_end, float* y, size_t ldy);
  // Encode the k inputs at `row` into row r of `x`, as the flags say; inputs from k to k_padded are zeros.
  void (*encode)(const float* row, int k, unsigned encodings, Activations& x, int r);
  // y = x / sqrt(mean(x^2) + eps) * weight
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* y);
  void (*add)(float* y, const float* x, int n);                       // y += x
  void (*gate)(float* gate, const float* up, int n, bool gelu_tanh);  // gate = act(gate) * up
  // NEOX rope in place on one head: pairs (i, i + half); cos, sin (half)
  void (*rope)(float* head, const float* cosine, const float* sine, int half);
  // Chunk of 32 keys [first_key, first_key + 32) of one cache page against `count` rows.
  void (*attend)(const AttentionShape& shape, const uint8_t* k_page, const uint8_t* v_page, int first_key_in_page, int first_key,
                 const AttentionRow* rows, int count);
  void (*scale_row)(float* y, float factor, int n);
  void (*softcap_row)(float* y, float cap, int n);  // y = cap * tanh(y / cap)
  // n values as f16 or bf16 (or copied for f32), rounded to nearest even
  void (*convert)(CacheType type, const float* x, int n, void* out);
  // W row r as f32 (k values), bit-equal to ggml's dequantisation
  void (*decode_row)(const Matrix& w, int row, float* out);
  // out = scale * (code - offset) (+ *minimum, if it is not null) of n codes, n a multiple of 16
  void (*block_values)(const uint8_t* codes, int n, float offset, float scale, const float* minimum, float* out);
  // Vocabulary passes (see vocab.cpp)
  float (*vocab_max)(const float* x, int n);
  // sum of exp((x - peak) * inverse_temperature); if `weighted` is not null also sum of exp(..) * (x - peak) * inverse_temperature
  double (*vocab_sum_exp)(const float* x, int n, float peak, float inverse_temperature, double* weighted);
  // first index whose running sum of exp((x - peak) * inverse_temperature) exceeds `target`; the last possible token otherwise
  int (*vocab_pick)(const float* x, int n, float peak, float inverse_temperature, double target);
  void (*vocab_mask)(float* x, int n, const uint32_t* allowed);  // x[i] = -inf where bit i of allowed is 0
  // at most `capacity` indices with x >= threshold, ascending index; returns how many there are in all
  int (*vocab_select)(const float* x, int n, float threshold, int32_t* indices, int capacity);
  void (*vocab_gradient)(float* x, int n, float peak, float factor);  // x = factor * exp(x - peak)
};

// The best path of this machine, or the one forced by ETUDE_ISA (throws std::runtime_error when it cannot run here).
const Kernels& kernels();

}  // namespace etude
