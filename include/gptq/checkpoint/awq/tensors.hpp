// The tensors of a linear layer in an AWQ checkpoint, and the order of numbers in their words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <gptq/config.hpp>
#include <gptq/float16.hpp>

namespace gptq::checkpoint {

/// The tensors of a linear layer with K inputs, N outputs and G groups, row-major, where they lie: in a
/// mapped file, say. Bytes, because there they may lie at any address.
struct awq_view {
  index_t out = 0;                     ///< N, a multiple of 8
  index_t in = 0;                      ///< K
  std::span<std::byte const> qweight;  ///< [K, N / 8] int32
  std::span<std::byte const> qzeros;   ///< [G, N / 8] int32
  std::span<std::byte const> scales;   ///< [G, N] float16
};

/// The same, owned.
struct awq_tensors {
  std::vector<std::uint32_t> qweight;
  std::vector<std::uint32_t> qzeros;
  std::vector<float16> scales;
};

namespace detail {

inline constexpr index_t awq_outputs = 8;  // of a word
/// Where output i of a word has its four bits.
inline constexpr int awq_shift[awq_outputs] = {0, 16, 4, 20, 8, 24, 12, 28};

}  // namespace detail
}  // namespace gptq::checkpoint
