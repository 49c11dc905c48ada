// Words of a checkpoint as units of codes of the packed layout (packed.hpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <gptq/checkpoint/words/streaming_store.hpp>
#include <gptq/config.hpp>
#include <gptq/packed.hpp>

namespace gptq::checkpoint::detail {

/// Units of codes of 32 rows, made of the words of an LSB-first stream a row: consecutive words of a row lie
/// `stride` words apart, and those of rows side by side.
template <int Bits>
struct word_units {
  using unit = gptq::detail::code_unit<Bits>;
  static constexpr int words = unit::columns * Bits / 32;
  struct row_words {
    std::uint32_t row[packed_rows];
  };

  /// Words of `rows` rows, 0 for what is missing to 32.
  GPTQ_INLINE static void load(std::byte const* from, index_t rows, row_words& to) {
    if (rows == packed_rows) {
      std::memcpy(to.row, from, sizeof to.row);
    } else {
      std::memset(to.row, 0, sizeof to.row);
      std::memcpy(to.row, from, static_cast<std::size_t>(4 * rows));
    }
  }

  /// Exchanges the bits of `which` with those `distance` above.
  GPTQ_INLINE static constexpr std::uint32_t exchange(std::uint32_t x, int distance, std::uint32_t which) {
    std::uint32_t const differ = (x ^ x >> distance) & which;
    return x ^ differ ^ differ << distance;
  }
  /// The lowest four numbers of Bits bits, one a byte.
  GPTQ_INLINE static constexpr std::uint32_t spread(std::uint32_t x) {
    x = (x | x << (16 - 2 * Bits)) & 0x00010001U * ((1U << (2 * Bits)) - 1U);
    return (x | x << (8 - Bits)) & 0x01010101U * ((1U << Bits) - 1U);
  }
  /// Columns in order: word[words] -> lane[lanes]. With 2 and 4 bits that is a transposed matrix of codes.
  GPTQ_INLINE static void arrange(std::uint32_t const* word, std::uint32_t* lane) {
    if constexpr (Bits == 8) {
      lane[0] = word[0];
    } else if constexpr (Bits == 4) {
      lane[0] = exchange(exchange(word[0], 8, 0x0000ff00U), 4, 0x00f000f0U);
    } else if constexpr (Bits == 2) {
      lane[0] = exchange(exchange(word[0], 12, 0x0000f0f0U), 6, 0x00cc00ccU);
    } else {
      std::uint32_t four[unit::columns / 4];
      for (int t = 0; t < unit::columns / 4; ++t) {
        int const bit = 4 * Bits * t;
        std::uint32_t x = word[bit / 32] >> (bit % 32);
        if (bit % 32 + 4 * Bits > 32) x |= word[bit / 32 + 1] << (32 - bit % 32);
        four[t] = spread(x & ((1U << (4 * Bits)) - 1U));
      }
      unit::combine(four, lane);
    }
  }

  GPTQ_INLINE static void store(row_words const* lanes, std::uint8_t* to) {
    for (index_t half = 0; half < 2; ++half) {
      for (int l = 0; l < unit::lanes; ++l) {
        streaming_store(to + unit::lane_offset(half * half_block_rows) + 64 * l,
                        lanes[l].row + half * half_block_rows);
      }
    }
  }

  /// A unit whose columns are those of whole words, in order.
  GPTQ_INLINE static void convert(std::byte const* from, index_t stride, index_t rows, std::uint8_t* to) {
    row_words in[words];
    row_words lanes[unit::lanes];
    for (int i = 0; i < words; ++i) load(from + 4 * i * stride, rows, in[i]);
    for (index_t r = 0; r < packed_rows; ++r) {
      std::uint32_t word[words];
      std::uint32_t lane[unit::lanes];
      for (int i = 0; i < words; ++i) word[i] = in[i].row[r];
      arrange(word, lane);
      for (int l = 0; l < unit::lanes; ++l) lanes[l].row[r] = lane[l];
    }
    store(lanes, to);
  }
};

}  // namespace gptq::checkpoint::detail
