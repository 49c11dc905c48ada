// A layer as the tensors of a MatMulNBits node.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>

#include <gptq/checkpoint/onnx/tensors.hpp>
#include <gptq/error.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint::detail {

inline constexpr index_t least_onnx_block = 16;

/// Columns of a block for groups of so many columns.
inline index_t onnx_block_size(index_t group_columns, bool is_whole_row) {
  auto const power = static_cast<index_t>(std::bit_ceil(static_cast<std::size_t>(group_columns)));
  if (!is_whole_row && (power != group_columns || group_columns < least_onnx_block)) {
    throw error("ONNX MatMulNBits: groups of " + std::to_string(group_columns) +
                " columns: a block has a power of two of them, " + std::to_string(least_onnx_block) +
                " or more");
  }
  return std::max(power, least_onnx_block);
}

template <storage_format Format>
matmul_nbits<typename Format::scale> write_onnx(quantized_layer<Format> const& layer) {
  constexpr int bits = Format::bits;
  static_assert(bits != 3, "MatMulNBits: codes of 3 bits would not fill bytes");
  static_assert(!Format::levels.is_half_step(), "MatMulNBits has integer zero points");
  static_assert(Format::has_zero_point || Format::levels.zero == static_cast<float>(1 << (bits - 1)),
                "MatMulNBits without zero points has the middle code as its zero point");
  check(layer);
  if (layer.in == 0 || layer.out == 0) throw error("ONNX MatMulNBits: a layer without weights");
  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  constexpr index_t per_byte = 8 / bits;
  matmul_nbits<typename Format::scale> node;
  node.in = layer.in;
  node.out = layer.out;
  node.bits = bits;
  node.block_size = onnx_block_size(Format::group_columns(layer.in), Format::group_size == whole_row);
  index_t const blocks = layer.groups();
  index_t const row_bytes = blocks * node.block_size / per_byte;
  index_t const zero_bytes = (blocks + per_byte - 1) / per_byte;
  node.b.resize(at(layer.out * row_bytes));
  bool const has_bytes = Format::has_zero_point && layer.order.empty();
  if (has_bytes) node.zero_points.resize(at(layer.out * zero_bytes));
  auto const put = [&](std::uint8_t& byte, index_t i, int number) {
    byte = static_cast<std::uint8_t>(byte | number << (i % per_byte * bits));
  };
  for (index_t row = 0; row < layer.out; ++row) {
    for (index_t p = 0; p < layer.in; ++p) {
      index_t const column = layer.order.empty() ? p : index_t{layer.order[at(p)]};
      put(node.b[at(row * row_bytes + column / per_byte)], column, layer.code(row, p));
    }
    for (index_t group = 0; group < blocks; ++group) {
      grid const g = layer.grid(row, group);
      node.scales.emplace_back(g.scale);
      if (has_bytes) {
        put(node.zero_points[at(row * zero_bytes + group / per_byte)], group, g.zero);
      } else if (Format::has_zero_point) {
        node.wide_zero_points.emplace_back(static_cast<float>(g.zero));
      }
    }
  }
  if (!layer.order.empty()) {
    node.g_idx.resize(at(blocks * node.block_size), static_cast<std::int32_t>(blocks - 1));
    for (index_t p = 0; p < layer.in; ++p) {
      node.g_idx[at(index_t{layer.order[at(p)]})] = static_cast<std::int32_t>(layer.group(p));
    }
  }
  return node;
}

}  // namespace gptq::checkpoint::detail
