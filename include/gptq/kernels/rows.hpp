// Rows of a matrix times the tokens of prepared activations: which kernel works on what, and where y goes.
#pragma once

#include <cstdint>
#include <type_traits>

#include <gptq/activations.hpp>
#include <gptq/kernels/chunk.hpp>
#include <gptq/kernels/direct.hpp>
#include <gptq/kernels/direct_float.hpp>
#include <gptq/kernels/operations.hpp>
#include <gptq/kernels/panels.hpp>
#include <gptq/kernels/prepare.hpp>
#include <gptq/kernels/tiles.hpp>
#include <gptq/layout.hpp>

namespace gptq::detail {

/// tiled() or panel().
template <class Ops, int Bits, zero_kind Zero, int Columns, int Blocks, class Scale, precision Precision>
GPTQ_INLINE void many_tokens(weights<Scale> const& w, activations<Precision> const& a, index_t row_block,
                             index_t first_token, index_t last_token, index_t first_chunk, index_t last_chunk,
                             float* y) {
  if constexpr (has_tiles<Ops> && Columns != 0) {
    static_assert(Blocks == 2);
    // Rows shorter than a full chunk may not fill the tiles made for it.
    if (w.chunks.stride() % Ops::template tile_columns<Columns> == 0) {
      return tiled<Ops, Bits, Zero, Columns>(w, a, row_block, first_token, last_token, first_chunk,
                                             last_chunk, y);
    }
  }
  panel<Ops, Bits, Zero, Columns, Blocks>(w, a, row_block, first_token, last_token, first_chunk, last_chunk,
                                          y);
}

/// The columns of a full chunk, where the format says so and the ISA has a kernel for them.
template <class Ops, storage_format Format>
inline constexpr int static_columns = [] {
  constexpr int size = Format::group_size;
  if (!Ops::fixed_chunks) return 0;
  if (size == whole_row || size >= 128) return 128;
  return size == 32 || size == 64 ? size : 0;
}();

/// y of rows without columns.
GPTQ_INLINE void zero_rows(float* y, row_range rows) {
  for (index_t row = rows.first; row < rows.last; ++row) y[row] = 0.0F;
}

/// Stores the rows of half a row block, `row` and up, that lie in first..last-1.
template <class Ops>
GPTQ_INLINE void store_rows(float* y, index_t row, index_t first, index_t last, typename Ops::floats values) {
  if (first <= row && row + half_block_rows <= last) {
    Ops::store(y + row, values);
  } else {
    alignas(64) float rows[half_block_rows];
    Ops::store(rows, values);
    for (index_t r = 0; r < half_block_rows; ++r) {
      if (first <= row + r && row + r < last) y[row + r] = rows[r];
    }
  }
}

/// What store_rows() has stored.
template <class Ops>
GPTQ_INLINE typename Ops::floats load_rows(float const* y, index_t row, index_t first, index_t last) {
  if (first <= row && row + half_block_rows <= last) return Ops::load(y + row);
  alignas(64) float rows[half_block_rows] = {};
  for (index_t r = 0; r < half_block_rows; ++r) {
    if (first <= row + r && row + r < last) rows[r] = y[row + r];
  }
  return Ops::load(rows);
}

/// How many tokens direct() works on at once, within what the ISA has registers for.
template <class Ops, precision Precision>
inline constexpr int direct_tokens = Precision == precision::float32 ? 2
                                     : Ops::direct_rows / digit_planes(Precision) > 1
                                         ? Ops::direct_rows / digit_planes(Precision)
                                         : 1;

/// `rows` of all tokens, from registers, `AtOnce` tokens at once. With `more`, adds to what y holds.
template <class Ops, storage_format Format, int AtOnce, precision Precision>
void direct_rows(packed_view<Format> const& view, activations<Precision> const& a, index_t first_chunk,
                 index_t last_chunk, float* y, row_range rows, bool more) noexcept {
  index_t const first = rows.first, last = rows.last;
  constexpr int bits = Format::bits;
  constexpr auto zero = format_zero_kind<Format>;
  auto const w = kernel_weights(view);
  auto const work = [&]<int Tokens>(index_t block, index_t token) __attribute__((always_inline)) {
    typename Ops::floats values[Tokens][2];
    auto const halves = [&](auto&& half) __attribute__((always_inline)) {
      unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
        unrolled<2>([&]<int B>() __attribute__((always_inline)) {
          half(values[T][B], y + (token + T) * view.out, block * packed_rows + B * half_block_rows);
        });
      });
    };
    halves([&](auto& v, float const* of_token, index_t row) __attribute__((always_inline)) {
      v = more ? load_rows<Ops>(of_token, row, first, last) : Ops::broadcast(0.0F);
    });
    if constexpr (Precision == precision::float32) {
      direct_float<Ops, bits, zero, Tokens, 0>(w, a, block, token, first_chunk, last_chunk, values);
      direct_float<Ops, bits, zero, Tokens, 1>(w, a, block, token, first_chunk, last_chunk, values);
    } else {
      direct<Ops, bits, zero, static_columns<Ops, Format>, Tokens>(w, a, block, token, first_chunk,
                                                                   last_chunk, values);
    }
    halves([&](auto const& v, float* of_token, index_t row)
               __attribute__((always_inline)) { store_rows<Ops>(of_token, row, first, last, v); });
  };
  for (index_t block = first / packed_rows; block * packed_rows < last; ++block) {
    index_t token = 0;
    if constexpr (AtOnce > 1) {
      for (; token + AtOnce <= a.tokens; token += AtOnce) work.template operator()<AtOnce>(block, token);
    }
    for (; token < a.tokens; ++token) work.template operator()<1>(block, token);
  }
}

/// What has to live while tiles are used; nothing where there are none.
struct no_tiles {};
template <class Ops, int Planes, int Columns, bool Tiles>
struct tile_state {
  using type = no_tiles;
};
template <class Ops, int Planes, int Columns>
struct tile_state<Ops, Planes, Columns, true> {
  using type = typename Ops::template tiles<Planes, Columns>;
};

/// `rows` of all tokens, through panels.
template <class Ops, storage_format Format, precision Precision>
void panel_rows(packed_view<Format> const& view, activations<Precision> const& a, float* y,
                row_range rows) noexcept {
  index_t const first = rows.first, last = rows.last;
  auto const w = kernel_weights(view);
  constexpr int blocks = Ops::panel_blocks;
  constexpr int columns = static_columns<Ops, Format>;
  constexpr bool tiled = has_tiles<Ops> && columns != 0;
  [[maybe_unused]] typename tile_state<Ops, digit_planes(Precision), columns, tiled>::type const tiles;
  alignas(64) float sums[panel_tokens * packed_rows];
  // As many chunks of the tokens as the second-level cache has room for, again and again for all rows.
  index_t const chunks = w.chunks.count();
  index_t const fit = 524288 / (panel_tokens * digit_planes(Precision) * w.chunks.stride());
  index_t const at_once = fit > 1 ? fit : 1;
  for (index_t token = 0; token < a.tokens; token += panel_tokens) {
    index_t const left = a.tokens - token;
    index_t const tokens = left < panel_tokens ? left : panel_tokens;
    for (index_t chunk = 0; chunk < chunks; chunk += at_once) {
      index_t const last_chunk = chunk + at_once < chunks ? chunk + at_once : chunks;
      for (index_t block = first / packed_rows; block * packed_rows < last; ++block) {
        auto const halves = [&](auto&& half) __attribute__((always_inline)) {
          for (index_t t = 0; t < tokens; ++t) {
            unrolled<2>([&]<int B>() __attribute__((always_inline)) {
              half(sums + panel_sum<blocks>(t, B), y + (token + t) * view.out,
                   block * packed_rows + B * half_block_rows);
            });
          }
        };
        halves([&](float* sum, float const* of_token, index_t row) __attribute__((always_inline)) {
          Ops::store(sum, chunk == 0 ? Ops::broadcast(0.0F) : load_rows<Ops>(of_token, row, first, last));
        });
        many_tokens<Ops, Format::bits, format_zero_kind<Format>, columns, blocks>(
            w, a, block, token, token + tokens, chunk, last_chunk, sums);
        halves([&](float const* sum, float* of_token, index_t row) __attribute__((always_inline)) {
          store_rows<Ops>(of_token, row, first, last, Ops::load(sum));
        });
      }
    }
  }
}

/// `rows` of one token from x as it is, prepared on the stack, a part of it at a time.
template <precision Precision, class Isa, storage_format Format, class T>
void prepared_rows(packed_view<Format> const& w, T const* x, float* y, row_range rows) noexcept {
  if (w.in == 0) return zero_rows(y, rows);
  constexpr index_t stack = 16384;
  alignas(64) char workspace[stack];
  chunk_layout const chunks{w.in, Format::group_columns(w.in)};
  index_t const all = chunks.count();
  index_t const fit = stack / cell_bytes<Precision>(chunks);
  for (index_t first = 0; first < all; first += fit) {
    index_t const last = first + fit < all ? first + fit : all;
    auto a = activations_at<Precision>(chunks, last - first, 1, workspace);
    prepare_chunks<Isa>(a, x, w.in, w.order, first, last, {0, 1});
    direct_rows<operations_for<Isa>, Format, 1>(w, a, first, last, y, rows, first != 0);
  }
}

/// `rows` of all tokens, through what is fastest for so many.
template <class Isa, storage_format Format, precision Precision>
void many_token_rows(packed_view<Format> const& w, activations<Precision> const& x, float* y,
                     row_range rows) noexcept {
  using ops = operations_for<Isa>;
  if (w.in == 0) {
    for (index_t token = 0; token < x.tokens; ++token) zero_rows(y + token * w.out, rows);
    return;
  }
  if constexpr (std::is_same_v<Isa, isa::amx_int8>) {
    // Linux may refuse tiles to a process on a CPU that has them.
    if (!isa::detail::may_use_tiles()) return many_token_rows<isa::detail::amx_without_tiles>(w, x, y, rows);
  }
  if constexpr (Precision != precision::float32) {
    if (x.tokens > ops::direct_tokens) return panel_rows<ops>(w, x, y, rows);
  }
  direct_rows<ops, Format, direct_tokens<ops, Precision>>(w, x, 0, x.chunks.count(), y, rows, false);
}

}  // namespace gptq::detail
