// The tensors of a linear layer in a compressed-tensors checkpoint.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <gptq/config.hpp>

namespace gptq::checkpoint {

/// How weight_scale is stored.
enum class compressed_scale { float16, bfloat16, float32 };

/// Bytes of a scale.
inline constexpr index_t scale_bytes(compressed_scale type) {
  return type == compressed_scale::float32 ? 4 : 2;
}

/// The tensors of a linear layer with K inputs, N outputs, G groups and codes of b bits, row-major, where
/// they lie: in a mapped file, say. Bytes, because there they may lie at any address.
struct compressed_view {
  index_t out = 0;                           ///< N
  index_t in = 0;                            ///< K
  std::span<std::byte const> weight_packed;  ///< [N, ceil(K b / 32)] int32
  std::span<std::byte const> weight_scale;   ///< [N, G] of scale_type; strategy "channel" has G = 1
  compressed_scale scale_type = compressed_scale::float16;
  std::span<std::byte const> weight_zero_point;  ///< [ceil(N b / 32), G] int32; may be empty if symmetric
  std::span<std::byte const> weight_g_idx;       ///< [K] int32 group of each input, all -1 or empty: in order
  std::span<std::byte const> weight_shape;       ///< [2] int64: N, K; may be empty
};

/// The same, owned.
struct compressed_tensors {
  std::vector<std::uint32_t> weight_packed;
  std::vector<std::byte> weight_scale;
  compressed_scale scale_type = compressed_scale::float16;
  std::vector<std::uint32_t> weight_zero_point;  ///< empty: symmetric
  std::vector<std::int32_t> weight_g_idx;        ///< empty: groups of columns in their order
  std::array<std::int64_t, 2> weight_shape{};
};

}  // namespace gptq::checkpoint
