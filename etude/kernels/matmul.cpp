// Y = X @ W^T on packed tiles: R tiles of 16 rows x T columns in registers, weights streamed once per T columns.
//
// Integer formats: s[row][t] = sum over a block of 32 of (code - offset) * q, exact in int32, then
// y += scale_w[row] * (scale_x[t] * s) (+ minimum[row] * scaled_sum[t]). The sum over blocks runs in order of k in one
// accumulator per output, whatever R, T and the caller's split: a row of a batch is bit-equal to the row alone.
//
// A second pass over the blocks that hold an outlier of some column adds their residuals (kernels.h).
//
// scale_x * s costs one operation: the integer sum starts at int_bias, its bits are the float float_bias + s, and
// fma(that, scale_x, -float_bias * scale_x) = round(scale_x * s), because scale_x has 22 bits and 1.5 * 2^23 needs two.
#include "operators.h"
#include "simd.h"

namespace etude {
namespace ETUDE_ISA {

#if defined(__AVX512F__)
constexpr int max_columns = 8, tile_rows = 2, single_rows = 4;
#elif defined(__AVX2__)
constexpr int max_columns = 4, tile_rows = 1, single_rows = 2;
#else
constexpr int max_columns = 4, tile_rows = 1, single_rows = 1;
#endif

constexpr int code_bytes(Codes c) {
  return c == Codes::f32 ? 2048 : c == Codes::f16 || c == Codes::bf16 ? 1024 : c == Codes::byte ? 512 : 256;
}
constexpr int scale_bytes(Scales s) {
  return s == Scales::f16 ? 32 : s == Scales::f16_min ? 64 : s == Scales::e8m0 || s == Scales::k ? 16
         : s == Scales::k_min || s == Scales::half ? 32 : s == Scales::half_min ? 64 : 0;
}
constexpr int super_bytes(Scales s) {
  return s == Scales::k || s == Scales::half ? 32 : s == Scales::k_min || s == Scales::half_min ? 64 : 0;
}
constexpr bool has_minimum(Scales s) { return s == Scales::f16_min || s == Scales::k_min || s == Scales::half_min; }
constexpr bool has_halves(Scales s) { return s == Scales::half || s == Scales::half_min; }

// Cache lines to ask for while a block is computed: the tiles that come next, a part of them under each chunk of columns, so
// that the memory works all the time and not only under the first chunk.
struct Prefetch {
  const uint8_t* from = nullptr;
  int lines = 0;  // a block
};

// Scales of 16 rows for one block: [0] alone, or one per half block.
struct RowScales {
  F scale[2], minimum[2];
};

template <Scales S>
static inline RowScales row_scales(const uint8_t* scales, const uint8_t* super) {
  RowScales r{};
  const uint16_t* h = (const uint16_t*)scales;
  const uint16_t* d = (const uint16_t*)super;
  if constexpr (S == Scales::f16 || S == Scales::f16_min) r.scale[0] = load_f16(h);
  if constexpr (S == Scales::f16_min) r.minimum[0] = load_f16(h + 16);
  if constexpr (S == Scales::e8m0) {  // 2^(e - 128), denormal for e < 2
    const I e = load_u8_i(scales);
    const F normal = as_float(shift_left<23>(e + set1_i(-1)));
    const F tiny = to_f32(e) * set1(2.938735877055719e-39f) + set1(2.938735877055719e-39f);  // e = 0: 2^-128, e = 1: 2^-127
    r.scale[0] = where_positive(to_f32(e) - set1(1.5f), normal, tiny);
  }
  if constexpr (S == Scales::k) r.scale[0] = load_f16(d) * load_i8((const int8_t*)scales);
  if constexpr (S == Scales::k_min) {
    r.scale[0] = load_f16(d) * load_u8(scales);
    r.minimum[0] = set1(0.0f) - load_f16(d + 16) * load_u8(scales + 16);
  }
  if constexpr (S == Scales::half)
    for (int i = 0; i < 2; i++) r.scale[i] = load_f16(d) * load_i8((const int8_t*)scales + 16 * i);
  if constexpr (S == Scales::half_min)
    for (int i = 0; i < 2; i++) {
      r.scale[i] = load_f16(d) * load_u8(scales + 16 * i);
      r.minimum[i] = set1(0.0f) - load_f16(d + 16) * load_u8(scales + 32 + 16 * i);
    }
  return r;
}

// Codes of group g (inputs 4g .. 4g+3) of a block.
template <Codes C>
static inline W code_group(const uint8_t* codes, int g, Table table) {
  if constexpr (C == Codes::byte) return load_w(codes + 64 * g);
  const W packed = load_w(codes + 64 * (g % 4));
  const W nibbles = g < 4 ? low_nibbles(packed) : high_nibbles(packed);
  if constexpr (C == Codes::table) return lookup(table, nibbles);
  return nibbles;
}

// Copies of the pointers, which no store to an output can change.
struct Inputs {
  const int8_t* q;
  const float *scale, *unbias, *scaled_sum;
  const int32_t *bias8, *bias128, *sum16;
  explicit Inputs(const Activations& x)
      : q(x.q), scale(x.scale), unbias(x.unbias), scaled_sum(x.scaled_sum), bias8(x.bias8), bias128(x.bias128), sum16(x.sum16) {}
};

template <int N> struct Constant { static constexpr int value = N; };

// What the integer sums of column i start at: without a minimum, less offset * sum of q.
template <Scales S>
static inline int32_t start_of(const Inputs& x, Codes codes, size_t i, int part) {
  if constexpr (has_minimum(S)) return int_bias;
  if constexpr (has_halves(S)) return int_bias + (codes == Codes::nibble ? -8 : -128) * x.sum16[2 * i + part];
  return codes == Codes::nibble ? x.bias8[i] : x.bias128[i];
}

// acc + scale_w * (scale_x * s) + minimum * (scale_x * sum of q)
template <Scales S>
static inline F folded(const Inputs& x, size_t i, int part, I s, const RowScales& d, F acc) {
  acc = fma(unbiased(s, set1(x.scale[i]), set1(x.unbias[i])), d.scale[part], acc);
  if constexpr (!has_minimum(S)) return acc;
  const F sum = has_halves(S) ? set1(x.scale[i]) * set1(float(x.sum16[2 * i + part])) : set1(x.scaled_sum[i]);
  return fma(d.minimum[part], sum, acc);
}

template <Scales S>
static inline RowScales scales_at(const Matrix& w, int tile, int block) {
  return row_scales<S>(w.scale_data + tile * w.scale_stride + size_t(block) * scale_bytes(S),
                       w.super_data + tile * w.super_stride + size_t(block / 8) * super_bytes(S));
}

// Scales of R tiles as floats, made once for all columns: [block][tile][scale, minimum of each part]
template <Scales S>
constexpr int vectors_of() { return (has_halves(S) ? 2 : 1) * (has_minimum(S) ? 2 : 1); }

template <Scales S>
static inline void keep_scales(const RowScales& d, float* to) {
  for (int p = 0; p < (has_halves(S) ? 2 : 1); p++, to += 16) {
    store(to, d.scale[p]);
    if constexpr (has_minimum(S)) store(to += 16, d.minimum[p]);
  }
}

template <Scales S>
static inline RowScales kept_scales(const float* from) {
  RowScales d{};
  for (int p = 0; p < (has_halves(S) ? 2 : 1); p++, from += 16) {
    d.scale[p] = load(from);
    if constexpr (has_minimum(S)) d.minimum[p] = load(from += 16);
  }
  return d;
}

// The halves of a block are not a loop with `#pragma GCC unroll`: two such loops inside each other come out
// wrong from GCC 12 at -O1 and -O2 (its points-to analysis; found by portable_check.cpp).
template <Codes C, Scales S, int R, int T>
static void integer_tile(const Matrix& w, const Activations& x, int t0, int tile, float* y, size_t ldy, Prefetch next, const float* kept) {
  constexpr int parts = has_halves(S) ? 2 : 1, groups = 8 / parts;
  const size_t blocks = w.blocks, first = size_t(t0) * blocks;
  const Inputs in(x);
  const Table table = C == Codes::table ? load_table(w.table) : Table{};
  const int8_t* q = x.q + size_t(t0) * x.k_padded;
  F acc[R][T];
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) acc[r][t] = set1(0.0f);
  for (int b = 0; b < w.blocks; b++) {
    for (int l = 0; l < next.lines; l++, next.from += 64) __builtin_prefetch(next.from, 0, 2);
    RowScales d[R];
    for (int r = 0; r < R; r++) d[r] = kept ? kept_scales<S>(kept + (size_t(b) * R + r) * vectors_of<S>() * 16) : scales_at<S>(w, tile + r, b);
    auto add_part = [&](auto part) __attribute__((always_inline)) {
      constexpr int p = decltype(part)::value;
      I s[R][T];
      for (int t = 0; t < T; t++)  // w.codes, not C: see unpacked()
        for (int r = 0; r < R; r++) s[r][t] = set1_i(start_of<S>(in, w.codes, first + t * blocks + b, p));
#pragma GCC unroll 8
      for (int g = p * groups; g < (p + 1) * groups; g++) {
        W codes[R];
        for (int r = 0; r < R; r++) codes[r] = code_group<C>(w.code_data + (tile + r) * w.code_stride + size_t(b) * code_bytes(C), g, table);
        for (int t = 0; t < T; t++) {
          const X4 four = broadcast4(q + size_t(t) * x.k_padded + 32 * b + 4 * g);
          for (int r = 0; r < R; r++) s[r][t] = dot4(s[r][t], codes[r], four);
        }
      }
      for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) acc[r][t] = folded<S>(in, first + t * blocks + b, p, s[r][t], d[r], acc[r][t]);
    };
    add_part(Constant<0>{});
    if constexpr (parts == 2) add_part(Constant<1>{});
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) store(y + size_t(t0 + t) * ldy + size_t(tile + r) * 16, acc[r][t]);
}

// Which of the columns [begin, end) have a residual in a block, block by block.
struct Residuals {
  static constexpr int most = 8192, most_blocks = 8192;  // of a column two thirds of its blocks, at most, are outliers
  int begin = 0, end = 0;
  int first[most_blocks + 1];
  uint16_t column[most];  // - begin

  // As many columns from `t` on as fit.
  void collect(const Activations& x, int blocks, int t, int t_end) {
    begin = end = t;
    for (int b = 0; b <= blocks; b++) first[b] = 0;
    int total = 0;
    for (; end < t_end && end - t < 65536 && total + x.outlier_count[end] <= most; end++) {
      total += x.outlier_count[end];
      for (int i = 0; i < x.outlier_count[end]; i++) first[x.outliers[size_t(end) * blocks + i] + 1]++;
    }
    for (int b = 0; b < blocks; b++) first[b + 1] += first[b];
    for (int c = begin; c < end; c++)
      for (int i = 0; i < x.outlier_count[c]; i++) column[first[x.outliers[size_t(c) * blocks + i]]++] = uint16_t(c - begin);
    for (int b = blocks; b > 0; b--) first[b] = first[b - 1];  // each had moved to its end
    first[0] = 0;
  }
};

// The second pass: the codes of a block are read once for all columns that have a residual in it. To one output the residuals
// come in order of the blocks, whoever else has some.
template <Codes C, Scales S>
__attribute__((noinline)) static void add_residuals(const Matrix& w, const Activations& x, const Residuals& which, int tile, float* y, size_t ldy) {
  constexpr int parts = has_halves(S) ? 2 : 1, groups = 8 / parts;
  const Table table = C == Codes::table ? load_table(w.table) : Table{};
  const Inputs in(x);
  const size_t k = x.k_padded, blocks = w.blocks, residual = size_t(which.begin) + x.residual_rows;
  const Codes offset = w.codes;
  y += size_t(which.begin) * ldy + size_t(tile) * 16;
  for (size_t b = 0; b < blocks; b++) {
    if (which.first[b] == which.first[b + 1]) continue;
    const RowScales d = scales_at<S>(w, tile, b);
    W codes[8];
    for (int g = 0; g < 8; g++) codes[g] = code_group<C>(w.code_data + tile * w.code_stride + size_t(b) * code_bytes(C), g, table);
    for (int n = which.first[b]; n < which.first[b + 1]; n++) {
      const size_t column = which.column[n], row = residual + column, i = row * blocks + b;
      const int8_t* q = in.q + row * k + 32 * b;
      F acc = load(y + column * ldy);
      auto add_part = [&](auto part) __attribute__((always_inline)) {
        constexpr int p = decltype(part)::value;
        I s = set1_i(start_of<S>(in, offset, i, p));
#pragma GCC unroll 8
        for (int g = p * groups; g < (p + 1) * groups; g++) s = dot4(s, codes[g], broadcast4(q + 4 * g));
        acc = folded<S>(in, i, p, s, d, acc);
      };
      add_part(Constant<0>{});
      if constexpr (parts == 2) add_part(Constant<1>{});
      store(y + column * ldy, acc);
    }
  }
}

// Codes::f32, f16: one input a step; bf16: a pair. Segments of inputs are summed apart and then added in order: one running sum
// of 2048 products would leave three times the error in the logits.
constexpr int segment_inputs = 128, float_stride = 8;  // inputs are padded to 32

template <Codes C>
constexpr int input_bytes() { return C == Codes::f32 ? 64 : 32; }  // of an input of a tile

// The inputs [first, last) of R tiles and T columns; the first segment sets y, the others add to it.
template <Codes C, int R, int T>
static void float_segment(const Matrix& w, const Activations& x, int first, int last, int t0, int tile, float* y, size_t ldy, Prefetch next = {}) {
  constexpr int step = C == Codes::bf16 ? 2 : 1;
  const uint8_t* rows[R];
  for (int r = 0; r < R; r++) rows[r] = w.code_data + (tile + r) * w.code_stride;
  const float* xf = x.f32 + size_t(t0) * x.k_padded;
  const uint16_t* xh = x.bf16 + size_t(t0) * x.k_padded;
  const size_t stride = x.k_padded;
  F acc[R][T];
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) acc[r][t] = set1(0.0f);
  for (int k8 = first; k8 < last; k8 += float_stride) {
    for (int l = 0; l < next.lines; l++, next.from += 64)
      for (int r = 0; r < R; r++) __builtin_prefetch(next.from + r * w.code_stride, 0, 2);
#pragma GCC unroll 4
    for (int k = k8; k < k8 + float_stride; k += step) {
      const size_t at = size_t(k) * input_bytes<C>();
      if constexpr (C == Codes::bf16) {
        P pair[R];
        for (int r = 0; r < R; r++) pair[r] = load_pairs((const uint16_t*)(rows[r] + at));
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
          const P in = broadcast_pair(xh + t * stride + k);
          for (int r = 0; r < R; r++) acc[r][t] = dot2(acc[r][t], pair[r], in);
        }
      } else {
        F value[R];
        for (int r = 0; r < R; r++) value[r] = C == Codes::f32 ? load((const float*)(rows[r] + at)) : load_f16((const uint16_t*)(rows[r] + at));
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
          const F in = set1(xf[t * stride + k]);
          for (int r = 0; r < R; r++) acc[r][t] = fma(value[r], in, acc[r][t]);
        }
      }
    }
  }
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      float* to = y + size_t(t0 + t) * ldy + size_t(tile + r) * 16;
      store(to, first ? load(to) + acc[r][t] : acc[r][t]);
    }
}

template <Codes C, int R, int T>
static void float_tile(const Matrix& w, const Activations& x, int t0, int tile, float* y, size_t ldy) {
  const int inputs = w.blocks * 32;
  for (int first = 0; first < inputs; first += segment_inputs)
    float_segment<C, R, T>(w, x, first, first + segment_inputs < inputs ? first + segment_inputs : inputs, t0, tile, y, ldy);
}

// R tiles against all columns, segment by segment: a segment's weights stay in the nearest cache while columns pass, and the next
// segment's are asked for meanwhile.
template <Codes C, int R>
static void float_columns(const Matrix& w, const Activations& x, int t_begin, int t_end, int tile, float* y, size_t ldy) {
  const int inputs = w.blocks * 32, chunks = (t_end - t_begin) / max_columns;
  for (int first = 0; first < inputs; first += segment_inputs) {
    const int last = first + segment_inputs < inputs ? first + segment_inputs : inputs;
    int t = t_begin;
    const bool more = last < inputs, next_tiles = !more && tile + 2 * R <= w.tiles;
    Prefetch next;
    if (chunks && (more || next_tiles)) {
      const int lines = segment_inputs * input_bytes<C>() / 64;  // of a tile
      next = {w.code_data + (more ? tile : tile + R) * w.code_stride + size_t(more ? last : 0) * input_bytes<C>(),
              (lines * float_stride + chunks * (last - first) - 1) / (chunks * (last - first))};
    }
    for (; t + max_columns <= t_end; t += max_columns) {
      float_segment<C, R, max_columns>(w, x, first, last, t, tile, y, ldy, next);
      next.from += size_t(next.lines) * 64 * ((last - first) / float_stride);
    }
    if constexpr (max_columns > 4)
      for (; t + 4 <= t_end; t += 4) float_segment<C, R, 4>(w, x, first, last, t, tile, y, ldy);
    for (; t + 2 <= t_end; t += 2) float_segment<C, R, 2>(w, x, first, last, t, tile, y, ldy);
    for (; t < t_end; t++) float_segment<C, R, 1>(w, x, first, last, t, tile, y, ldy);
  }
}

template <Codes C, Scales S, int R, int T>
static void tile(const Matrix& w, const Activations& x, int t0, int tile, float* y, size_t ldy, Prefetch next = {}, const float* kept = nullptr) {
  if constexpr (S == Scales::none)
    float_tile<C, R, T>(w, x, t0, tile, y, ldy);
  else
    integer_tile<C, S, R, T>(w, x, t0, tile, y, ldy, next, kept);
}

// So many blocks of unpacked codes and scales fit a second-level cache.
constexpr int cached_blocks = 288;

// R tiles against all columns; the R tiles stay in the nearest cache while columns pass.
template <Codes C, Scales S, int R>
static void columns(const Matrix& w, const Activations& x, int t_begin, int t_end, int first_tile, float* y, size_t ldy) {
  if constexpr (S == Scales::none) return float_columns<C, R>(w, x, t_begin, t_end, first_tile, y, ldy);
  int t = t_begin;
  constexpr bool costly = super_bytes(S) > 0;  // two factors to multiply; one f16 is made a float as fast as a float is loaded
  alignas(64) float scales[!costly ? 1 : cached_blocks * R * vectors_of<S>() * 16];
  const float* kept = nullptr;
  if constexpr (costly)
    if (t_end - t_begin >= 2 * max_columns && w.blocks <= cached_blocks) {
      for (int i = 0; i < w.blocks * R; i++) keep_scales<S>(scales_at<S>(w, first_tile + i % R, i / R), scales + size_t(i) * vectors_of<S>() * 16);
      kept = scales;
    }
  const int chunks = (t_end - t_begin) / max_columns, total = R * code_bytes(C) / 64;  // lines a block of the next R tiles
  Prefetch next;
  if (first_tile + 2 * R <= w.tiles && chunks)
    next = {w.code_data + (first_tile + R) * w.code_stride, (total + chunks - 1) / chunks};
  for (int left = total; t + max_columns <= t_end; t += max_columns) {
    tile<C, S, R, max_columns>(w, x, t, first_tile, y, ldy, next, kept);
    next.from += size_t(next.lines) * 64 * w.blocks;
    left -= next.lines;
    if (left < next.lines) next.lines = left > 0 ? left : 0;
  }
  if constexpr (max_columns > 4)
    for (; t + 4 <= t_end; t += 4) tile<C, S, R, 4>(w, x, t, first_tile, y, ldy);
  for (; t + 2 <= t_end; t += 2) tile<C, S, R, 2>(w, x, t, first_tile, y, ldy);
  for (; t < t_end; t++) tile<C, S, R, 1>(w, x, t, first_tile, y, ldy);
}

// So many columns pay for unpacking 4-bit codes once.
constexpr int unpack_columns = 128;

// R tiles of a 4-bit matrix with their codes as bytes in `codes` (R * blocks * 512). Everything else, the offset
// of the codes too, stays: the same integers, so the same bits.
template <Codes C, int R>
static Matrix unpacked(const Matrix& w, int first_tile, uint8_t* codes) {
  Matrix m = w;
  m.code_data = codes - size_t(first_tile) * w.blocks * 512;
  m.code_stride = size_t(w.blocks) * 512;
  m.tiles = first_tile + R;  // nothing beyond to prefetch
  const Table table = C == Codes::table ? load_table(w.table) : Table{};
  for (int r = 0; r < R; r++)
    for (int b = 0; b < w.blocks; b++)
      for (int g = 0; g < 8; g++, codes += 64)
        store_w(codes, code_group<C>(w.code_data + (first_tile + r) * w.code_stride + size_t(b) * code_bytes(C), g, table));
  return m;
}

template <Codes C, Scales S>
static void all_columns(const Matrix& w, const Activations& x, int t_begin, int t_end, int tile_begin, int tile_end, float* y, size_t ldy) {
  int i = tile_begin;
  if (t_end - t_begin == 1)
    for (; i + single_rows <= tile_end; i += single_rows) tile<C, S, single_rows, 1>(w, x, t_begin, i, y, ldy);
  if constexpr (C == Codes::nibble || C == Codes::table)
    if (t_end - t_begin >= unpack_columns && w.blocks <= cached_blocks) {
      alignas(64) uint8_t codes[tile_rows * cached_blocks * 512];
      for (; i + tile_rows <= tile_end; i += tile_rows)
        columns<Codes::byte, S, tile_rows>(unpacked<C, tile_rows>(w, i, codes), x, t_begin, t_end, i, y, ldy);
    }
  for (; i + tile_rows <= tile_end; i += tile_rows) columns<C, S, tile_rows>(w, x, t_begin, t_end, i, y, ldy);
  for (; i < tile_end; i++) columns<C, S, 1>(w, x, t_begin, t_end, i, y, ldy);
}

template <Codes C, Scales S>
static void run(const Matrix& w, const Activations& x, int t_begin, int t_end, int tile_begin, int tile_end, float* y, size_t ldy) {
  all_columns<C, S>(w, x, t_begin, t_end, tile_begin, tile_end, y, ldy);
  if constexpr (S != Scales::none) {
    Residuals which;
    for (int t = t_begin; t < t_end; t = which.end) {
      which.collect(x, w.blocks, t, t_end);
      if (which.first[w.blocks])
        for (int i = tile_begin; i < tile_end; i++) add_residuals<C, S>(w, x, which, i, y, ldy);
    }
  }
}

void matmul(const Matrix& w, const Activations& x, int t_begin, int t_end, int tile_begin, int tile_end, float* y, size_t ldy) {
#define ETUDE_RUN(c, s)                      \
  if (w.codes == Codes::c && w.scales == Scales::s) \
  return run<Codes::c, Scales::s>(w, x, t_begin, t_end, tile_begin, tile_end, y, ldy)
  ETUDE_RUN(byte, f16);
  ETUDE_RUN(nibble, f16);
  ETUDE_RUN(nibble, f16_min);
  ETUDE_RUN(byte, f16_min);
  ETUDE_RUN(nibble, k_min);
  ETUDE_RUN(byte, k_min);
  ETUDE_RUN(byte, half);
  ETUDE_RUN(nibble, half);
  ETUDE_RUN(nibble, half_min);
  ETUDE_RUN(table, f16);
  ETUDE_RUN(table, k);
  ETUDE_RUN(table, e8m0);
  ETUDE_RUN(f32, none);
  ETUDE_RUN(f16, none);
  ETUDE_RUN(bf16, none);
#undef ETUDE_RUN
}

}  // namespace ETUDE_ISA
}  // namespace etude
