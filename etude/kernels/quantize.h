// f32 -> rows of ggml blocks: the types that a trainer's weights are held in and saved as.
#pragma once
#include <cstddef>
#include <cstdint>

namespace etude {

// What could not be converted: the first finite value that `type` would make infinite, or (Q8_0, which has no such values)
// the first that is not finite.
struct Unfit {
  bool found = false;
  float value = 0;
};

// n values -> out, of ggml_row_bytes(type, n) bytes, bit-equal to ggml's (and to quantize() in reference_quants.py). Types: F16 (1),
// Q8_0 (8; n a multiple of 32), BF16 (30).
Unfit quantize(int type, const float* x, size_t n, uint8_t* out, int threads);

}  // namespace etude
