// Codes, scales and zero points into packed memory, without exceptions or memory of its own.
#pragma once

#include <algorithm>
#include <cstdint>

#include <gptq/layout.hpp>

namespace gptq::detail {

/// codes[out, in], one a byte, and scales and zeros[out, groups], `zeros` null without a stored zero point; padding
/// is 0. Scales are divided by the matrix scale where there is one. The column order is the caller's to copy.
template <storage_format Format>
void pack_arrays(std::uint8_t const* codes, float const* scales, std::uint8_t const* zeros,
                 packed_memory<Format> const& to) {
  auto const shape = to.layout();
  // Streams of zero points are written bit by bit.
  if (to.out % packed_rows != 0) {
    index_t const last = to.out / packed_rows;
    std::fill(to.codes + shape.code_offset(last, 0), to.codes + shape.code_bytes(), std::uint8_t{0});
    std::fill(to.scales + shape.scale_offset(last, 0), to.scales + shape.scale_count(),
              typename Format::scale(0.0F));
  }
  if constexpr (Format::has_zero_point) std::fill(to.zeros, to.zeros + shape.zero_bytes(), std::uint8_t{0});
  for (index_t row = 0; row < to.out; ++row) {
    index_t const block = row / packed_rows;
    index_t const row_in_block = row % packed_rows;
    for (index_t group = 0; group < shape.groups(); ++group) {
      index_t const at = row * shape.groups() + group;
      float scale = scales[at];
      if constexpr (Format::has_matrix_scale) scale /= to.matrix_scale;
      pack_row<Format::bits>(codes + row * to.in + group * shape.group_columns(), shape.group_columns(group),
                             row_in_block, to.codes + shape.code_offset(block, group));
      to.scales[shape.scale_offset(block, group) + row_in_block] = typename Format::scale(scale);
      if constexpr (Format::has_zero_point) {
        set_stream_code<Format::bits>(to.zeros + shape.zero_offset(block, group), row_in_block, zeros[at]);
      }
    }
  }
}

}  // namespace gptq::detail
