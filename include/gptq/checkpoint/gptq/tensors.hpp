// The tensors of a linear layer in a GPTQ checkpoint.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <gptq/config.hpp>
#include <gptq/float16.hpp>

namespace gptq::checkpoint {

/// How zero points are stored: v1 (checkpoint_format "gptq") as zero - 1, v2 ("gptq_v2") as they are.
enum class gptq_version { v1, v2 };

/// The four tensors of a linear layer with K inputs, N outputs and G groups, row-major.
struct gptq_tensors {
  std::vector<std::uint32_t> qweight;  ///< [K bits / 32, N]
  std::vector<std::uint32_t> qzeros;   ///< [G, N bits / 32]
  std::vector<float16> scales;         ///< [G, N]
  std::vector<std::int32_t> g_idx;     ///< [K] group of each input
};

/// The same tensors where somebody else has them: in a mapped file, say. Bytes, because there they may lie at any
/// address.
struct gptq_view {
  index_t out = 0;
  index_t in = 0;
  std::span<std::byte const> qweight;
  std::span<std::byte const> qzeros;
  std::span<std::byte const> scales;
  std::span<std::byte const> g_idx;  ///< may be empty: groups of columns in their original order
};

}  // namespace gptq::checkpoint
