// Q4_0, Q4_1, Q5_0, Q5_1: 32 codes whose lower four bits are nibbles.
//
//   Q4_0  d, nibbles                    18 bytes   d (q - 8)
//   Q4_1  d, m, nibbles                 20         d q + m
//   Q5_0  d, fifth bits, nibbles        22         d (q - 16)
//   Q5_1  d, m, fifth bits, nibbles     24         d q + m
//
// d and m are float16; byte j of 16 has code j in its low nibble and code j + 16 in its high one; bit j of the 32
// fifth bits belongs to code j.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <gptq/checkpoint/ggml/blocks/block.hpp>

namespace gptq::checkpoint::detail {

template <int Bits, bool HasMinimum>
struct nibble_block {
  static constexpr std::size_t size = code_block_size;
  static constexpr std::size_t fifth_bits_at = HasMinimum ? 4 : 2;
  static constexpr std::size_t nibbles_at = fifth_bits_at + (Bits == 5 ? 4 : 0);
  static constexpr std::size_t bytes = nibbles_at + 16;
  static constexpr bool has_minimum = HasMinimum;
  static constexpr int lowest = HasMinimum ? 0 : -(1 << (Bits - 1));
  static constexpr int highest = lowest + (1 << Bits) - 1;

  static code_block read(std::byte const* p) {
    code_block block{half_at(p), HasMinimum ? half_at(p + 2) : 0.0F, {}};
    std::uint32_t fifth = 0;
    if constexpr (Bits == 5) std::memcpy(&fifth, p + fifth_bits_at, 4);
    for (std::size_t j = 0; j < 16; ++j) {
      int const pair = byte_at(p + nibbles_at + j);
      block.levels[j] = ((pair & 15) | static_cast<int>(fifth >> j & 1U) << 4) + lowest;
      block.levels[j + 16] = (pair >> 4 | static_cast<int>(fifth >> (j + 16) & 1U) << 4) + lowest;
    }
    return block;
  }
  static void write(code_block const& block, std::byte* p) {
    put_half(p, block.scale);
    if constexpr (HasMinimum) put_half(p + 2, block.minimum);
    std::uint32_t fifth = 0;
    for (std::size_t j = 0; j < 16; ++j) {
      int const low = block.levels[j] - lowest;
      int const high = block.levels[j + 16] - lowest;
      p[nibbles_at + j] = static_cast<std::byte>((low & 15) | (high & 15) << 4);
      fifth |= static_cast<std::uint32_t>(low >> 4) << j | static_cast<std::uint32_t>(high >> 4) << (j + 16);
    }
    if constexpr (Bits == 5) std::memcpy(p + fifth_bits_at, &fifth, 4);
  }
  static void decode(std::byte const* p, float* y) {
    code_block const block = read(p);
    for (std::size_t j = 0; j < size; ++j) {
      float const product = block.scale * static_cast<float>(block.levels[j]);
      y[j] = HasMinimum ? product + block.minimum : product;
    }
  }
};

using q4_0_block = nibble_block<4, false>;
using q4_1_block = nibble_block<4, true>;
using q5_0_block = nibble_block<5, false>;
using q5_1_block = nibble_block<5, true>;

}  // namespace gptq::checkpoint::detail
