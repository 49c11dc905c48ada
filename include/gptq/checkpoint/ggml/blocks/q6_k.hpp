// Q6_K: 128 bytes of nibbles, 64 of upper bits, 16 int8 scales, d (float16); 210 bytes; d scale (q - 32), for runs
// of 16 of 256.
#pragma once

#include <cstddef>

#include <gptq/checkpoint/ggml/blocks/block.hpp>

namespace gptq::checkpoint::detail {

struct q6_k_block {
  static constexpr std::size_t size = 256;
  static constexpr std::size_t bytes = 210;
  static void decode(std::byte const* p, float* y) {
    float const d = half_at(p + 208);
    // Each half of 128: quarters of 32 share 64 bytes of nibbles and 32 bytes of two upper bits.
    for (std::size_t i = 0; i < size; ++i) {
      std::size_t const half = i / 128;
      std::size_t const quarter = i % 128 / 32;
      std::size_t const j = i % 32;
      int const low = byte_at(p + 64 * half + 32 * (quarter % 2) + j) >> (quarter / 2 * 4) & 15;
      int const high = byte_at(p + 128 + 32 * half + j) >> (2 * quarter) & 3;
      float const scale = d * static_cast<float>(signed_byte_at(p + 192 + i / 16));
      y[i] = scale * static_cast<float>((low | high << 4) - 32);
    }
  }
};

}  // namespace gptq::checkpoint::detail
