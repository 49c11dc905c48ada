// Where a code lies on the device: the layout that all CUDA kernels read. How to get there and back:
// prepack.cuh.
//
//   gptq::cuda::prepacked_layout<q4> layout{out, in};      // sizes
//   bool permuted = w.order != nullptr;                    // w: a prepacked_view, pointers and a shape
//   gptq::index_t all = layout.bytes(permuted);
//
// Rows are cut into row tiles of 16, columns (in stored order) into chunks of 128; the last of each is padded
// with code 0. A (row tile, chunk) pair is what one warp reads at once: 2 * Bits words of 32 bits for each
// lane, as vectors of four words a lane (16 bytes, so 512 for the warp) one after the other; with 3 bits the
// second vector has two words a lane. Lane 4g+t holds the rows g and g+8 of the row tile and, of each 32
// columns, columns 8t..8t+7: eight fragments (A operands of mma.m16n8k16), whose columns are permuted such
// that B's are 16 consecutive bytes of x. Fragment f (of 0..7), register r (of 0..3) and element e (of 0..1)
// are
//     row     g + 8 * (r % 2)
//     column  32 * (f / 2) + 8t + 4 * (f % 2) + 2 * (r / 2) + e
// and, with p = 4f + r, code bits 0..Bits-1 start at bit
//     2, 4, 8 bits   Bits * (p % (16 / Bits)) + 16e   of word p / (16 / Bits)
//     3 bits         the lower two as with 2 bits; the top one is, of word 4 + p / 16,
//                    bit (2 * (p % 8) + 2 + p / 8 % 2) % 16 + 16e
// so that a mask of a word has the two codes of a register, one in each half.
//
// Scales: 16 for each row tile and group, in the order of rows 0, 8, 1, 9, ...; zeros of the same rows, with
// up to 4 bits two a byte, the first in the low nibble. Groups of less than a chunk are padded to whole
// chunks, with scale and zero 0. Codes, scales, zeros and the column order follow one another, each aligned
// to 256 bytes.
#pragma once

#include <cstdint>

#include <gptq/format.hpp>

namespace gptq::cuda {

/// Rows of a row tile.
inline constexpr int tile_rows = 16;
/// Columns of a chunk.
inline constexpr int chunk_columns = 128;

/// Levels that the CUDA kernels and the CUDA solver have: not those of code books.
template <class Format>
concept device_levels = !Format::is_code_book;

/// Scales that they have: float16 and float.
template <class Format>
concept device_scales = Format::scales == scale_type::float16 || Format::scales == scale_type::float32;

/// A format that the CUDA kernels have: groups of 32, 64, multiples of 128, or whole rows; any uniform scheme and
/// any width.
template <class Format>
concept device_format = storage_format<Format> && device_levels<Format> && device_scales<Format> &&
    (Format::group_size == whole_row || Format::group_size == 32 || Format::group_size == 64 ||
     Format::group_size % chunk_columns == 0);

/// Sizes of a prepacked matrix.
template <device_format Format>
struct prepacked_layout {
  index_t out = 0;
  index_t in = 0;

  /// Groups of a chunk, and 32-bit words of codes that a lane has of one.
  static constexpr int chunk_groups = Format::group_size == 32 ? 4 : Format::group_size == 64 ? 2 : 1;
  static constexpr int lane_words = 2 * Format::bits;
  static constexpr int chunk_words = 32 * lane_words;
  /// Bytes of the scales and of the zeros of a row tile and group.
  static constexpr int scale_bytes = tile_rows * int{sizeof(typename Format::scale)};
  static constexpr int zero_bytes = !Format::has_zero_point ? 0 : Format::bits == 8 ? 16 : 8;

  GPTQ_HOST_DEVICE constexpr index_t row_tiles() const { return (out + tile_rows - 1) / tile_rows; }
  GPTQ_HOST_DEVICE constexpr index_t chunks() const { return (in + chunk_columns - 1) / chunk_columns; }
  /// Groups of a row, padding included.
  GPTQ_HOST_DEVICE constexpr index_t groups() const {
    return chunk_groups > 1 ? chunks() * chunk_groups : Format::groups(in);
  }
  /// The (first) group of a chunk.
  GPTQ_HOST_DEVICE constexpr index_t first_group(index_t chunk) const {
    if constexpr (Format::group_size == whole_row) {
      return 0;
    } else if constexpr (chunk_groups > 1) {
      return chunk * chunk_groups;
    } else {
      return chunk / (Format::group_size / chunk_columns);
    }
  }

  /// Offsets from the start of the memory, in bytes.
  constexpr index_t scale_offset() const { return aligned(row_tiles() * chunks() * chunk_words * 4); }
  constexpr index_t zero_offset() const {
    return scale_offset() + aligned(row_tiles() * groups() * scale_bytes);
  }
  constexpr index_t order_offset() const {
    return zero_offset() + aligned(row_tiles() * groups() * zero_bytes);
  }
  /// Bytes of memory, aligned to 256: with a column order, and without.
  constexpr index_t bytes(bool permuted) const { return order_offset() + (permuted ? aligned(4 * in) : 0); }

 private:
  static constexpr index_t aligned(index_t bytes) { return (bytes + 255) / 256 * 256; }
};

/// A prepacked matrix that somebody else owns, on the device or, to look at it, on the host.
template <device_format Format>
struct prepacked_view {
  std::uint32_t const* codes = nullptr;
  typename Format::scale const* scales = nullptr;
  std::uint8_t const* zeros = nullptr;  ///< null without a stored zero point
  std::int32_t const* order = nullptr;  ///< [in] original column of each stored one; null: the same
  index_t out = 0;
  index_t in = 0;

  GPTQ_HOST_DEVICE constexpr prepacked_layout<Format> layout() const { return {out, in}; }
};

}  // namespace gptq::cuda
