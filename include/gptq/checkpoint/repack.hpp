// From one checkpoint format to another without quantizing again: the decoded weights are the same numbers, or the
// layer is refused with the reason and, among ggml's types, the nearest that can hold it.
//
//   auto layer = gptq::checkpoint::from_gptq<q4>(tensors, gptq::checkpoint::gptq_version::v1);
//   if (auto type = gptq::checkpoint::lossless_type(layer)) {                       // Q5_0, say
//     std::vector<std::byte> blocks = gptq::checkpoint::repack_to_ggml(layer, *type);
//   }
//   gptq::checkpoint::awq_tensors awq = gptq::checkpoint::to_awq(layer);
//
// Everything goes by way of a quantized_layer: from_gptq, from_awq, from_compressed and repack_from_ggml read one
// exactly; to_awq and to_compressed write one exactly or refuse; repack_to_gptq and repack_to_ggml, here, do what
// to_gptq and to_ggml do without their rounding of scales and minima to float16.
//
//   layer                                   smallest type of ggml that holds it
//   fixed_zero, symmetric: 2, 3, 4 bits     Q4_0
//   asymmetric: 2, 3 bits                   Q4_0, as scale (code - zero)
//   asymmetric: 4 bits                      Q5_0 for the same reason (Q4_1 when -zero scale is a float16)
//   half_step: 2, 3, 4 bits                 Q4_0, Q4_0, Q5_0, as scale / 2 (2 code - 2 zero)
//   fixed_zero, symmetric: 8 bits           Q8_0
// act-order, groups that are no multiple of 32, and scales that float16 does not hold: none.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include <gptq/checkpoint/awq.hpp>
#include <gptq/checkpoint/compressed_tensors.hpp>
#include <gptq/checkpoint/ggml.hpp>
#include <gptq/checkpoint/ggml/lossless.hpp>
#include <gptq/checkpoint/gptq.hpp>
#include <gptq/checkpoint/words/entries.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint {

/// The smallest type whose blocks decode to the layer's weights, which depends on its scales, zero points and codes;
/// nothing when none does.
template <storage_format Format>
std::optional<ggml_type> lossless_type(quantized_layer<Format> const& layer) {
  return detail::find_lossless_type(layer);
}

/// The blocks of a layer, row after row.
/// @throws gptq::error, with row, column, reason and the nearest type, unless they decode to the layer's weights
template <storage_format Format>
std::vector<std::byte> repack_to_ggml(quantized_layer<Format> const& layer, ggml_type type) {
  return detail::lossless_blocks(layer, type);
}

/// The scheme and width of the format, with groups of 32, for tensors of a type that layers are stored in.
/// @throws gptq::error for other types
inline format_spec spec_for(ggml_type type) { return detail::spec_for(type); }

/// The layer that blocks hold: any format with groups of 32 that has their levels, such as spec_for() says.
/// @throws gptq::error as to_packed(), and where the format decodes to another weight (Q4_1, Q5_1: a minimum that is no
///   multiple of the scale)
template <storage_format Format>
quantized_layer<Format> repack_from_ggml(ggml_tensor const& tensor) {
  return detail::read_blocks<Format>(tensor);
}

/// As to_gptq(), but for a scale that float16 does not hold.
/// @throws gptq::error as to_gptq(), and for such a scale, naming row and group
template <storage_format Format>
gptq_tensors repack_to_gptq(quantized_layer<Format> const& layer, gptq_version version) {
  detail::check_float16_scales(layer, "GPTQ checkpoint");
  return to_gptq(layer, version);
}

}  // namespace gptq::checkpoint
