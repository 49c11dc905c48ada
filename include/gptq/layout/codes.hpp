// The bits of the packed layout (layout.hpp): codes in the lanes of a unit, and streams of codes.
#pragma once

#include <cstdint>
#include <cstring>

#include <gptq/config.hpp>

namespace gptq {

/// Rows that share a block of the packed layout, and those of half a block.
inline constexpr index_t packed_rows = 32;
inline constexpr index_t half_block_rows = 16;

namespace detail {

/// Columns of a unit of codes, and the bytes of one half of its rows.
template <int Bits>
inline constexpr index_t unit_columns = Bits == 3 ? 32 : 32 / Bits;
template <int Bits>
inline constexpr index_t half_unit_bytes = Bits == 3 ? 192 : 64;

/// The lanes of one row of a unit of codes. Four columns are handled at once, one a byte of a word: shifts
/// never cross bytes because codes are narrower than them, so the byte order of the machine does not matter.
template <int Bits>
struct code_unit {
  static constexpr int lanes = Bits == 3 ? 3 : 1;
  static constexpr int columns = static_cast<int>(unit_columns<Bits>);
  static constexpr index_t bytes = 2 * half_unit_bytes<Bits>;

  /// From the start of a unit to the first lane of a row of its block; the others follow 64 bytes apart.
  GPTQ_HOST_DEVICE static constexpr index_t lane_offset(index_t row) {
    return row / half_block_rows * half_unit_bytes<Bits> + row % half_block_rows * 4;
  }

  static std::uint32_t four(std::uint8_t const* codes) {
    std::uint32_t word;
    std::memcpy(&word, codes, 4);
    return word;
  }

  /// Columns 4t..4t+3 in the bytes of w[t] -> lane[lanes]
  GPTQ_INLINE static void combine(std::uint32_t const* w, std::uint32_t* lane) {
    if constexpr (Bits == 3) {
      lane[0] = w[0] | w[1] << 3 | (w[6] & 0x03030303u) << 6;
      lane[1] = w[2] | w[3] << 3 | (w[7] & 0x03030303u) << 6;
      lane[2] = w[4] | w[5] << 4 | (w[6] & 0x04040404u) << 1 | (w[7] & 0x04040404u) << 5;
    } else {
      lane[0] = 0;
      for (int t = 0; t < 8 / Bits; ++t) lane[0] |= w[t] << (Bits * t);
    }
  }

  /// codes[columns] -> lane[lanes]
  static void pack(std::uint8_t const* codes, std::uint32_t* lane) {
    std::uint32_t w[columns / 4];
    for (int t = 0; t < columns / 4; ++t) w[t] = four(codes + 4 * t);
    combine(w, lane);
  }

  /// The codes of columns 4t..4t+3, one a byte.
  GPTQ_HOST_DEVICE static std::uint32_t four(std::uint32_t const* lane, int t) {
    constexpr std::uint32_t mask = 0x01010101u * ((1u << Bits) - 1u);
    if constexpr (Bits != 3) return (lane[0] >> (Bits * t)) & mask;
    switch (t) {
      case 6:
        return ((lane[0] >> 6) & 0x03030303u) | ((lane[2] >> 1) & 0x04040404u);
      case 7:
        return ((lane[1] >> 6) & 0x03030303u) | ((lane[2] >> 5) & 0x04040404u);
      default:
        return (lane[t / 2] >> (t % 2 * (t == 5 ? 4 : 3))) & mask;
    }
  }

  /// lane[lanes] -> codes[columns]
  static void unpack(std::uint32_t const* lane, std::uint8_t* codes) {
    for (int t = 0; t < columns / 4; ++t) {
      std::uint32_t const word = four(lane, t);
      std::memcpy(codes + 4 * t, &word, 4);
    }
  }
};

/// The codes of one row of a (row block, group) pair: tile[row of the block] -> codes[columns].
template <int Bits>
void unpack_row(std::uint8_t const* tile, index_t row, index_t columns, std::uint8_t* codes) {
  using unit = code_unit<Bits>;
  tile += unit::lane_offset(row);
  for (index_t first = 0; first < columns; first += unit::columns, tile += unit::bytes) {
    std::uint32_t lane[unit::lanes];
    for (int l = 0; l < unit::lanes; ++l) std::memcpy(&lane[l], tile + 64 * l, 4);
    if (first + unit::columns <= columns) {
      unit::unpack(lane, codes + first);
    } else {
      std::uint8_t padded[unit::columns];
      unit::unpack(lane, padded);
      std::memcpy(codes + first, padded, static_cast<std::size_t>(columns - first));
    }
  }
}

/// The code of a row of the block and a column of the group: one entry of unpack_row().
template <int Bits>
GPTQ_HOST_DEVICE int packed_code(std::uint8_t const* tile, index_t row, index_t column) {
  using unit = code_unit<Bits>;
  tile += column / unit::columns * unit::bytes + unit::lane_offset(row);
  std::uint32_t lane[unit::lanes];
  for (int l = 0; l < unit::lanes; ++l) std::memcpy(&lane[l], tile + 64 * l, 4);
  std::uint32_t const word = unit::four(lane, static_cast<int>(column % unit::columns / 4));
  std::uint8_t four_codes[4];
  std::memcpy(four_codes, &word, 4);
  return four_codes[column % 4];
}

/// codes[columns] -> tile[row of the block], the last unit padded with code 0.
template <int Bits>
void pack_row(std::uint8_t const* codes, index_t columns, index_t row, std::uint8_t* tile) {
  using unit = code_unit<Bits>;
  tile += unit::lane_offset(row);
  for (index_t first = 0; first < columns; first += unit::columns, tile += unit::bytes) {
    std::uint32_t lane[unit::lanes];
    if (first + unit::columns <= columns) {
      unit::pack(codes + first, lane);
    } else {
      std::uint8_t padded[unit::columns] = {};
      std::memcpy(padded, codes + first, static_cast<std::size_t>(columns - first));
      unit::pack(padded, lane);
    }
    for (int l = 0; l < unit::lanes; ++l) std::memcpy(tile + 64 * l, &lane[l], 4);
  }
}

/// Entry r of an LSB-first stream of codes. A 3-bit entry may straddle two bytes.
template <int Bits>
GPTQ_INLINE GPTQ_HOST_DEVICE int stream_code(std::uint8_t const* stream, index_t r) {
  index_t const bit = r * Bits;
  int word = stream[bit / 8];
  if (bit % 8 + Bits > 8) word |= stream[bit / 8 + 1] << 8;
  return (word >> (bit % 8)) & ((1 << Bits) - 1);
}

/// Sets entry r of a zeroed LSB-first stream of codes.
template <int Bits>
void set_stream_code(std::uint8_t* stream, index_t r, int code) {
  index_t const bit = r * Bits;
  int const word = code << (bit % 8);
  stream[bit / 8] = static_cast<std::uint8_t>(stream[bit / 8] | (word & 0xff));
  if (bit % 8 + Bits > 8) stream[bit / 8 + 1] = static_cast<std::uint8_t>(stream[bit / 8 + 1] | (word >> 8));
}

}  // namespace detail
}  // namespace gptq
