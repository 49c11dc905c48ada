// Products with float32 activations, weight by weight.
#pragma once

#include <cstdint>

#include <gptq/activations.hpp>
#include <gptq/kernels/chunk.hpp>
#include <gptq/kernels/chunk_walk.hpp>
#include <gptq/kernels/operations.hpp>
#include <gptq/kernels/sources.hpp>
#include <gptq/kernels/units.hpp>

namespace gptq::detail {

/// What direct() computes, in float32, weight by weight: for each chunk y = y + scale * (e + o), where e and o are
/// the sums of (code - zero) * x over its even and its odd columns. For one half of a row block.
template <class Kernel, int Tokens>
GPTQ_INLINE void direct_float(typename Kernel::weights const& w, typename Kernel::activations const& a,
                              index_t row_block, int half, index_t token, index_t first_chunk,
                              index_t last_chunk, typename Kernel::ops::floats (&y)[Tokens]) {
  using ops = typename Kernel::ops;
  constexpr int bits = Kernel::bits;
  using source_type = packed_source<ops, bits>;
  using unit_type = unit<ops, bits, false>;
  constexpr int steps = source_type::unit_columns / 4;
  index_t const stride = w.chunks.stride();
  chunk_walk walk(w.chunks, first_chunk);
  std::uint8_t const* tile = tile_start<ops, bits>(w, row_block, first_chunk) + half * half_unit_bytes<bits>;
  float const* x = a.values + token * stride;
  [[maybe_unused]] auto const table = load_table<Kernel, 128>(w);
  for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    auto const values = load_group<ops, bits, Kernel::levels>(w, row_block, half, walk.group);
    auto zero = ops::broadcast(static_cast<float>(1 << (bits - 1)));
    if constexpr (Kernel::in_table) zero = ops::broadcast(128.0F);
    if constexpr (Kernel::levels == level_kind::stored) {
      zero = ops::multiply_add(values.zero_offset, ops::template zero_weights<bits>(), zero);
    }
    if constexpr (Kernel::levels == level_kind::constant)
      zero = ops::add(zero, ops::broadcast(w.zero_offset));
    typename ops::floats sum[Tokens][2];
    unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
      sum[T][0] = ops::broadcast(0.0F);
      sum[T][1] = ops::broadcast(0.0F);
    });
    index_t const columns = walk.columns();
    index_t const units = source_type::units(columns);
#pragma GCC unroll 1
    for (index_t u = 0; u < units; ++u, tile += source_type::unit_bytes) {
      unit_type const codes(tile);
      float const* const here = x + u * source_type::unit_columns;
      unrolled<steps>([&]<int S>() __attribute__((always_inline)) {
        typename ops::codes four;
        if constexpr (bits == 8) {
          four = codes.raw;
        } else {
          four = codes.template codes<S>();
        }
        if constexpr (Kernel::in_table) four = ops::look_up(table, four);
        unrolled<4>([&]<int J>() __attribute__((always_inline)) {
          auto const level = ops::subtract(ops::template byte<J>(four), zero);
          unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
            auto const of_column = ops::broadcast(here[T * stride + 4 * S + J]);
            sum[T][J % 2] = ops::multiply_add(level, of_column, sum[T][J % 2]);
          });
        });
      });
    }
    unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
      y[T] = ops::multiply_add(values.scale, ops::add(sum[T][0], sum[T][1]), y[T]);
    });
    x += a.tokens * stride;
    walk.next(columns);
  }
}

}  // namespace gptq::detail
