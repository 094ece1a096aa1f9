// The operators of one instruction set as a table.
#include "operators.h"

namespace etude {
namespace ETUDE_ISA {

#define ETUDE_TEXT_(x) #x
#define ETUDE_TEXT(x) ETUDE_TEXT_(x)
extern const Kernels table;
const Kernels table = {
    ETUDE_TEXT(ETUDE_ISA), matmul, encode, rms_norm, add, gate, rope, attend, scale_row, softcap_row, convert, decode_row, block_values,
    vocab_max, vocab_sum_exp, vocab_pick, vocab_mask, vocab_select, vocab_gradient,
};

}  // namespace ETUDE_ISA
}  // namespace etude
