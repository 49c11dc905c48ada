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
template <class Ops, int Bits, zero_kind Zero, int Columns, int Tokens, class Scale, precision Precision>
GPTQ_INLINE void direct(weights<Scale> const& w, activations<Precision> const& a, index_t row_block,
                        index_t token, index_t first_chunk, index_t last_chunk,
                        typename Ops::floats (&y)[Tokens][2]) {
  constexpr int planes = digit_planes(Precision);
  // One token takes the codes in the order of memory. More have no registers for both halves, and time to
  // wait.
  constexpr int at_once = Tokens == 1 ? Ops::halves_at_once : 1;
  using source_type = packed_source<Ops, Bits>;
  index_t const stride = w.chunks.stride();
  chunk_walk walk(w.chunks, first_chunk);
  std::uint8_t const* tile = tile_start<Ops, Bits>(w, row_block, first_chunk);
  std::int8_t const* x = a.digits + token * planes * stride;
  digit_sums const* sums = a.sums + token * planes;
  float const* scales = a.scales + token;
  bool const fetches = Ops::prefetch_bytes != 0 && isa::detail::wants_prefetches();
  for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    index_t const columns = walk.columns();
    auto const work = [&](int first_half) __attribute__((always_inline)) {
      source_type source[at_once];
      unrolled<at_once>([&]<int B>() __attribute__((always_inline)) {
        source[B] = {tile + (first_half + B) * half_unit_bytes<Bits>, fetches};
      });
      typename Ops::words total[Tokens * planes][at_once];
      if (Columns != 0 && columns == Columns) {
        dot_chunk<Ops, source_type, Columns, planes>(source, x, stride, sums, Columns, total);
      } else {
        dot_chunk<Ops, source_type, 0, planes>(source, x, stride, sums, columns, total);
      }
      unrolled<at_once>([&]<int B>() __attribute__((always_inline)) {
        int const half = first_half + B;
        auto const values = load_group<Ops, Bits, Zero>(w, row_block, half, walk.group);
        unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
          typename Ops::words of_token[planes];
          unrolled<planes>([&]<int P>()
                               __attribute__((always_inline)) { of_token[P] = total[T * planes + P][B]; });
          y[T][half] = add_chunk<Ops, Bits, true, Zero, planes>(y[T][half], of_token, values, w,
                                                                sums + T * planes, scales[T]);
        });
      });
    };
    if constexpr (Ops::halves_at_once == 1) {
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
