// The tensors of a compressed-tensors checkpoint ("format": "pack-quantized"), as llm-compressor writes them:
// weight_packed, weight_scale, weight_zero_point, weight_shape, weight_g_idx.
//
// A code q of b bits is stored as q + 2^(b-1), and so is a zero point: as the codes and zeros here. Codes lie along K
// in an LSB-first stream of 32-bit words, one stream an output that begins with a word of its own: code k of an
// output occupies bits [k b, k b + b). Zero points lie the same way along N, one stream a group. Symmetric layers
// (fixed_zero) have none. Scales are of the model's own type.
//
//   auto layer = gptq::checkpoint::from_compressed<gptq::format<gptq::fixed_zero, 4, 128>>(tensors);
//   auto packed = gptq::pack(layer);
//
// The structs of the tensors are in compressed_tensors/tensors.hpp: compressed_view has them where they lie,
// compressed_tensors owns them. 3 bits are packed densely, as compressed-tensors 0.20 packs them; tensors that leave bits
// of each word unused are refused for their sizes.
#pragma once

#include <span>

#include <gptq/checkpoint/compressed_tensors/reader.hpp>
#include <gptq/checkpoint/compressed_tensors/tensors.hpp>
#include <gptq/checkpoint/compressed_tensors/writer.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint {

/// The layer that the tensors hold, exactly, its columns ordered by group once and for all. Format is asymmetric or
/// fixed_zero, its group size that of strategy "group", or whole_row for "channel".
/// @throws gptq::error when a tensor has not the size that format and shape give it, naming it, or when weight_shape
///   says something else; when weight_g_idx does not fill groups of Format::group_size columns (but for the last);
///   when a zero point is not fixed_zero's; when a scale is not finite or Format::scale cannot hold it
template <storage_format Format>
quantized_layer<Format> from_compressed(compressed_view const& tensors) {
  return detail::read_compressed<Format>(tensors);
}

/// Whether float16 holds every scale of weight_scale, as it does for most models in bfloat16: a format with float16
/// scales then loses nothing. Scales that are not finite do not count.
inline bool scales_fit_float16(compressed_view const& tensors) {
  return detail::float16_holds_scales(tensors);
}

/// The tensors of a layer, with scales of `type`; weight_g_idx where columns are reordered ("actorder": "group", which
/// vLLM reads and newer compressed-tensors packages do not). Symmetric and fixed_zero layers have no zero points.
/// @throws gptq::error, naming row and group, when the type cannot hold a scale exactly
template <storage_format Format>
compressed_tensors to_compressed(quantized_layer<Format> const& layer,
                                 compressed_scale type = compressed_scale::float16) {
  return detail::write_compressed(layer, type);
}

/// A view of tensors, for as long as they are there.
inline compressed_view as_view(compressed_tensors const& tensors) {
  auto const bytes = [](auto const& values) { return std::as_bytes(std::span(values)); };
  return {tensors.weight_shape[0],     tensors.weight_shape[1],    bytes(tensors.weight_packed),
          tensors.weight_scale,        tensors.scale_type,         bytes(tensors.weight_zero_point),
          bytes(tensors.weight_g_idx), bytes(tensors.weight_shape)};
}

}  // namespace gptq::checkpoint
