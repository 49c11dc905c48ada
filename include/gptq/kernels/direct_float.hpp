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
template <class Ops, int Bits, zero_kind Zero, int Tokens, int Half, class Scale>
GPTQ_INLINE void direct_float(weights<Scale> const& w, activations<precision::float32> const& a,
                              index_t row_block, index_t token, index_t first_chunk, index_t last_chunk,
                              typename Ops::floats (&y)[Tokens][2]) {
  using source_type = packed_source<Ops, Bits>;
  using unit_type = unit<Ops, Bits, false>;
  constexpr int steps = source_type::unit_columns / 4;
  index_t const stride = w.chunks.stride();
  chunk_walk walk(w.chunks, first_chunk);
  std::uint8_t const* tile = tile_start<Ops, Bits>(w, row_block, first_chunk) + Half * half_unit_bytes<Bits>;
  float const* x = a.values + token * stride;
  for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    auto const values = load_group<Ops, Bits, Zero>(w, row_block, Half, walk.group);
    auto zero = Ops::broadcast(static_cast<float>(1 << (Bits - 1)));
    if constexpr (Zero == zero_kind::stored) {
      zero = Ops::multiply_add(values.zero_offset, Ops::template zero_weights<Bits>(), zero);
    }
    if constexpr (Zero == zero_kind::constant) zero = Ops::add(zero, Ops::broadcast(w.zero_offset));
    typename Ops::floats sum[Tokens][2];
    unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
      sum[T][0] = Ops::broadcast(0.0F);
      sum[T][1] = Ops::broadcast(0.0F);
    });
    index_t const columns = walk.columns();
    index_t const units = source_type::units(columns);
#pragma GCC unroll 1
    for (index_t u = 0; u < units; ++u, tile += source_type::unit_bytes) {
      unit_type const codes(tile);
      float const* const here = x + u * source_type::unit_columns;
      unrolled<steps>([&]<int S>() __attribute__((always_inline)) {
        typename Ops::codes four;
        if constexpr (Bits == 8) {
          four = codes.raw;
        } else {
          four = codes.template codes<S>();
        }
        unrolled<4>([&]<int J>() __attribute__((always_inline)) {
          auto const level = Ops::subtract(Ops::template byte<J>(four), zero);
          unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
            auto const of_column = Ops::broadcast(here[T * stride + 4 * S + J]);
            sum[T][J % 2] = Ops::multiply_add(level, of_column, sum[T][J % 2]);
          });
        });
      });
    }
    unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
      y[T][Half] = Ops::multiply_add(values.scale, Ops::add(sum[T][0], sum[T][1]), y[T][Half]);
    });
    x += a.tokens * stride;
    walk.next(columns);
  }
}

}  // namespace gptq::detail
