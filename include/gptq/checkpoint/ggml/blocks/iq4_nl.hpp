// IQ4_NL: d (float16), 16 bytes of nibbles, each the number of one of 16 levels; 18 bytes; d level. Byte j has the
// weights j and j + 16.
#pragma once

#include <array>
#include <cstddef>

#include <gptq/checkpoint/ggml/blocks/block.hpp>

namespace gptq::checkpoint::detail {

struct iq4_nl_block {
  static constexpr std::size_t size = 32;
  static constexpr std::size_t bytes = 18;
  static constexpr std::array<int, 16> levels{-127, -104, -83, -65, -49, -35, -22, -10,
                                              1,    13,   25,  38,  53,  69,  89,  113};
  static void decode(std::byte const* p, float* y) {
    float const d = half_at(p);
    for (std::size_t j = 0; j < 16; ++j) {
      auto const pair = static_cast<std::size_t>(byte_at(p + 2 + j));
      y[j] = d * static_cast<float>(levels[pair & 15]);
      y[j + 16] = d * static_cast<float>(levels[pair >> 4]);
    }
  }
};

}  // namespace gptq::checkpoint::detail
