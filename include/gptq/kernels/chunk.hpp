// One chunk, from integers to y. For a chunk of at most 128 columns of a token, in this order on every ISA:
//
//   i_p = sum over columns of (code - 2^(bits-1)) * digit_p     exact, int32, for each plane p of digits
//   d_p = i_p - (zero - 2^(bits-1)) * sum of digit_p            exact in float32: |d_p| < 2^24
//         (of a code book both are the sum of level * digit_p)
//   d   = d_0 + 256 d_1 + 65536 d_2                             float32, from the top, each a fused multiply-add
//   y   = y + d * (weight scale * activation scale)             float32, fused, chunk after chunk
//
// so that all ISAs with fused multiply-add give the same bits, in gemv and in gemm.
#pragma once

#include <cstdint>
#include <type_traits>

#include <gptq/activations.hpp>
#include <gptq/format.hpp>
#include <gptq/isa/all.hpp>
#include <gptq/kernels/dot.hpp>
#include <gptq/kernels/operations.hpp>
#include <gptq/kernels/sources.hpp>
#include <gptq/layout.hpp>

namespace gptq::detail {

/// How the kernels get from a code to its level.
enum class level_kind {
  middle,       ///< less 2^(bits-1), which costs nothing
  constant,     ///< less another zero point
  stored,       ///< less the zero point of its group
  small_table,  ///< in a code book without magnitudes above 15
  table,        ///< in a code book
};

GPTQ_INLINE constexpr bool in_table(level_kind kind) { return kind >= level_kind::small_table; }

/// Small levels make a difference to sums in int16, of units of few columns.
template <class Ops, storage_format Format>
inline constexpr level_kind level_kind_for = [] {
  constexpr code_levels levels = Format::levels;
  if (Format::has_zero_point) return level_kind::stored;
  if (Format::is_code_book) {
    bool const small =
        !Ops::wide && Format::bits != 3 && levels.lowest() >= -15.0F && levels.highest() <= 15.0F;
    return small ? level_kind::small_table : level_kind::table;
  }
  return levels.zero == static_cast<float>(1 << (Format::bits - 1)) ? level_kind::middle
                                                                    : level_kind::constant;
}();

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

/// The same with what all scales are multiples of.
struct scaled_weights : weights<e4m3> {
  float matrix_scale;
};

/// The same with the levels of a code book.
template <class Weights>
struct table_weights : Weights {
  std::int8_t const* levels;  ///< [16]
};

template <class Scale>
using uniform_weights = std::conditional_t<std::is_same_v<Scale, e4m3>, scaled_weights, weights<Scale>>;

template <storage_format Format>
GPTQ_INLINE weights<typename Format::scale> plain_weights(packed_view<Format> const& w) {
  auto const layout = w.layout();
  constexpr float zero_offset = Format::levels.zero - static_cast<float>(1 << (Format::bits - 1));
  return {w.codes,         w.scales,    w.zeros, layout.row_block_bytes(),
          layout.groups(), zero_offset, w.out,   {w.in, layout.group_columns()}};
}

template <storage_format Format>
GPTQ_INLINE auto kernel_weights(packed_view<Format> const& w) {
  auto const with_scale = [&]() __attribute__((always_inline)) {
    if constexpr (Format::has_matrix_scale) {
      return scaled_weights{plain_weights(w), w.matrix_scale};
    } else {
      return plain_weights(w);
    }
  };
  if constexpr (Format::is_code_book) {
    return table_weights<uniform_weights<typename Format::scale>>{with_scale(),
                                                                  Format::levels.table->of_code};
  } else {
    return with_scale();
  }
}

/// The columns of a full chunk, where the format says so and the ISA has a kernel for them; otherwise 0.
template <class Ops, storage_format Format>
inline constexpr int static_columns = [] {
  constexpr int size = Format::group_size;
  if (!Ops::fixed_chunks) return 0;
  if (size == whole_row || size >= 128) return 128;
  if (size == 16 && Format::is_code_book) return 16;  // NVFP4
  return size == 32 || size == 64 ? size : 0;
}();

/// An ISA with matrix tiles offers what isa/amx_int8.hpp has.
template <class Ops>
inline constexpr bool has_tiles = requires {
  typename Ops::template tiles<1, 128>;
};

/// What of a format, a precision and an ISA the code of kernels depends on.
/// @tparam Columns  of a full chunk, when the compiler knows them; otherwise 0
template <class Isa, class Scale, int Bits, level_kind Levels, int Columns, precision Precision>
struct kernel {
  using isa = Isa;
  using ops = operations_for<Isa>;
  static constexpr bool in_table = detail::in_table(Levels);
  static constexpr bool in_small_table = Levels == level_kind::small_table;
  using weights = std::conditional_t<in_table, table_weights<uniform_weights<Scale>>, uniform_weights<Scale>>;
  using activations = gptq::activations<Precision>;
  static constexpr int bits = Bits;
  static constexpr level_kind levels = Levels;
  static constexpr int columns = Columns;
  static constexpr gptq::precision precision = Precision;
  static constexpr int planes = digit_planes(Precision);
  /// Whether many tokens go through matrix tiles.
  static constexpr bool tiled = has_tiles<ops> && Columns >= 32 && planes != 0;
  /// Where products take their codes from.
  using source =
      std::conditional_t<in_table, table_source<ops, Bits, in_small_table>, packed_source<ops, Bits>>;
  using panel =
      std::conditional_t<in_table, level_panel_source<ops, Bits, in_small_table>, panel_source<ops, Bits>>;
};
template <class Isa, storage_format Format, precision Precision>
using kernel_for =
    kernel<Isa, typename Format::scale, Format::bits, level_kind_for<operations_for<Isa>, Format>,
           static_columns<operations_for<Isa>, Format>, Precision>;

/// A code book in registers, each level with `Offset` more; nothing for other formats.
struct no_table {};
template <class Kernel, int Offset>
GPTQ_INLINE auto load_table([[maybe_unused]] typename Kernel::weights const& w) {
  if constexpr (Kernel::in_table) {
    return Kernel::ops::template load_table<Offset>(w.levels);
  } else {
    return no_table{};
  }
}
/// As products take it.
template <class Kernel>
GPTQ_INLINE auto load_table(typename Kernel::weights const& w) {
  return load_table<Kernel, Kernel::ops::template table_product<Kernel::in_small_table>::offset>(w);
}

/// What codes stand for in this table; they themselves where there is none.
template <class Kernel, class Table>
GPTQ_INLINE typename Kernel::ops::codes as_level([[maybe_unused]] Table const& table,
                                                 typename Kernel::ops::codes c) {
  if constexpr (Kernel::in_table) {
    return Kernel::ops::look_up(table, c);
  } else {
    return c;
  }
}

/// @param table  of load_table<Kernel>(w)
template <class Kernel, class Table>
GPTQ_INLINE typename Kernel::source source_at(std::uint8_t const* tile, bool fetches,
                                              [[maybe_unused]] Table const& table) {
  if constexpr (Kernel::in_table) {
    return {{tile, fetches}, table};
  } else {
    return {tile, fetches};
  }
}

/// Scales and zero points of one half of a row block in a group.
template <class Ops>
struct group_values {
  typename Ops::floats scale;
  typename Ops::floats zero_offset;  ///< over Ops::zero_weights
};

template <class Ops, int Bits, level_kind Levels, class Weights>
GPTQ_INLINE group_values<Ops> load_group(Weights const& w, index_t row_block, int half, index_t group) {
  index_t const at = (row_block * w.groups + group) * 2 + half;
  group_values<Ops> values;
  values.scale = Ops::load(w.scales + at * half_block_rows);
  if constexpr (std::is_same_v<typename Weights::scale, e4m3>) {
    values.scale = Ops::multiply(values.scale, Ops::broadcast(w.matrix_scale));
  }
  if constexpr (Levels == level_kind::stored) {
    values.zero_offset = Ops::template load_zeros<Bits>(w.zeros + at * (2 * Bits));
  }
  return values;
}

/// y += d * (weight scale * activation scale): what a token adds to a half block in a chunk.
template <class Ops, int Bits, bool InPlace, level_kind Levels, int Planes, class Scale>
GPTQ_INLINE typename Ops::floats add_chunk(typename Ops::floats y, typename Ops::words const* planes,
                                           group_values<Ops> const& group, weights<Scale> const& w,
                                           digit_sums const* sums, float scale) {
  constexpr int more_taken_off =
      in_table(Levels) ? 0 : integer_sums<Ops, Bits, InPlace, Planes>::taken_off - (1 << (Bits - 1));
  typename Ops::floats d;
  unrolled<Planes>([&]<int I>() __attribute__((always_inline)) {
    constexpr int p = Planes - 1 - I;
    auto i = planes[p];
    if constexpr (more_taken_off != 0) i = Ops::add(i, Ops::broadcast_words(-more_taken_off * sums[p].all));
    auto plane = Ops::to_floats(i);
    if constexpr (Levels == level_kind::stored) {
      plane = Ops::multiply_add(
          group.zero_offset,
          Ops::multiply(Ops::template zero_weights<Bits>(), Ops::broadcast(static_cast<float>(sums[p].all))),
          plane);
    } else if constexpr (Levels == level_kind::constant) {
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
  using source_type = typename Kernel::source;
  auto const table = load_table<Kernel>(w);
#pragma GCC unroll 1
  for (int half = 0; half < 2; ++half) {
    source_type const source[1] = {
        source_at<Kernel>(tile + half * half_unit_bytes<Kernel::bits>, false, table)};
    typename ops::words total[Kernel::planes][1];
    dot_chunk<ops, source_type, 0, Kernel::planes>(source, x, w.chunks.stride(), sums, columns, total);
    typename ops::words planes[Kernel::planes];
    unrolled<Kernel::planes>([&]<int P>() __attribute__((always_inline)) { planes[P] = total[P][0]; });
    auto const values = load_group<ops, Kernel::bits, Kernel::levels>(w, row_block, half, group);
    y[half] = add_chunk<ops, Kernel::bits, true, Kernel::levels, Kernel::planes>(y[half], planes, values, w,
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
