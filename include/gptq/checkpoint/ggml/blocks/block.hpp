// What a block type is made of. A block type is a struct of static members in a file of its own:
//
//   size, bytes          elements of a block, and its bytes
//   decode(p, y)         the block at p -> y[size]
//
// and, when layers can be stored in it (32 elements, one scale, levels a distance of the scale apart):
//
//   lowest, highest      levels that it holds
//   has_minimum          weight = scale * level + minimum, with levels from 0; otherwise scale * level
//   read(p)              the block at p
//   write(block, p)      the same block at p
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <gptq/float16.hpp>

namespace gptq::checkpoint::detail {

inline constexpr std::size_t code_block_size = 32;

/// 32 weights: scale * level + minimum.
struct code_block {
  float scale = 0.0F;
  float minimum = 0.0F;
  std::array<int, code_block_size> levels{};
};

inline float half_at(std::byte const* p) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, p, 2);
  return float16::from_bits(bits);
}
inline void put_half(std::byte* p, float value) {
  auto const bits = float16(value).bits;
  std::memcpy(p, &bits, 2);
}
inline int byte_at(std::byte const* p) { return std::to_integer<int>(*p); }
inline int signed_byte_at(std::byte const* p) { return static_cast<std::int8_t>(byte_at(p)); }

}  // namespace gptq::checkpoint::detail
