// Numbers of a few bits in little-endian streams of 32-bit words, lowest bits first: number i of b bits occupies
// bits [i b, i b + b) of its stream. The words of a stream may lie any distance apart.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <gptq/config.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>

namespace gptq::checkpoint::detail {

static_assert(std::endian::native == std::endian::little, "checkpoints are read without swapping bytes");

/// Shapes beyond this are refused: products of two extents and a few bytes then stay within 64 bits.
inline constexpr index_t largest_extent = index_t{1} << 31;

/// Word i of memory at any address.
inline std::uint32_t word_at(std::span<std::byte const> words, index_t i) {
  std::uint32_t word = 0;
  std::memcpy(&word, words.data() + 4 * static_cast<std::size_t>(i), sizeof word);
  return word;
}

/// Number i of a stream whose words lie `stride` apart from word `start` on.
inline int entry_at(std::span<std::byte const> words, index_t start, index_t stride, index_t i, int bits) {
  index_t const bit = i * bits;
  auto const shift = static_cast<int>(bit % 32);
  std::uint64_t both = word_at(words, start + bit / 32 * stride);
  if (shift + bits > 32) both |= std::uint64_t{word_at(words, start + (bit / 32 + 1) * stride)} << 32;
  return static_cast<int>(both >> shift & ((1U << bits) - 1U));
}

/// ORs `value` into number i of such a stream; what goes beyond its bits reaches the rest of the word.
inline void put_entry(std::vector<std::uint32_t>& words, index_t start, index_t stride, index_t i, int bits,
                      std::uint32_t value) {
  index_t const bit = i * bits;
  auto const shift = static_cast<int>(bit % 32);
  words[static_cast<std::size_t>(start + bit / 32 * stride)] |= value << shift;
  if (shift + bits > 32) {
    words[static_cast<std::size_t>(start + (bit / 32 + 1) * stride)] |= value >> (32 - shift);
  }
}

/// Word i of a stream that repeats the number `value` of `bits` bits.
constexpr std::uint32_t repeated_word(int bits, std::uint32_t value, index_t i) {
  std::uint32_t word = 0;
  for (int bit = 0; bit < 32; ++bit) {
    word |= (value >> ((i % bits * 32 + bit) % bits) & 1U) << bit;
  }
  return word;
}

/// Throws unless a tensor has this many bytes.
/// @param name  "GPTQ checkpoint: qweight"
inline void check_bytes(std::string const& name, std::span<std::byte const> bytes, index_t expected) {
  if (bytes.size() != static_cast<std::size_t>(expected)) {
    throw error(name + " has " + std::to_string(bytes.size()) + " bytes, not " + std::to_string(expected));
  }
}

/// With as many digits as tell float32 numbers apart.
inline std::string exact_number(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
  return text;
}

/// A number that float16 holds; throws, naming it, when it is another.
inline float16 exact_float16(float value, std::string const& name) {
  float16 const half(value);
  if (static_cast<float>(half) != value) {
    throw error(name + " is " + exact_number(value) + ", which float16 cannot hold");
  }
  return half;
}

/// Throws, naming row and group, when a layer has a scale that float16 does not hold.
/// @param name  "GPTQ checkpoint", for errors
template <class Layer>
void check_float16_scales(Layer const& layer, std::string const& name) {
  for (std::size_t i = 0; i < layer.scales.size(); ++i) {
    auto const groups = static_cast<std::size_t>(layer.groups());
    exact_float16(layer.scales[i], name + ": the scale of row " + std::to_string(i / groups) + ", group " +
                                       std::to_string(i % groups));
  }
}

}  // namespace gptq::checkpoint::detail
