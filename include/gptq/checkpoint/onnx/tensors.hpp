// The tensors of a MatMulNBits node.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <gptq/config.hpp>

namespace gptq::checkpoint {

/// The inputs and attributes of a node with K inputs, N outputs and ceil(K / block_size) blocks, row-major.
/// @tparam Scale  float16 or float: the type of the node's A and Y, too
template <class Scale>
struct matmul_nbits {
  index_t in = 0;          ///< attribute K
  index_t out = 0;         ///< attribute N
  int bits = 4;            ///< attribute bits
  index_t block_size = 0;  ///< attribute block_size: a power of two, 16 or more

  std::vector<std::uint8_t> b;            ///< B [N, blocks, block_size bits / 8]; what is beyond K is 0
  std::vector<Scale> scales;              ///< scales [N, blocks]
  std::vector<std::uint8_t> zero_points;  ///< zero_points [N, ceil(blocks bits / 8)]; empty: 2^(bits - 1), or
  std::vector<Scale> wide_zero_points;    ///< zero_points [N, blocks], in place of those beside a g_idx
  std::vector<std::int32_t> g_idx;        ///< g_idx [blocks block_size]; empty: columns are in their order
};

}  // namespace gptq::checkpoint
