// Products from panels: the codes of half a row block and a chunk, unpacked once to a byte each for many tokens.
#pragma once

#include <cstdint>

#include <gptq/activations.hpp>
#include <gptq/kernels/chunk.hpp>
#include <gptq/kernels/chunk_walk.hpp>
#include <gptq/kernels/dot.hpp>
#include <gptq/kernels/operations.hpp>
#include <gptq/kernels/sources.hpp>

namespace gptq::detail {

/// Tokens that share an unpacked panel; the y of half a row block for all of them stays in the first-level
/// cache.
inline constexpr index_t panel_tokens = 128;

/// Bytes of a panel: one for each code of a chunk, two where a code is worked on in halves.
template <class Ops, int Bits>
inline constexpr index_t panel_bytes =
    (max_chunk_columns / panel_source<Ops, Bits>::unit_columns) * panel_source<Ops, Bits>::unit_bytes;

/// One chunk of `Tokens` tokens and `Blocks` half blocks, from panels, added to sums[token][Blocks * 16].
template <class Ops, int Bits, zero_kind Zero, int Columns, int Tokens, int Blocks, int Planes, class Scale>
GPTQ_INLINE void panel_chunk(panel_source<Ops, Bits> const (&source)[Blocks], std::int8_t const* x,
                             index_t stride, digit_sums const* sums, float const* scales, index_t columns,
                             group_values<Ops> const (&values)[Blocks], weights<Scale> const& w, float* y) {
  typename Ops::words total[Tokens * Planes][Blocks];
  dot_chunk<Ops, panel_source<Ops, Bits>, Columns, Planes>(source, x, stride, sums, columns, total);
  unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
    unrolled<Blocks>([&]<int B>() __attribute__((always_inline)) {
      typename Ops::words of_token[Planes];
      unrolled<Planes>([&]<int P>()
                           __attribute__((always_inline)) { of_token[P] = total[T * Planes + P][B]; });
      float* const here = y + (T * Blocks + B) * half_block_rows;
      Ops::store(here, add_chunk<Ops, Bits, false, Zero, Planes>(Ops::load(here), of_token, values[B], w,
                                                                 sums + T * Planes, scales[T]));
    });
  });
}

/// Where panels add up what panel_tokens tokens get from a row block: the halves of `Blocks` at a time side
/// by side.
template <int Blocks>
GPTQ_INLINE constexpr index_t panel_sum(index_t token, int half) {
  return ((half / Blocks * panel_tokens + token) * Blocks + half % Blocks) * half_block_rows;
}

/// Chunks first_chunk..last_chunk-1 of tokens first_token..last_token-1, at most panel_tokens, of a row
/// block, added to y[panel_sum(token, half)].
template <class Ops, int Bits, zero_kind Zero, int Columns, int Blocks, class Scale, precision Precision>
GPTQ_INLINE void panel(weights<Scale> const& w, activations<Precision> const& a, index_t row_block,
                       index_t first_token, index_t last_token, index_t first_chunk, index_t last_chunk,
                       float* y) {
  constexpr int planes = digit_planes(Precision);
  constexpr int at_once = Ops::panel_rows / planes > 1 ? Ops::panel_rows / planes : 1;
  using source_type = packed_source<Ops, Bits>;
  alignas(64) std::uint8_t panels[Blocks][panel_bytes<Ops, Bits>];
  index_t const stride = w.chunks.stride();
  index_t const tokens = last_token - first_token;
  chunk_walk walk(w.chunks, first_chunk);
  std::uint8_t const* tile = tile_start<Ops, Bits>(w, row_block, first_chunk);
  for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    index_t const columns = walk.columns();
    index_t const units = source_type::units(columns);
    index_t const cell = chunk * a.tokens + first_token;
    for (int half = 0; half < 2; half += Blocks) {
      panel_source<Ops, Bits> source[Blocks];
      group_values<Ops> values[Blocks];
      unrolled<Blocks>([&]<int B>() __attribute__((always_inline)) {
        unpack_panel<Ops, Bits>(tile + (half + B) * half_unit_bytes<Bits>, units, panels[B],
                                [](typename Ops::codes c) { return c; });
        source[B].tile = panels[B];
        values[B] = load_group<Ops, Bits, Zero>(w, row_block, half + B, walk.group);
      });
      auto const work = [&]<int Tokens>(index_t t) __attribute__((always_inline)) {
        std::int8_t const* const x = a.digits + (cell + t) * planes * stride;
        digit_sums const* const sums = a.sums + (cell + t) * planes;
        float* const of_token = y + panel_sum<Blocks>(t, half);
        if (Columns != 0 && columns == Columns) {
          panel_chunk<Ops, Bits, Zero, Columns, Tokens, Blocks, planes>(
              source, x, stride, sums, a.scales + cell + t, Columns, values, w, of_token);
        } else {
          panel_chunk<Ops, Bits, Zero, 0, Tokens, Blocks, planes>(
              source, x, stride, sums, a.scales + cell + t, columns, values, w, of_token);
        }
      };
      index_t t = 0;
      for (; t + at_once <= tokens; t += at_once) work.template operator()<at_once>(t);
      for (; t < tokens; ++t) work.template operator()<1>(t);
    }
    tile += units * source_type::unit_bytes;
    walk.next(columns);
  }
}

}  // namespace gptq::detail
