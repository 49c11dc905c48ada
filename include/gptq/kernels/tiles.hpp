// As panels.hpp, through matrix tiles, which an ISA may have.
#pragma once

#include <cstdint>

#include <gptq/activations.hpp>
#include <gptq/kernels/chunk.hpp>
#include <gptq/kernels/chunk_walk.hpp>
#include <gptq/kernels/operations.hpp>
#include <gptq/kernels/sources.hpp>

namespace gptq::detail {

/// An ISA with matrix tiles offers what isa/amx_int8.hpp has.
template <class Ops>
inline constexpr bool has_tiles = requires {
  typename Ops::template tiles<1, 128>;
};

/// One chunk of a row block and `tokens` tokens through tiles, added to y[token][32].
template <class Ops, int Bits, zero_kind Zero, int Columns, int Planes, class Scale>
GPTQ_INLINE void tile_chunk(std::uint8_t const* tile, index_t columns, std::int8_t const* x, index_t stride,
                            digit_sums const* sums, float const* scales, index_t tokens,
                            group_values<Ops> const (&values)[2], weights<Scale> const& w, float* y) {
  using source_type = packed_source<Ops, Bits>;
  constexpr index_t step = Ops::template tile_columns<Columns>;
  alignas(64) std::uint8_t panels[2][16 * max_chunk_columns];
  index_t const units = source_type::units(columns);
  index_t const padded = (columns + step - 1) / step * step;
  for (int half = 0; half < 2; ++half) {
    unpack_panel<Ops, Bits>(tile + half * half_unit_bytes<Bits>, units, panels[half],
                            [](typename Ops::codes c) { return Ops::centred(c, 1 << (Bits - 1)); });
    for (index_t i = 16 * units * source_type::unit_columns; i < 16 * padded; ++i) panels[half][i] = 0;
  }
  Ops::template multiply_tiles<Planes, Columns>(
      panels[0], panels[1], x, stride, padded, tokens * Planes,
      [&](index_t row, index_t rows, std::int32_t const(&words)[2][16 * 16]) __attribute__((always_inline)) {
        for (index_t r = 0; r < rows; r += Planes) {
          index_t const t = (row + r) / Planes;
          unrolled<2>([&]<int B>() __attribute__((always_inline)) {
            typename Ops::words of_token[Planes];
            unrolled<Planes>([&]<int P>() __attribute__((always_inline)) {
              of_token[P] = Ops::load_words(words[B] + (r + P) * 16);
            });
            float* const here = y + (t * 2 + B) * half_block_rows;
            Ops::store(here, add_chunk<Ops, Bits, false, Zero, Planes>(Ops::load(here), of_token, values[B],
                                                                       w, sums + t * Planes, scales[t]));
          });
        }
      });
}

/// As panel(), through tiles.
template <class Ops, int Bits, zero_kind Zero, int Columns, class Scale, precision Precision>
GPTQ_INLINE void tiled(weights<Scale> const& w, activations<Precision> const& a, index_t row_block,
                       index_t first_token, index_t last_token, index_t first_chunk, index_t last_chunk,
                       float* y) {
  constexpr int planes = digit_planes(Precision);
  using source_type = packed_source<Ops, Bits>;
  index_t const stride = w.chunks.stride();
  chunk_walk walk(w.chunks, first_chunk);
  std::uint8_t const* tile = tile_start<Ops, Bits>(w, row_block, first_chunk);
  for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    index_t const columns = walk.columns();
    group_values<Ops> const values[2] = {load_group<Ops, Bits, Zero>(w, row_block, 0, walk.group),
                                         load_group<Ops, Bits, Zero>(w, row_block, 1, walk.group)};
    index_t const cell = chunk * a.tokens + first_token;
    tile_chunk<Ops, Bits, Zero, Columns, planes>(tile, columns, a.digits + cell * planes * stride, stride,
                                                 a.sums + cell * planes, a.scales + cell,
                                                 last_token - first_token, values, w, y);
    tile += source_type::units(columns) * source_type::unit_bytes;
    walk.next(columns);
  }
}

}  // namespace gptq::detail
