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

/// Tokens that are worked on at once, within what the ISA has registers for.
template <class Kernel>
inline constexpr int panel_step =
    Kernel::ops::panel_rows / Kernel::planes > 1 ? Kernel::ops::panel_rows / Kernel::planes : 1;

/// One chunk of `Tokens` tokens and some half blocks, from panels, added to sums[token][Blocks * 16].
template <class Kernel, int Tokens, int Blocks>
GPTQ_INLINE void panel_chunk(typename Kernel::panel const (&source)[Blocks], std::int8_t const* x,
                             index_t stride, digit_sums const* sums, float const* scales, index_t columns,
                             group_values<typename Kernel::ops> const (&values)[Blocks],
                             typename Kernel::weights const& w, float* y) {
  using ops = typename Kernel::ops;
  constexpr int planes = Kernel::planes;
  typename ops::words total[Tokens * planes][Blocks];
  dot_chunk<ops, typename Kernel::panel, Kernel::columns, planes>(source, x, stride, sums, columns, total);
  unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
    unrolled<Blocks>([&]<int B>() __attribute__((always_inline)) {
      typename ops::words of_token[planes];
      unrolled<planes>([&]<int P>()
                           __attribute__((always_inline)) { of_token[P] = total[T * planes + P][B]; });
      float* const here = y + (T * Blocks + B) * half_block_rows;
      ops::store(here, add_chunk<ops, Kernel::bits, false, Kernel::levels, planes>(
                           ops::load(here), of_token, values[B], w, sums + T * planes, scales[T]));
    });
  });
}

/// Where panels add up what panel_tokens tokens get from a row block: the halves of `Blocks` at a time side
/// by side.
template <int Blocks>
GPTQ_INLINE constexpr index_t panel_sum(index_t token, int half) {
  return ((half / Blocks * panel_tokens + token) * Blocks + half % Blocks) * half_block_rows;
}

/// Chunks first_chunk..last_chunk-1 of some tokens, at most panel_tokens, of a row block, added to
/// y[panel_sum(token, half)].
template <class Kernel>
GPTQ_INLINE void panel(typename Kernel::weights const& w, typename Kernel::activations const& a,
                       index_t row_block, token_range range, index_t first_chunk, index_t last_chunk,
                       float* y) {
  using ops = typename Kernel::ops;
  constexpr int bits = Kernel::bits;
  constexpr int planes = Kernel::planes;
  constexpr int blocks = ops::panel_blocks;
  constexpr int at_once = panel_step<Kernel>;
  using source_type = packed_source<ops, bits>;
  alignas(64) std::uint8_t panels[blocks][panel_bytes<ops, bits>];
  index_t const stride = w.chunks.stride();
  index_t const tokens = range.last - range.first;
  [[maybe_unused]] auto const table = load_table<Kernel>(w);
  chunk_walk walk(w.chunks, first_chunk);
  std::uint8_t const* tile = tile_start<ops, bits>(w, row_block, first_chunk);
  for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    index_t const columns = walk.columns();
    index_t const units = source_type::units(columns);
    index_t const cell = chunk * a.tokens + range.first;
    if (Kernel::columns != 0 && columns != Kernel::columns) {
      for (index_t t = 0; t < tokens; ++t) {
        typename ops::floats rows[2] = {ops::load(y + panel_sum<blocks>(t, 0)),
                                        ops::load(y + panel_sum<blocks>(t, 1))};
        short_chunk<Kernel>(w, tile, row_block, walk.group, a.digits + (cell + t) * planes * stride,
                            a.sums + (cell + t) * planes, a.scales[cell + t], columns, rows);
        ops::store(y + panel_sum<blocks>(t, 0), rows[0]);
        ops::store(y + panel_sum<blocks>(t, 1), rows[1]);
      }
    } else {
      for (int half = 0; half < 2; half += blocks) {
        typename Kernel::panel source[blocks];
        group_values<ops> values[blocks];
        unrolled<blocks>([&]<int B>() __attribute__((always_inline)) {
          unpack_panel<ops, bits>(
              tile + (half + B) * half_unit_bytes<bits>, units,
              panels[B], [&](typename ops::codes c) __attribute__((always_inline)) {
                return as_level<Kernel>(table, c);
              });
          source[B].tile = panels[B];
          values[B] = load_group<ops, bits, Kernel::levels>(w, row_block, half + B, walk.group);
        });
        auto const work = [&]<int Tokens>(index_t t) __attribute__((always_inline)) {
          panel_chunk<Kernel, Tokens>(source, a.digits + (cell + t) * planes * stride, stride,
                                      a.sums + (cell + t) * planes, a.scales + cell + t, columns, values, w,
                                      y + panel_sum<blocks>(t, half));
        };
        index_t t = 0;
        for (; t + at_once <= tokens; t += at_once) work.template operator()<at_once>(t);
        if constexpr (at_once > 1) {
          for (; t < tokens; ++t) work.template operator()<1>(t);
        }
      }
    }
    tile += units * source_type::unit_bytes;
    walk.next(columns);
  }
}

}  // namespace gptq::detail
