// Products straight from packed codes: unpacked into registers, used there, and forgotten. For few tokens.
#pragma once

#include <cstdint>

#include <gptq/activations.hpp>
#include <gptq/kernels/chunk.hpp>
#include <gptq/kernels/chunk_walk.hpp>
#include <gptq/kernels/dot.hpp>
#include <gptq/kernels/operations.hpp>
#include <gptq/kernels/sources.hpp>

namespace gptq::detail {

/// Chunks first_chunk..last_chunk-1 of `Tokens` tokens and a row block, added to y[token][half]. The
/// activations hold these chunks as 0, 1, ...
template <class Kernel, int Tokens>
GPTQ_INLINE void direct(typename Kernel::weights const& w, typename Kernel::activations const& a,
                        index_t row_block, index_t token, index_t first_chunk, index_t last_chunk,
                        typename Kernel::ops::floats (&y)[Tokens][2]) {
  using ops = typename Kernel::ops;
  constexpr int bits = Kernel::bits;
  constexpr int planes = Kernel::planes;
  // One token takes the codes in the order of memory. More have no registers for both halves, and time to
  // wait.
  constexpr int at_once = Tokens == 1 ? ops::halves_at_once : 1;
  using source_type = typename Kernel::source;
  auto const table = load_table<Kernel>(w);
  index_t const stride = w.chunks.stride();
  chunk_walk walk(w.chunks, first_chunk);
  std::uint8_t const* tile = tile_start<ops, bits>(w, row_block, first_chunk);
  std::int8_t const* x = a.digits + token * planes * stride;
  digit_sums const* sums = a.sums + token * planes;
  float const* scales = a.scales + token;
  bool const fetches = ops::prefetch_bytes != 0 && isa::detail::wants_prefetches();
  for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    index_t const columns = walk.columns();
    auto const work = [&](int first_half) __attribute__((always_inline)) {
      source_type source[at_once];
      unrolled<at_once>([&]<int B>() __attribute__((always_inline)) {
        source[B] = source_at<Kernel>(tile + (first_half + B) * half_unit_bytes<bits>, fetches, table);
      });
      typename ops::words total[Tokens * planes][at_once];
      dot_chunk<ops, source_type, Kernel::columns, planes>(source, x, stride, sums, columns, total);
      unrolled<at_once>([&]<int B>() __attribute__((always_inline)) {
        int const half = first_half + B;
        auto const values = load_group<ops, bits, Kernel::levels>(w, row_block, half, walk.group);
        unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
          typename ops::words of_token[planes];
          unrolled<planes>([&]<int P>()
                               __attribute__((always_inline)) { of_token[P] = total[T * planes + P][B]; });
          y[T][half] = add_chunk<ops, bits, true, Kernel::levels, planes>(y[T][half], of_token, values, w,
                                                                          sums + T * planes, scales[T]);
        });
      });
    };
    if (Kernel::columns != 0 && columns != Kernel::columns) {
      // By way of memory of its own, so that y stays in registers.
      typename ops::floats rows[Tokens][2];
      unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
        rows[T][0] = y[T][0];
        rows[T][1] = y[T][1];
      });
      for (int t = 0; t < Tokens; ++t) {
        short_chunk<Kernel>(w, tile, row_block, walk.group, x + t * planes * stride, sums + t * planes,
                            scales[t], columns, rows[t]);
      }
      unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
        y[T][0] = rows[T][0];
        y[T][1] = rows[T][1];
      });
    } else if constexpr (ops::halves_at_once == 1) {
#pragma GCC unroll 1
      for (int half = 0; half < 2; ++half) work(half);
    } else {
      unrolled<2 / at_once>([&]<int I>() __attribute__((always_inline)) { work(I * at_once); });
    }
    tile += source_type::units(columns) * source_type::unit_bytes;
    x += a.tokens * planes * stride;
    sums += a.tokens * planes;
    scales += a.tokens;
    walk.next(columns);
  }
}

}  // namespace gptq::detail
