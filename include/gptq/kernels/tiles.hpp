// As panels.hpp, through matrix tiles, which an ISA may have.
#pragma once

#include <cstdint>

#include <gptq/activations.hpp>
#include <gptq/kernels/chunk.hpp>
#include <gptq/kernels/chunk_walk.hpp>
#include <gptq/kernels/operations.hpp>
#include <gptq/kernels/sources.hpp>

namespace gptq::detail {

/// One chunk of a row block and `tokens` tokens through tiles, added to y[token][32].
template <class Kernel>
GPTQ_INLINE void tile_chunk(std::uint8_t const* tile, index_t columns, std::int8_t const* x, index_t stride,
                            digit_sums const* sums, float const* scales, index_t tokens,
                            group_values<typename Kernel::ops> const (&values)[2],
                            typename Kernel::weights const& w, float* y) {
  using ops = typename Kernel::ops;
  constexpr int bits = Kernel::bits;
  constexpr int planes = Kernel::planes;
  constexpr int middle = Kernel::in_table ? 128 : 1 << (bits - 1);
  using source_type = packed_source<ops, bits>;
  constexpr index_t step = ops::template tile_columns<Kernel::columns>;
  alignas(64) std::uint8_t panels[2][16 * max_chunk_columns];
  [[maybe_unused]] auto const table = load_table<Kernel>(w);
  index_t const units = source_type::units(columns);
  index_t const padded = (columns + step - 1) / step * step;
  for (int half = 0; half < 2; ++half) {
    unpack_panel<ops, bits>(
        tile + half * half_unit_bytes<bits>, units,
        panels[half], [&](typename ops::codes c) __attribute__((always_inline)) {
          return ops::centred(as_level<Kernel>(table, c), middle);
        });
    for (index_t i = 16 * units * source_type::unit_columns; i < 16 * padded; ++i) panels[half][i] = 0;
  }
  ops::template multiply_tiles<planes, Kernel::columns>(
      panels[0], panels[1], x, stride, padded, tokens * planes,
      [&](index_t row, index_t rows, std::int32_t const(&words)[2][16 * 16]) __attribute__((always_inline)) {
        for (index_t r = 0; r < rows; r += planes) {
          index_t const t = (row + r) / planes;
          unrolled<2>([&]<int B>() __attribute__((always_inline)) {
            typename ops::words of_token[planes];
            unrolled<planes>([&]<int P>() __attribute__((always_inline)) {
              of_token[P] = ops::load_words(words[B] + (r + P) * 16);
            });
            float* const here = y + (t * 2 + B) * half_block_rows;
            ops::store(here, add_chunk<ops, bits, false, Kernel::levels, planes>(
                                 ops::load(here), of_token, values[B], w, sums + t * planes, scales[t]));
          });
        }
      });
}

/// Whether all chunks of a matrix go through tiles: rows shorter than a full chunk may not fill those made for it.
template <class Kernel>
GPTQ_INLINE bool fits_tiles(typename Kernel::weights const& w) {
  if constexpr (Kernel::tiled) {
    return w.chunks.stride() % Kernel::ops::template tile_columns<Kernel::columns> == 0;
  } else {
    return false;
  }
}

/// As panel(), through tiles, for any number of tokens up to panel_tokens.
template <class Kernel>
GPTQ_INLINE void tiles(typename Kernel::weights const& w, typename Kernel::activations const& a,
                       index_t row_block, token_range tokens, index_t first_chunk, index_t last_chunk,
                       float* y) {
  using ops = typename Kernel::ops;
  constexpr int bits = Kernel::bits;
  constexpr int planes = Kernel::planes;
  using source_type = packed_source<ops, bits>;
  index_t const stride = w.chunks.stride();
  chunk_walk walk(w.chunks, first_chunk);
  std::uint8_t const* tile = tile_start<ops, bits>(w, row_block, first_chunk);
  for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    index_t const columns = walk.columns();
    group_values<ops> const values[2] = {load_group<ops, bits, Kernel::levels>(w, row_block, 0, walk.group),
                                         load_group<ops, bits, Kernel::levels>(w, row_block, 1, walk.group)};
    index_t const cell = chunk * a.tokens + tokens.first;
    tile_chunk<Kernel>(tile, columns, a.digits + cell * planes * stride, stride, a.sums + cell * planes,
                       a.scales + cell, tokens.last - tokens.first, values, w, y);
    tile += source_type::units(columns) * source_type::unit_bytes;
    walk.next(columns);
  }
}

}  // namespace gptq::detail
