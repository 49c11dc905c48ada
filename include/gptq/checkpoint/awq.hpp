// The tensors of an AWQ checkpoint as AutoAWQ writes them ("version": "gemm"): qweight, qzeros, scales.
//
// Codes of 4 bits lie along N, eight outputs to a 32-bit word: output 8 j + order[i] in bits 4 i..4 i + 3 of word j,
// with order = 0, 2, 4, 6, 1, 3, 5, 7. Zero points lie the same way and are stored as they are. Columns are in their
// original order.
//
//   auto layer = gptq::checkpoint::from_awq<gptq::format<gptq::asymmetric, 4, 128>>(tensors);
//   auto packed = gptq::pack(layer);
//
// The struct of the tensors, awq_view, is in awq/tensors.hpp.
#pragma once

#include <gptq/checkpoint/awq/reader.hpp>
#include <gptq/checkpoint/awq/tensors.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint {

/// The layer that the tensors hold, exactly. Format is asymmetric, of 4 bits.
/// @throws gptq::error when a tensor has not the size that format and shape give it, naming it; when a scale is not
///   finite, naming row and group
template <storage_format Format>
quantized_layer<Format> from_awq(awq_view const& tensors) {
  return detail::read_awq<Format>(tensors);
}

}  // namespace gptq::checkpoint
