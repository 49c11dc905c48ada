// The tensors of ONNX Runtime's MatMulNBits (domain com.microsoft), which multiplies by a quantized matrix:
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
//
//   auto node = gptq::checkpoint::to_onnx(layer);      // B, scales, zero_points, g_idx; K, N, bits, block_size
//
// Codes lie along K in blocks with one scale, the first in the lowest bits of a byte; each output begins a byte of zero
// points. Widths 2, 4 and 8. The struct is in onnx/tensors.hpp.
#pragma once

#include <gptq/checkpoint/onnx/tensors.hpp>
#include <gptq/checkpoint/onnx/writer.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint {

/// The inputs and attributes of a node that multiplies by the layer's decoded weights, transposed as the operator has
/// them. Where columns are reordered there is a g_idx, and zero points are of the scales' type: ONNX Runtime 1.32 takes
/// those of a few bits for 2^(bits - 1) beside a g_idx, which it has for 2 and 4 bits. A whole row is one block, padded
/// to a power of two.
/// @throws gptq::error when a layer has no weights, or groups are not a power of two of 16 or more columns
template <storage_format Format>
matmul_nbits<typename Format::scale> to_onnx(quantized_layer<Format> const& layer) {
  return detail::write_onnx(layer);
}

}  // namespace gptq::checkpoint
