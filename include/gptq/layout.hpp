// Where a code lies: packed weights, made for broadcast-and-dot-product kernels and the same on every CPU.
//
//   using q4 = gptq::format<gptq::symmetric, 4, 128>;
//   constexpr gptq::packed_layout<q4> layout{11008, 4096};      // rows, columns: all sizes are known
//   gptq::packed_view<q4> const w{codes, scales, nullptr, nullptr, layout.out, layout.in};
//
// packed.hpp makes such memory, and checks what comes from elsewhere. Nothing here allocates or throws.
//
// Layout of a matrix of `out` rows and `in` columns (little endian). Rows are cut into blocks of 32, the last
// one padded; columns, in stored order, into the format's groups. A (row block, group) pair owns
//   - codes: units of 32 rows x U columns, the group's last unit padded with code 0. The first half of a unit
//     has the rows 0..15 of the block, the second half the rows 16..31. U and the bytes of a half:
//       4 bits   8 columns    64 bytes   byte 4r+j: column j in the low nibble, column 4+j in the high one
//       2 bits  16 columns    64 bytes   byte 4r+j: column 4t+j in bits 2t..2t+1
//       3 bits  32 columns   192 bytes   three parts of 64 bytes. Byte 4r+j holds, of columns 4t+j,
//                                        part 0: t = 0 in bits 0..2, t = 1 in bits 3..5, the lower
//                                                bits of t = 6 in bits 6..7
//                                        part 1: t = 2, t = 3 and the lower bits of t = 7 likewise
//                                        part 2: t = 4 in bits 0..2, t = 5 in bits 4..6, the top bit
//                                                of t = 6 in bit 3 and of t = 7 in bit 7
//       8 bits   4 columns    64 bytes   byte 4r+j: column j
//     where r is the row in its half and j in 0..3: every 32-bit lane belongs to one row, and each mask of
//     it gives four consecutive columns, as maddubs, vpdpbusd, sdot and AMX tiles want them;
//   - 32 scales (of type e4m3: over the matrix's own, which is a float beside the arrays), and, with a stored zero point, 32 zeros as an LSB-first stream of codes (4 * bits bytes).
// Codes, scales and zeros are three separate arrays, each ordered by row block, then group, so that codes
// stay aligned to 64 bytes whatever the scales are, and a kernel that works on the rows of a block reads each
// from its first byte to its last. Padding decodes to 0 * scale when its inputs are taken as 0.
#pragma once

#include <cstdint>
#include <type_traits>

#include <gptq/config.hpp>
#include <gptq/format.hpp>
#include <gptq/layout/codes.hpp>
#include <gptq/layout/decode.hpp>

namespace gptq {

/// The version of the layout that the head of this file describes. A file of packed bytes names it.
inline constexpr int packed_layout_version = 1;

/// Rows first..last-1 of a matrix: what gemv(), gemm() and dequantize() work on. Kernels best start at
/// multiples of packed_rows.
struct row_range {
  index_t first = 0;
  index_t last = 0;
};

/// Sizes and offsets of a packed matrix; see the head of this file. All constexpr, for callers that allocate.
template <storage_format Format>
struct packed_layout {
  index_t out = 0;
  index_t in = 0;

  /// Columns and bytes of a unit of codes.
  static constexpr index_t unit_columns = detail::unit_columns<Format::bits>;
  static constexpr index_t unit_bytes = 2 * detail::half_unit_bytes<Format::bits>;
  /// Bytes of the 32 zeros of a (row block, group) pair.
  static constexpr index_t zero_tile_bytes = Format::has_zero_point ? 4 * Format::bits : 0;

  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t row_blocks() const {
    return (out + packed_rows - 1) / packed_rows;
  }
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t groups() const { return Format::groups(in); }
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t group_columns() const { return Format::group_columns(in); }
  /// Columns of one group: group_columns(), or what is left for the last one.
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t group_columns(index_t group) const {
    index_t const left = in - group * group_columns();
    return left < group_columns() ? left : group_columns();
  }
  /// Bytes of the codes of a (row block, group) pair of `columns` columns.
  GPTQ_INLINE GPTQ_HOST_DEVICE static constexpr index_t tile_bytes(index_t columns) {
    return (columns + unit_columns - 1) / unit_columns * unit_bytes;
  }
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t row_block_bytes() const {
    return in == 0 ? 0
                   : (groups() - 1) * tile_bytes(group_columns()) + tile_bytes(group_columns(groups() - 1));
  }

  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t code_bytes() const {
    return row_blocks() * row_block_bytes();
  }
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t scale_count() const {
    return row_blocks() * groups() * packed_rows;
  }
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t zero_bytes() const {
    return row_blocks() * groups() * zero_tile_bytes;
  }

  /// Byte offset of the codes of a (row block, group) pair.
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t code_offset(index_t row_block, index_t group) const {
    return row_block * row_block_bytes() + group * tile_bytes(group_columns());
  }
  /// Index of the first of the 32 scales of a (row block, group) pair.
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t scale_offset(index_t row_block, index_t group) const {
    return (row_block * groups() + group) * packed_rows;
  }
  /// Byte offset of the zeros of a (row block, group) pair.
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t zero_offset(index_t row_block, index_t group) const {
    return (row_block * groups() + group) * zero_tile_bytes;
  }
};

namespace detail {
/// What all scales of a matrix are multiples of, where they are: otherwise nothing, of no size.
struct no_matrix_scale {};
template <storage_format Format>
using matrix_scale_of = std::conditional_t<Format::has_matrix_scale, float, no_matrix_scale>;
}  // namespace detail

/// A packed matrix that somebody else owns. Codes best start at a multiple of 64 bytes, and may start
/// anywhere.
template <storage_format Format>
struct packed_view {
  using format = Format;
  using scale = typename Format::scale;

  std::uint8_t const* codes = nullptr;  ///< layout().code_bytes() bytes
  scale const* scales = nullptr;        ///< layout().scale_count() entries
  std::uint8_t const* zeros = nullptr;  ///< layout().zero_bytes() bytes; null without a stored zero point
  std::int32_t const* order = nullptr;  ///< [in] original column of each stored one; null: the same
  index_t out = 0;                      ///< rows
  index_t in = 0;                       ///< columns
  /// A float, where Format::has_matrix_scale.
  [[no_unique_address]] detail::matrix_scale_of<Format> matrix_scale{};

  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr packed_layout<Format> layout() const { return {out, in}; }
  /// The code at (row, stored column).
  GPTQ_HOST_DEVICE int code(index_t row, index_t stored_column) const {
    index_t const group = stored_column / layout().group_columns();
    return detail::packed_code<Format::bits>(codes + layout().code_offset(row / packed_rows, group),
                                             row % packed_rows, stored_column % layout().group_columns());
  }
  /// The scale and zero point of (row, group).
  GPTQ_HOST_DEVICE gptq::grid grid(index_t row, index_t group) const {
    index_t const block = row / packed_rows;
    gptq::grid g{scales[layout().scale_offset(block, group) + row % packed_rows], 0};
    if constexpr (Format::has_matrix_scale) g.scale *= matrix_scale;
    if constexpr (Format::has_zero_point) {
      g.zero =
          detail::stream_code<Format::bits>(zeros + layout().zero_offset(block, group), row % packed_rows);
    }
    return g;
  }
};

/// Memory to pack a matrix into, as packed_view has it: layout().code_bytes() bytes of codes, and so on. `order` is
/// null for a matrix with its columns in their original order.
template <storage_format Format>
struct packed_memory {
  std::uint8_t* codes = nullptr;
  typename Format::scale* scales = nullptr;
  std::uint8_t* zeros = nullptr;
  std::int32_t* order = nullptr;
  index_t out = 0;
  index_t in = 0;
  [[no_unique_address]] detail::matrix_scale_of<Format> matrix_scale{};

  constexpr packed_layout<Format> layout() const { return {out, in}; }
  constexpr packed_view<Format> view() const { return {codes, scales, zeros, order, out, in, matrix_scale}; }
};

/// Decodes `rows` of a packed matrix, columns in their original order, to weights[rows, in]: float, or
/// float16 or bfloat16, to which the values are rounded. Exact in float with float16 scales.
template <storage_format Format, class T>
void dequantize(packed_view<Format> const& view, row_range rows, T* weights) noexcept {
  for (index_t row = rows.first; row < rows.last; ++row) {
    detail::decode_row(view, row, weights + (row - rows.first) * view.in);
  }
}

/// All rows.
template <storage_format Format, class T>
void dequantize(packed_view<Format> const& view, T* weights) noexcept {
  dequantize(view, {0, view.out}, weights);
}

}  // namespace gptq
