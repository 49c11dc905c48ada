// The tensors of a GPTQ checkpoint: qweight, qzeros, scales, g_idx.
//
// Codes lie along K in an LSB-first stream of 32-bit words, one stream an output: code k of an output occupies bits
// [k b, k b + b). Zero points lie the same way along N, one stream a group. Version 1 (checkpoint_format "gptq")
// stores zero - 1, version 2 ("gptq_v2") the zero itself. Widths 2, 3, 4 and 8.
//
//   auto packed = gptq::checkpoint::to_packed<q4>(tensors, gptq::checkpoint::gptq_version::v1);
//   auto layer = gptq::checkpoint::from_gptq<q4>(tensors, gptq::checkpoint::gptq_version::v1);
//
// Act-order or not, groups are contiguous in both. The structs of the tensors are in gptq/tensors.hpp: gptq_tensors
// owns them, gptq_view has them where they lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <gptq/checkpoint/gptq/checks.hpp>
#include <gptq/checkpoint/gptq/packer.hpp>
#include <gptq/checkpoint/gptq/reader.hpp>
#include <gptq/checkpoint/gptq/tensors.hpp>
#include <gptq/checkpoint/gptq/version.hpp>
#include <gptq/checkpoint/gptq/writer.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>
#include <gptq/packed.hpp>

namespace gptq::checkpoint {

/// The checkpoint tensors of a layer. float32 scales are rounded to float16, which is all the format has.
/// @param published_defects  for version 1 only: write a zero point of 0 as the published writers do, which OR an
///        unmasked -1 into the word and so destroy the zeros above it. Without it a zero point of 0 is an error.
/// @throws gptq::error when K bits or N bits is not a multiple of 32, when the scheme's zero point is not an
///         integer (half step), when a zero point is 0 in version 1, or a scale beyond the range of float16
template <storage_format Format>
gptq_tensors to_gptq(quantized_layer<Format> const& layer, gptq_version version = gptq_version::v1,
                     bool published_defects = false) {
  return detail::write_gptq(layer, version, published_defects);
}

/// A view of tensors, for as long as they are there.
inline gptq_view as_view(gptq_tensors const& tensors, index_t out, index_t in) {
  auto const bytes = [](auto const& values) { return std::as_bytes(std::span(values)); };
  return {
      out, in, bytes(tensors.qweight), bytes(tensors.qzeros), bytes(tensors.scales), bytes(tensors.g_idx)};
}

/// The layer that checkpoint tensors hold, its columns ordered by group once and for all. A checkpoint with
/// `sym: true` is one of fixed_zero; `symmetric` and half-step layers are not read.
/// @throws gptq::error, naming the row, column or group, when a tensor has not the size that the format gives it;
///   when g_idx does not fill groups of Format::group_size columns (but for the last); when a zero point is not
///   fixed_zero's, or is one that version 1 cannot hold; when a scale is not finite
template <storage_format Format>
quantized_layer<Format> from_gptq(gptq_view const& tensors, gptq_version version) {
  return detail::read_gptq<Format>(tensors, version);
}

/// Checkpoint tensors on their way into the packed layout, by any number of threads.
template <storage_format Format>
class gptq_packer {
 public:
  /// Reads the scales, zero points and g_idx. The tensors must outlive this object. Throws as from_gptq().
  gptq_packer(gptq_view const& tensors, gptq_version version)
      : tensors_(tensors), version_(version), order_(detail::check_gptq<Format>(tensors, version)) {}

  packed_layout<Format> layout() const { return {tensors_.out, tensors_.in}; }
  /// Original column of each stored one; empty: the same.
  std::vector<std::int32_t> const& order() const { return order_; }
  /// Writes row blocks [first, last) of layout() into arrays as packed_view has them, padding included. Allocates
  /// in * 64 bytes for a while if columns are reordered or groups are no whole words of codes, and nothing otherwise.
  void pack(index_t first, index_t last, std::uint8_t* codes, typename Format::scale* scales,
            std::uint8_t* zeros) const {
    detail::pack_row_blocks<Format>(tensors_, version_, order_, first, last, codes, scales, zeros);
  }

 private:
  gptq_view tensors_;
  gptq_version version_;
  std::vector<std::int32_t> order_;
};

/// pack(from_gptq<Format>(tensors, version)), without the layer in between, on several threads, by an executor as
/// gptq/parallel.hpp has them.
template <storage_format Format, class Executor>
packed_matrix<Format> to_packed(gptq_view const& tensors, gptq_version version, Executor&& executor,
                                int parts) {
  return detail::pack_words<Format>(tensors, version, std::forward<Executor>(executor), parts);
}
/// The same on this thread.
template <storage_format Format>
packed_matrix<Format> to_packed(gptq_view const& tensors, gptq_version version) {
  return to_packed<Format>(
      tensors, version, [](int /*parts*/, auto const& work) { work(0); }, 1);
}

/// The version that zero points prove, whatever a checkpoint says of itself; nothing where they fit both. A
/// symmetric checkpoint has one zero point, 2^(bits-1). An asymmetric one of version 1 never stores 2^bits - 1,
/// since its writers keep zero points within 1 and 2^bits - 1.
/// @throws gptq::error when qzeros has no whole number of rows of `out` zero points, or bits is not 2, 3, 4 or 8
inline std::optional<gptq_version> proven_version(gptq_view const& tensors, int bits, bool symmetric) {
  return detail::find_proven_version(tensors, bits, symmetric);
}

}  // namespace gptq::checkpoint
