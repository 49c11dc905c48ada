// The tensors of an AWQ checkpoint as AutoAWQ writes them ("version": "gemm"): qweight, qzeros, scales.
//
// Codes of 4 bits lie along N, eight outputs to a 32-bit word: output 8 j + order[i] in bits 4 i..4 i + 3 of word j,
// with order = 0, 2, 4, 6, 1, 3, 5, 7. Zero points lie the same way and are stored as they are. Columns are in their
// original order.
//
//   auto packed = gptq::checkpoint::to_packed<gptq::format<gptq::asymmetric, 4, 128>>(tensors);
//   auto layer = gptq::checkpoint::from_awq<gptq::format<gptq::asymmetric, 4, 128>>(tensors);
//
// The structs of the tensors are in awq/tensors.hpp: awq_view has them where they lie, awq_tensors owns them.
#pragma once

#include <span>

#include <gptq/checkpoint/awq/packer.hpp>
#include <gptq/checkpoint/awq/reader.hpp>
#include <gptq/checkpoint/awq/tensors.hpp>
#include <gptq/checkpoint/awq/writer.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>
#include <gptq/packed.hpp>

namespace gptq::checkpoint {

/// The layer that the tensors hold, exactly. Format is asymmetric, of 4 bits.
/// @throws gptq::error when a tensor has not the size that format and shape give it, naming it; when a scale is not
///   finite, naming row and group
template <storage_format Format>
quantized_layer<Format> from_awq(awq_view const& tensors) {
  return detail::read_awq<Format>(tensors);
}

/// pack(from_awq<Format>(tensors)), without the layer in between, on several threads, by an executor as
/// gptq/parallel.hpp has them. Throws as from_awq().
template <storage_format Format, class Executor>
packed_matrix<Format> to_packed(awq_view const& tensors, Executor&& executor, int parts) {
  return detail::pack_awq<Format>(tensors, executor, parts);
}
/// The same on this thread.
template <storage_format Format>
packed_matrix<Format> to_packed(awq_view const& tensors) {
  return to_packed<Format>(
      tensors, [](int /*parts*/, auto const& work) { work(0); }, 1);
}

/// The tensors of a layer of 4 bits, its zero points written out where the scheme has one for all.
/// @throws gptq::error when the outputs are no multiple of 8; when columns are reordered, for which AWQ has no place;
///   when float16 cannot hold a scale, naming row and group
template <storage_format Format>
awq_tensors to_awq(quantized_layer<Format> const& layer) {
  return detail::write_awq(layer);
}

/// A view of tensors, for as long as they are there.
inline awq_view as_view(awq_tensors const& tensors, index_t out, index_t in) {
  auto const bytes = [](auto const& values) { return std::as_bytes(std::span(values)); };
  return {out, in, bytes(tensors.qweight), bytes(tensors.qzeros), bytes(tensors.scales)};
}

}  // namespace gptq::checkpoint
