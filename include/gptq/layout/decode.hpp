// Rows of packed codes back to weights.
#pragma once

#include <cstdint>

#include <gptq/config.hpp>
#include <gptq/layout/codes.hpp>

namespace gptq::detail {

/// weights[column] of one row, columns in their original order.
/// @tparam View  packed_view
template <class View, class T>
void decode_row(View const& view, index_t row, T* weights) noexcept {
  using format = typename View::format;
  auto const layout = view.layout();
  constexpr index_t at_once = 256;  // whole units
  std::uint8_t codes[at_once];
  for (index_t group = 0; group < layout.groups(); ++group) {
    std::uint8_t const* const tile = view.codes + layout.code_offset(row / packed_rows, group);
    index_t const first = group * layout.group_columns();
    index_t const columns = layout.group_columns(group);
    auto const grid = view.grid(row, group);
    for (index_t start = 0; start < columns; start += at_once) {
      index_t const count = columns - start < at_once ? columns - start : at_once;
      unpack_row<format::bits>(tile + layout.tile_bytes(start), row % packed_rows, count, codes);
      for (index_t c = 0; c < count; ++c) {
        index_t const position = first + start + c;
        index_t const column = view.order == nullptr ? position : index_t{view.order[position]};
        weights[column] = static_cast<T>(format::levels.decode(codes[c], grid));
      }
    }
  }
}

}  // namespace gptq::detail
