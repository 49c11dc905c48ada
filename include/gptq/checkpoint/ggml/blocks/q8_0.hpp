// Q8_0: d (float16), 32 int8; 34 bytes; d q.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>

#include <gptq/checkpoint/ggml/blocks/block.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>

namespace gptq::checkpoint::detail {

struct q8_0_block {
  static constexpr std::size_t size = code_block_size;
  static constexpr std::size_t bytes = 34;
  static constexpr bool has_minimum = false;
  static constexpr int lowest = -128;
  static constexpr int highest = 127;

  static code_block read(std::byte const* p) {
    code_block block{half_at(p), 0.0F, {}};
    for (std::size_t j = 0; j < size; ++j) block.levels[j] = signed_byte_at(p + 2 + j);
    return block;
  }
  static void write(code_block const& block, std::byte* p) {
    put_half(p, block.scale);
    for (std::size_t j = 0; j < size; ++j) p[2 + j] = static_cast<std::byte>(block.levels[j] & 0xff);
  }
  static void decode(std::byte const* p, float* y) {
    float const d = half_at(p);
    for (std::size_t j = 0; j < size; ++j) y[j] = d * static_cast<float>(signed_byte_at(p + 2 + j));
  }
};

/// Values to nearest, as ggml does it: scale amax / 127, halves away from zero.
/// @throws gptq::error for a value that is not finite and a scale beyond float16
inline void encode_q8_0(std::span<float const> values, std::byte* out) {
  for (std::size_t first = 0; first < values.size(); first += q8_0_block::size, out += q8_0_block::bytes) {
    auto const block = values.subspan(first, q8_0_block::size);
    float amax = 0.0F;
    for (float const x : block) {
      if (!std::isfinite(x)) throw error("value " + std::to_string(first) + " and on: not finite");
      amax = std::max(amax, std::abs(x));
    }
    float const d = amax / 127.0F;
    if (!std::isfinite(static_cast<float>(float16(d)))) {
      throw error("value " + std::to_string(first) + " and on: a scale of " + std::to_string(d) +
                  " is beyond float16");
    }
    float const inverse = d != 0.0F ? 1.0F / d : 0.0F;
    put_half(out, d);
    for (std::size_t j = 0; j < block.size(); ++j) {
      auto const q = static_cast<int>(std::clamp(std::round(block[j] * inverse), -127.0F, 127.0F));
      out[2 + j] = static_cast<std::byte>(q & 0xff);
    }
  }
}

}  // namespace gptq::checkpoint::detail
