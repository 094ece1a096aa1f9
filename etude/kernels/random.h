// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a keyed permutation of a
// 128-bit counter. The number of a token depends on (seed, index of the completion, position) and on nothing else, so
// there is no state to carry and the order in which completions run cannot matter.
#pragma once
#include <cstdint>

namespace etude {

struct Philox {
  uint32_t word[4];

  Philox(uint64_t seed, uint64_t index, uint64_t position)
      : word{uint32_t(position), uint32_t(position >> 32), uint32_t(index), uint32_t(index >> 32)} {
    uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; round++) {
      const uint64_t a = uint64_t(0xD2511F53u) * word[0], b = uint64_t(0xCD9E8D57u) * word[2];
      const uint32_t next[4] = {uint32_t(b >> 32) ^ word[1] ^ key0, uint32_t(b), uint32_t(a >> 32) ^ word[3] ^ key1, uint32_t(a)};
      for (int i = 0; i < 4; i++) word[i] = next[i];
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
  }

  // Two independent uniforms in [0, 1) of 53 bits; which is 0 or 1.
  double uniform(int which) const {
    const uint64_t bits = uint64_t(word[2 * which]) << 32 | word[2 * which + 1];
    return double(bits >> 11) * 0x1p-53;
  }
};

}  // namespace etude
