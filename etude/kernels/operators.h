// Declarations of every operator inside the namespace of one instruction set; table.cpp collects them into `Kernels`.
#pragma once
#include "kernels.h"

namespace etude {
namespace ETUDE_ISA {

void matmul(const Matrix& w, const Activations& x, int t_begin, int t_end, int tile_begin, int tile_end, float* y, size_t ldy);
void encode(const float* row, int k, unsigned encodings, Activations& x, int r);
void rms_norm(const float* x, const float* weight, int n, float eps, float* y);
void add(float* y, const float* x, int n);
void gate(float* gate, const float* up, int n, bool gelu_tanh);
void rope(float* head, const float* cosine, const float* sine, int half);
void attend(const AttentionShape& shape, const uint8_t* k_page, const uint8_t* v_page, int first_key_in_page, int first_key,
            const AttentionRow* rows, int count);
void scale_row(float* y, float factor, int n);
void softcap_row(float* y, float cap, int n);
void convert(CacheType type, const float* x, int n, void* out);
void block_values(const uint8_t* codes, int n, float offset, float scale, const float* minimum, float* out);
void decode_row(const Matrix& w, int row, float* out);
float vocab_max(const float* x, int n);
void vocab_gradient(float* x, int n, float peak, float factor);
double vocab_sum_exp(const float* x, int n, float peak, float inverse_temperature, double* weighted);
int vocab_pick(const float* x, int n, float peak, float inverse_temperature, double target);
void vocab_mask(float* x, int n, const uint32_t* allowed);
int vocab_select(const float* x, int n, float threshold, int32_t* indices, int capacity);

}  // namespace ETUDE_ISA
}  // namespace etude
