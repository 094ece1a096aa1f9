// ggml blocks -> packed tiles (see kernels.h for the layout). Exact: decode_row(pack(W)) is bit-equal to ggml's W.
#pragma once
#include "kernels.h"
#include "memory.h"

namespace etude {

struct PackedMatrix {
  Matrix matrix;
  Memory memory;
};

// `data`: n rows of ggml blocks of `type`, `bytes` long; packed row i comes from file row row_order[i] (nullptr: i).
// Throws std::invalid_argument for a type without kernel or a size that does not fit.
PackedMatrix pack(int type, int n, int k, const uint8_t* data, size_t bytes, const int32_t* row_order, int threads);

// `data` as in pack() -> (n, k) f32, bit-equal to ggml's dequantisation; throws as pack() does.
void dequantize(int type, int n, int k, const uint8_t* data, size_t bytes, float* out, int threads);

// Bytes of a row of k values; 0 for an unknown type or a k that is no multiple of its block.
size_t ggml_row_bytes(int type, int k);

}  // namespace etude
