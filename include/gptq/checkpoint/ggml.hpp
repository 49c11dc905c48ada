// The element types of GGUF files: what ggml calls them, what their blocks hold, and which of them hold what this
// library quantizes.
//
//   std::vector<float> row(tensor.shape[1]);
//   gptq::checkpoint::to_float(tensor, 0, row);                                   // the first row, decoded
//   auto packed = gptq::checkpoint::to_packed<gptq::format<gptq::fixed_zero, 4, 32>>(tensor);      // Q4_0
//   std::vector<std::byte> blocks = gptq::checkpoint::to_ggml(layer, gptq::checkpoint::ggml_type::q4_0);
//
// A row is a whole number of blocks, each with scales of its own. What the bytes of a block mean stands in the file
// of its type in ggml/blocks/; ggml/types.hpp lists all types; ggml/tensor.hpp has the enumeration ggml_type and
// ggml_tensor { type, shape, bytes }, whose last extent is that of a row.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gptq/checkpoint/ggml/layers.hpp>
#include <gptq/checkpoint/ggml/tensor.hpp>
#include <gptq/checkpoint/ggml/types.hpp>
#include <gptq/checkpoint/ggml/values.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>
#include <gptq/packed.hpp>

namespace gptq::checkpoint {

/// As ggml writes it: "F32", "Q4_0", ... @throws gptq::error, as the next two, for a number that is no type
inline std::string_view type_name(ggml_type type) { return detail::entry(type).name; }
/// Elements of a block; 1 for types that are not quantized.
inline std::size_t block_size(ggml_type type) { return detail::entry(type).block_size; }
/// Bytes of a block.
inline std::size_t block_bytes(ggml_type type) { return detail::entry(type).block_bytes; }
/// Whether to_float() decodes it: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q4_K and Q6_K.
inline bool is_decodable(ggml_type type) {
  auto const* const known = detail::find_type(type);
  return known != nullptr && known->decode != nullptr;
}

/// "Q4_0 [768, 288]"
inline std::string to_string(ggml_tensor const& tensor) { return detail::describe(tensor); }

/// Decodes elements [first, first + out.size()), both multiples of block_size(). Exact, but for the sum of Q4_1,
/// Q5_1 and Q4_K and the product of Q6_K, which are rounded to float once.
/// @throws gptq::error for types that are not decodable and for elements that the tensor does not have
inline void to_float(ggml_tensor const& tensor, std::size_t first, std::span<float> out) {
  detail::convert_to_float(tensor, first, out);
}
/// All elements.
inline std::vector<float> to_float(ggml_tensor const& tensor) {
  std::vector<float> values(detail::float_count(tensor));
  to_float(tensor, 0, values);
  return values;
}

/// Encodes a whole number of blocks as F32, F16, BF16 or Q8_0, rounded to nearest; Q8_0 as ggml does it: scale
/// amax / 127, halves away from zero.
/// @throws gptq::error for other types, and for a value beyond the type's range, naming its position
inline std::vector<std::byte> from_float(ggml_type type, std::span<float const> values) {
  return detail::encode(type, values);
}

/// The smallest type whose blocks hold these levels, of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0; nothing when none
/// does.
inline std::optional<ggml_type> type_for(code_levels const& levels) { return detail::smallest_type(levels); }

/// Throws gptq::error, with the reason and the nearest type that can, unless blocks of `type` (one of those above)
/// hold levels in groups of `group_size` columns, or of whole rows.
inline void check_type(ggml_type type, code_levels const& levels, int group_size) {
  detail::check_holds(type, levels, group_size);
}

/// A tensor of whole rows of Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0 blocks as a packed matrix of a format with groups of 32: the same
/// levels, scales and zero points, so the same weights (for Q4_1 and Q5_1 to the float16 rounding of m).
/// @throws gptq::error, naming row and block, for a level that the format does not have, a minimum that belongs to
///   none of its zero points, and a scale that is not finite
template <storage_format Format>
packed_matrix<Format> to_packed(ggml_tensor const& tensor) {
  return detail::pack_blocks<Format>(tensor);
}
/// The same into memory of the caller's, without a column order; it throws for memory of another shape as well. What
/// is in the memory after an error is of no use.
template <storage_format Format>
void to_packed(ggml_tensor const& tensor, packed_memory<Format> const& to) {
  detail::pack_blocks<Format>(tensor, to);
}

/// The blocks of a layer, row after row, one scale for each 32 columns. Codes and scales are stored as they are
/// (float32 scales rounded to float16); the minimum of Q4_1 and Q5_1 is -zero scale in float16, so that a group's weights
/// move by at most half a unit in its last place.
/// @throws gptq::error as check_type(); when columns are reordered, for which GGUF has no place; when rows are not
///   whole blocks; and when a scale or minimum is beyond float16
template <storage_format Format>
std::vector<std::byte> to_ggml(quantized_layer<Format> const& layer, ggml_type type) {
  return detail::layer_blocks(layer, type);
}

}  // namespace gptq::checkpoint
