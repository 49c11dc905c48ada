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
#include <gptq/format.hpp>
#include <gptq/isa/all.hpp>
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

/// A packed matrix without its format, so that all formats with the same kernel share its code.
template <class Scale>
struct weights {
  using scale = Scale;
  std::uint8_t const* codes;
  Scale const* scales;
  std::uint8_t const* zeros;
  index_t row_block_bytes;
  index_t groups;
  float zero_offset;  ///< zero - 2^(bits-1) of a constant zero point
  index_t out;        ///< from a token's y to the next
  chunk_layout chunks;
};

template <storage_format Format>
GPTQ_INLINE weights<typename Format::scale> kernel_weights(packed_view<Format> const& w) {
  auto const layout = w.layout();
  constexpr float zero_offset = Format::levels.zero - static_cast<float>(1 << (Format::bits - 1));
  return {w.codes,         w.scales,    w.zeros, layout.row_block_bytes(),
          layout.groups(), zero_offset, w.out,   {w.in, layout.group_columns()}};
}

/// The columns of a full chunk, where the format says so and the ISA has a kernel for them; otherwise 0.
template <class Ops, storage_format Format>
inline constexpr int static_columns = [] {
  constexpr int size = Format::group_size;
  if (!Ops::fixed_chunks) return 0;
  if (size == whole_row || size >= 128) return 128;
  return size == 32 || size == 64 ? size : 0;
}();

/// An ISA with matrix tiles offers what isa/amx_int8.hpp has.
template <class Ops>
inline constexpr bool has_tiles = requires {
  typename Ops::template tiles<1, 128>;
};

/// What of a format, a precision and an ISA the code of kernels depends on.
/// @tparam Columns  of a full chunk, when the compiler knows them; otherwise 0
template <class Isa, class Scale, int Bits, zero_kind Zero, int Columns, precision Precision>
struct kernel {
  using isa = Isa;
  using ops = operations_for<Isa>;
  using weights = detail::weights<Scale>;
  using activations = gptq::activations<Precision>;
  static constexpr int bits = Bits;
  static constexpr zero_kind zero = Zero;
  static constexpr int columns = Columns;
  static constexpr gptq::precision precision = Precision;
  static constexpr int planes = digit_planes(Precision);
  /// Whether many tokens go through matrix tiles.
  static constexpr bool tiled = has_tiles<ops> && Columns != 0 && planes != 0;
};
template <class Isa, storage_format Format, precision Precision>
using kernel_for = kernel<Isa, typename Format::scale, Format::bits, format_zero_kind<Format>,
                          static_columns<operations_for<Isa>, Format>, Precision>;

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

/// One chunk of one token and a row block, of any number of columns, added to y[half]: for what is left of a row
/// or a group after full chunks. Not inlined: one of it is enough.
template <class Kernel>
[[gnu::noinline]] void short_chunk(typename Kernel::weights const& w, std::uint8_t const* tile,
                                   index_t row_block, index_t group, std::int8_t const* x,
                                   digit_sums const* sums, float scale, index_t columns,
                                   typename Kernel::ops::floats* y) noexcept {
  using ops = typename Kernel::ops;
  using source_type = packed_source<ops, Kernel::bits>;
#pragma GCC unroll 1
  for (int half = 0; half < 2; ++half) {
    source_type const source[1] = {{tile + half * half_unit_bytes<Kernel::bits>, false}};
    typename ops::words total[Kernel::planes][1];
    dot_chunk<ops, source_type, 0, Kernel::planes>(source, x, w.chunks.stride(), sums, columns, total);
    typename ops::words planes[Kernel::planes];
    unrolled<Kernel::planes>([&]<int P>() __attribute__((always_inline)) { planes[P] = total[P][0]; });
    auto const values = load_group<ops, Kernel::bits, Kernel::zero>(w, row_block, half, group);
    y[half] = add_chunk<ops, Kernel::bits, true, Kernel::zero, Kernel::planes>(y[half], planes, values, w,
                                                                               sums, scale);
  }
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
