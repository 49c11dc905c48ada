// Rows of a matrix times the tokens of prepared activations: which kernel works on what, and where y goes.
#pragma once

#include <cstdint>

#include <gptq/activations.hpp>
#include <gptq/isa.hpp>
#include <gptq/kernels/chunk.hpp>
#include <gptq/kernels/direct.hpp>
#include <gptq/kernels/direct_float.hpp>
#include <gptq/kernels/operations.hpp>
#include <gptq/kernels/panels.hpp>
#include <gptq/kernels/prepare.hpp>
#include <gptq/kernels/tiles.hpp>
#include <gptq/layout.hpp>

namespace gptq::detail {

/// The rows of half a row block, `row` and up, that lie in `rows`: value[16] -> y. Not inlined: it is for the ends
/// of a share of the rows alone.
template <class Ops>
[[gnu::noinline]] void store_some(float const* value, float* y, index_t row, row_range rows) noexcept {
  for (index_t r = 0; r < half_block_rows; ++r) {
    if (rows.first <= row + r && row + r < rows.last) y[row + r] = value[r];
  }
}

/// And back.
template <class Ops>
[[gnu::noinline]] void load_some(float* value, float const* y, index_t row, row_range rows) noexcept {
  for (index_t r = 0; r < half_block_rows; ++r) {
    value[r] = rows.first <= row + r && row + r < rows.last ? y[row + r] : 0.0F;
  }
}

/// Stores the rows of half a row block, `row` and up, that lie in `rows`.
template <class Ops>
GPTQ_INLINE void store_rows(float* y, index_t row, row_range rows, typename Ops::floats values) {
  if (rows.first <= row && row + half_block_rows <= rows.last) {
    Ops::store(y + row, values);
  } else {
    alignas(64) float value[half_block_rows];
    Ops::store(value, values);
    store_some<Ops>(value, y, row, rows);
  }
}

/// What store_rows() has stored.
template <class Ops>
GPTQ_INLINE typename Ops::floats load_rows(float const* y, index_t row, row_range rows) {
  if (rows.first <= row && row + half_block_rows <= rows.last) return Ops::load(y + row);
  alignas(64) float value[half_block_rows];
  load_some<Ops>(value, y, row, rows);
  return Ops::load(value);
}

/// A row block times `Tokens` tokens from `token` on, from registers. y[T, row], w.out apart. With `more`, adds to
/// what y holds.
template <class Kernel, int Tokens>
GPTQ_INLINE void direct_block(typename Kernel::weights const& w, typename Kernel::activations const& a,
                              index_t block, index_t token, index_t first_chunk, index_t last_chunk, float* y,
                              row_range rows, bool more) {
  using ops = typename Kernel::ops;
  typename ops::floats values[Tokens][2];
  auto const halves = [&](auto&& half) __attribute__((always_inline)) {
    unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
      unrolled<2>([&]<int B>() __attribute__((always_inline)) {
        half(values[T][B], y + T * w.out, block * packed_rows + B * half_block_rows);
      });
    });
  };
  halves([&](auto& v, float const* of_token, index_t row) __attribute__((always_inline)) {
    v = more ? load_rows<ops>(of_token, row, rows) : ops::broadcast(0.0F);
  });
  if constexpr (Kernel::precision == precision::float32) {
#pragma GCC unroll 1
    for (int half = 0; half < 2; ++half) {
      typename ops::floats of_half[Tokens];
      unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) { of_half[T] = values[T][half]; });
      direct_float<Kernel, Tokens>(w, a, block, half, token, first_chunk, last_chunk, of_half);
      unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) { values[T][half] = of_half[T]; });
    }
  } else {
    direct<Kernel, Tokens>(w, a, block, token, first_chunk, last_chunk, values);
  }
  halves([&](auto const& v, float* of_token, index_t row)
             __attribute__((always_inline)) { store_rows<ops>(of_token, row, rows, v); });
}

/// y[row] of one token, from registers: chunks first_chunk..last_chunk-1, which the activations hold as 0, 1, ...
/// With `more`, adds to what y holds.
template <class Kernel>
[[gnu::noinline]] void direct_rows(typename Kernel::weights const& w, typename Kernel::activations const& a,
                                   index_t token, index_t first_chunk, index_t last_chunk, float* y,
                                   row_range rows, bool more) noexcept {
  for (index_t block = rows.first / packed_rows; block * packed_rows < rows.last; ++block) {
    direct_block<Kernel, 1>(w, a, block, token, first_chunk, last_chunk, y, rows, more);
  }
}

/// Tokens that direct_many() works on at once, within what the ISA has registers for.
template <class Kernel>
inline constexpr int direct_step =
    Kernel::precision == precision::float32         ? 2
    : Kernel::ops::direct_rows / Kernel::planes > 1 ? Kernel::ops::direct_rows / Kernel::planes
                                                    : 1;

/// `rows` of some tokens, from registers, some at once. y[token - range.first, row], w.out apart.
template <class Kernel>
[[gnu::noinline]] void direct_many(typename Kernel::weights const& w, typename Kernel::activations const& a,
                                   token_range range, float* y, row_range rows) noexcept {
  constexpr int at_once = direct_step<Kernel>;
  index_t const chunks = w.chunks.count();
  for (index_t block = rows.first / packed_rows; block * packed_rows < rows.last; ++block) {
    index_t token = range.first;
    if constexpr (at_once > 1) {
      for (; token + at_once <= range.last; token += at_once) {
        direct_block<Kernel, at_once>(w, a, block, token, 0, chunks, y + (token - range.first) * w.out, rows,
                                      false);
      }
    }
    index_t const first = block * packed_rows;
    row_range const some{rows.first > first ? rows.first : first,
                         rows.last < first + packed_rows ? rows.last : first + packed_rows};
    for (; token < range.last; ++token) {
      direct_rows<Kernel>(w, a, token, 0, chunks, y + (token - range.first) * w.out, some, false);
    }
  }
}

/// What has to live while tiles are used; nothing where there are none.
struct no_tiles {};
template <class Kernel, bool Tiled>
struct tile_state {
  using type = no_tiles;
};
template <class Kernel>
struct tile_state<Kernel, true> {
  using type = typename Kernel::ops::template tiles<Kernel::planes, Kernel::columns>;
};

/// The same through panels or tiles.
template <class Kernel>
[[gnu::noinline]] void panel_rows(typename Kernel::weights const& w, typename Kernel::activations const& a,
                                  token_range range, float* y, row_range rows) noexcept {
  using ops = typename Kernel::ops;
  constexpr int blocks = ops::panel_blocks;
  static_assert(!Kernel::tiled || blocks == 2);
  [[maybe_unused]] typename tile_state<Kernel, Kernel::tiled>::type const tile_configuration;
  alignas(64) float sums[panel_tokens * packed_rows];
  // As many chunks of the tokens as the second-level cache has room for, again and again for all rows.
  index_t const chunks = w.chunks.count();
  index_t const fit = 524288 / (panel_tokens * Kernel::planes * w.chunks.stride());
  index_t const at_once = fit > 1 ? fit : 1;
  for (index_t token = range.first; token < range.last; token += panel_tokens) {
    index_t const left = range.last - token;
    index_t const tokens = left < panel_tokens ? left : panel_tokens;
    for (index_t chunk = 0; chunk < chunks; chunk += at_once) {
      index_t const last_chunk = chunk + at_once < chunks ? chunk + at_once : chunks;
      for (index_t block = rows.first / packed_rows; block * packed_rows < rows.last; ++block) {
        auto const halves = [&](auto&& half) __attribute__((always_inline)) {
          for (index_t t = 0; t < tokens; ++t) {
            unrolled<2>([&]<int B>() __attribute__((always_inline)) {
              half(sums + panel_sum<blocks>(t, B), y + (token - range.first + t) * w.out,
                   block * packed_rows + B * half_block_rows);
            });
          }
        };
        halves([&](float* sum, float const* of_token, index_t row) __attribute__((always_inline)) {
          ops::store(sum, chunk == 0 ? ops::broadcast(0.0F) : load_rows<ops>(of_token, row, rows));
        });
        if constexpr (Kernel::tiled) {
          tiles<Kernel>(w, a, block, {token, token + tokens}, chunk, last_chunk, sums);
        } else {
          panel<Kernel>(w, a, block, {token, token + tokens}, chunk, last_chunk, sums);
        }
        halves([&](float const* sum, float* of_token, index_t row)
                   __attribute__((always_inline)) { store_rows<ops>(of_token, row, rows, ops::load(sum)); });
      }
    }
  }
}

/// `rows` of some tokens, through what is fastest for so many. y[token - range.first, row], w.out apart.
template <class Kernel>
GPTQ_INLINE void many_token_rows(typename Kernel::weights const& w, typename Kernel::activations const& a,
                                 token_range range, float* y, row_range rows) {
  if constexpr (Kernel::precision != precision::float32) {
    if (range.last - range.first > Kernel::ops::direct_tokens && (!Kernel::tiled || fits_tiles<Kernel>(w))) {
      return panel_rows<Kernel>(w, a, range, y, rows);
    }
  }
  direct_many<Kernel>(w, a, range, y, rows);
}

/// y of rows without columns.
GPTQ_INLINE void zero_rows(float* y, row_range rows) {
  for (index_t row = rows.first; row < rows.last; ++row) y[row] = 0.0F;
}

// ---- from public types to kernels ------------------------------------------------------------------------

/// gemv() of gemv.hpp for prepared activations.
template <class Isa, precision Precision, storage_format Format>
GPTQ_INLINE void gemv_rows(packed_view<Format> const& w, activations<Precision> const& x, float* y,
                           row_range rows) {
  if (w.in == 0) return zero_rows(y, rows);
  direct_rows<kernel_for<Isa, Format, Precision>>(kernel_weights(w), x, 0, 0, x.chunks.count(), y, rows,
                                                  false);
}

/// gemv() of gemv.hpp for x as it is, prepared on the stack, a part of it at a time.
template <class Kernel, class T>
[[gnu::noinline]] void gemv_raw_rows(typename Kernel::weights const& w, std::int32_t const* order, T const* x,
                                     float* y, row_range rows) noexcept {
  constexpr index_t stack = 16384;
  alignas(64) char workspace[stack];
  index_t const all = w.chunks.count();
  index_t const fit = stack / cell_bytes<Kernel::precision>(w.chunks);
  for (index_t first = 0; first < all; first += fit) {
    index_t const last = first + fit < all ? first + fit : all;
    auto const a = activations_at<Kernel::precision>(w.chunks, last - first, 1, workspace);
    prepare_chunks<typename Kernel::isa>(a, x, 0, w.chunks.in, order, first, last, {0, 1});
    direct_rows<Kernel>(w, a, 0, first, last, y, rows, first != 0);
  }
}

/// gemm() of gemm.hpp for some tokens, y[token - range.first, row], `stride` apart.
template <class Isa, precision Precision, storage_format Format>
GPTQ_INLINE void gemm_rows(packed_view<Format> const& w, activations<Precision> const& x, token_range range,
                           float* y, index_t stride, row_range rows) {
  if (w.in == 0) {
    for (index_t token = range.first; token < range.last; ++token) {
      zero_rows(y + (token - range.first) * stride, rows);
    }
    return;
  }
  using kernel = kernel_for<Isa, Format, Precision>;
  auto weights = kernel_weights(w);
  weights.out = stride;
  if constexpr (kernel::tiled) {
    // Linux may refuse tiles to a process on a CPU that has them.
    if (!isa::detail::may_use_tiles()) {
      using without = kernel_for<typename kernel::ops::without_tiles, Format, Precision>;
      return many_token_rows<without>(weights, x, range, y, rows);
    }
  }
  many_token_rows<kernel>(weights, x, range, y, rows);
}

/// One token or several of prepared activations of any number: y[token - range.first, row], `stride` apart.
template <class Isa, precision Precision, storage_format Format>
GPTQ_INLINE void token_rows(packed_view<Format> const& w, activations<Precision> const& x, token_range range,
                            float* y, index_t stride, row_range rows) {
  if (range.last - range.first != 1 || w.in == 0) return gemm_rows<Isa>(w, x, range, y, stride, rows);
  direct_rows<kernel_for<Isa, Format, Precision>>(kernel_weights(w), x, range.first, 0, x.chunks.count(), y,
                                                  rows, false);
}

}  // namespace gptq::detail
