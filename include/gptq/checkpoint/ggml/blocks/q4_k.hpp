// Q4_K: d, dmin (float16), 8 scales and 8 minima of 6 bits in 12 bytes, 128 bytes of nibbles; 144 bytes;
// d scale q - dmin minimum, for runs of 32 of 256.
#pragma once

#include <cstddef>

#include <gptq/checkpoint/ggml/blocks/block.hpp>

namespace gptq::checkpoint::detail {

struct q4_k_block {
  static constexpr std::size_t size = 256;
  static constexpr std::size_t bytes = 144;
  static void decode(std::byte const* p, float* y) {
    float const d = half_at(p);
    float const d_min = half_at(p + 2);
    std::byte const* const packed = p + 4;
    // Runs 0..3 have their 6 bits together; the upper two of runs 4..7 lie above those.
    auto const six_bits = [&](std::size_t run, std::size_t which) {
      if (run < 4) return byte_at(packed + run + 4 * which) & 63;
      int const low = byte_at(packed + run + 4) >> (4 * which) & 15;
      return low | byte_at(packed + run - 4 + 4 * which) >> 6 << 4;
    };
    for (std::size_t run = 0; run < 8; ++run) {
      float const scale = d * static_cast<float>(six_bits(run, 0));
      float const minimum = d_min * static_cast<float>(six_bits(run, 1));
      std::byte const* const nibbles = p + 16 + run / 2 * 32;
      for (std::size_t j = 0; j < 32; ++j) {
        int const q = byte_at(nibbles + j) >> (run % 2 * 4) & 15;
        y[32 * run + j] = scale * static_cast<float>(q) - minimum;
      }
    }
  }
};

}  // namespace gptq::checkpoint::detail
