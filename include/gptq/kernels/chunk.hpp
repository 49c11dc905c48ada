// One chunk, from integers to y. For a chunk of at most 128 columns of a token, in this order on every ISA:
//
//   i_p = sum over columns of (code - 2^(bits-1)) * digit_p     exact, int32, for each plane p of digits
//   d_p = i_p - (zero - 2^(bits-1)) * sum of digit_p            exact in float32: |d_p| < 2^24
//   d   = d_0 + 256 d_1 + 65536 d_2                             float32, from the top, each a fused multiply-add
//   y   = y + d * (weight scale * activation scale)             float32, fused, chunk after chunk
//
// so that all ISAs with fused multiply-add give the same bits, in gemv and in gemm.
#pragma once

#include <cstdint>

#include <gptq/activations.hpp>
#include <gptq/kernels/dot.hpp>
#include <gptq/kernels/operations.hpp>
#include <gptq/kernels/sources.hpp>
#include <gptq/layout.hpp>

namespace gptq::detail {

/// The zero point of a format, as the kernels see it next to 2^(bits-1), which costs nothing.
enum class zero_kind { middle, constant, stored };

template <storage_format Format>
inline constexpr zero_kind format_zero_kind = Format::has_zero_point ? zero_kind::stored
                                              : Format::levels.zero ==
                                                      static_cast<float>(1 << (Format::bits - 1))
                                                  ? zero_kind::middle
                                                  : zero_kind::constant;

/// A packed matrix without its types: the same code serves all schemes and group sizes.
template <class Scale>
struct weights {
  std::uint8_t const* codes;
  Scale const* scales;
  std::uint8_t const* zeros;
  index_t row_block_bytes;
  index_t groups;
  float zero_offset;  ///< zero - 2^(bits-1) of a constant zero point
  chunk_layout chunks;
};

template <storage_format Format>
GPTQ_INLINE weights<typename Format::scale> kernel_weights(packed_view<Format> const& w) {
  auto const layout = w.layout();
  constexpr float zero_offset = Format::levels.zero - static_cast<float>(1 << (Format::bits - 1));
  return {w.codes,
          w.scales,
          w.zeros,
          layout.row_block_bytes(),
          layout.groups(),
          zero_offset,
          {w.in, layout.group_columns()}};
}

/// Scales and zero points of one half of a row block in a group.
template <class Ops>
struct group_values {
  typename Ops::floats scale;
  typename Ops::floats zero_offset;  ///< over Ops::zero_weights
};

template <class Ops, int Bits, zero_kind Zero, class Scale>
GPTQ_INLINE group_values<Ops> load_group(weights<Scale> const& w, index_t row_block, int half,
                                         index_t group) {
  index_t const at = (row_block * w.groups + group) * 2 + half;
  group_values<Ops> values;
  values.scale = Ops::load(w.scales + at * half_block_rows);
  if constexpr (Zero == zero_kind::stored) {
    values.zero_offset = Ops::template load_zeros<Bits>(w.zeros + at * (2 * Bits));
  }
  return values;
}

/// y += d * (weight scale * activation scale): what a token adds to a half block in a chunk.
template <class Ops, int Bits, bool InPlace, zero_kind Zero, int Planes, class Scale>
GPTQ_INLINE typename Ops::floats add_chunk(typename Ops::floats y, typename Ops::words const* planes,
                                           group_values<Ops> const& group, weights<Scale> const& w,
                                           digit_sums const* sums, float scale) {
  constexpr int more_taken_off = integer_sums<Ops, Bits, InPlace, Planes>::taken_off - (1 << (Bits - 1));
  typename Ops::floats d;
  unrolled<Planes>([&]<int I>() __attribute__((always_inline)) {
    constexpr int p = Planes - 1 - I;
    auto i = planes[p];
    if constexpr (more_taken_off != 0) i = Ops::add(i, Ops::broadcast_words(-more_taken_off * sums[p].all));
    auto plane = Ops::to_floats(i);
    if constexpr (Zero == zero_kind::stored) {
      plane = Ops::multiply_add(
          group.zero_offset,
          Ops::multiply(Ops::template zero_weights<Bits>(), Ops::broadcast(static_cast<float>(sums[p].all))),
          plane);
    } else if constexpr (Zero == zero_kind::constant) {
      plane = Ops::add(plane, Ops::broadcast(w.zero_offset * static_cast<float>(sums[p].all)));
    }
    d = I == 0 ? plane : Ops::multiply_add(d, Ops::broadcast(256.0F), plane);
  });
  return Ops::multiply_add(d, Ops::multiply(group.scale, Ops::broadcast(scale)), y);
}

/// The codes of a row block in a chunk.
template <class Ops, int Bits, class Scale>
GPTQ_INLINE std::uint8_t const* tile_start(weights<Scale> const& w, index_t row_block, index_t chunk) {
  using source = packed_source<Ops, Bits>;
  index_t const units = source::units(w.chunks.group_columns) * w.chunks.group(chunk) +
                        source::units(w.chunks.offset_in_group(chunk));
  return w.codes + row_block * w.row_block_bytes + units * source::unit_bytes;
}

}  // namespace gptq::detail
