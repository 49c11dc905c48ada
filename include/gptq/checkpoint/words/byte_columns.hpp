// Codes of 32 rows column by column, one a byte: words of a checkpoint on their way to units of columns in another
// order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <gptq/checkpoint/words/streaming_store.hpp>
#include <gptq/config.hpp>
#include <gptq/layout/codes.hpp>

namespace gptq::checkpoint::detail {

/// 16 rows at a time, in vectors that every compiler for every CPU makes of what it has.
template <int Bits>
struct byte_columns {
  using unit = gptq::detail::code_unit<Bits>;
  using bytes = std::uint8_t __attribute__((vector_size(16)));
  static constexpr int rows = 16;                          // of a vector
  static constexpr int words = unit::columns * Bits / 32;  // of a row, for the columns of a unit
  static constexpr index_t column_bytes = packed_rows;

  GPTQ_INLINE static bytes load(void const* from) {
    bytes v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  GPTQ_INLINE static bytes even(bytes a, bytes b) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  }
  GPTQ_INLINE static bytes odd(bytes a, bytes b) {
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  }
  /// a0 b0 a1 b1 ... of the lower halves, and of the upper ones.
  GPTQ_INLINE static bytes lower(bytes a, bytes b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  }
  GPTQ_INLINE static bytes upper(bytes a, bytes b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
  /// The same of pairs of bytes.
  GPTQ_INLINE static bytes lower_pairs(bytes a, bytes b) {
    return __builtin_shufflevector(a, b, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
  }
  GPTQ_INLINE static bytes upper_pairs(bytes a, bytes b) {
    return __builtin_shufflevector(a, b, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
  }

  /// The columns of a unit from words of an LSB-first stream a row, `stride` words apart; `some` of the 32 rows, the
  /// others 0 -> to[columns][32]
  GPTQ_INLINE static void spread(std::byte const* from, index_t stride, index_t some, std::uint8_t* to) {
    std::byte padded[words][4 * packed_rows];
    if (some < packed_rows) {
      std::memset(padded, 0, sizeof padded);
#pragma GCC unroll 32
      for (int w = 0; w < words; ++w) {
        std::memcpy(padded[w], from + 4 * w * stride, static_cast<std::size_t>(4 * some));
      }
      from = padded[0];
      stride = packed_rows;
    }
    for (int half = 0; half < 2; ++half) {
      bytes plane[4 * words + 1];  // byte q of a row's words
#pragma GCC unroll 32
      for (int w = 0; w < words; ++w) {
        std::byte const* const of = from + 4 * (w * stride + half * rows);
        bytes const a = load(of), b = load(of + 16), c = load(of + 32), d = load(of + 48);
        bytes const even_bytes[2] = {even(a, b), even(c, d)}, odd_bytes[2] = {odd(a, b), odd(c, d)};
        plane[4 * w] = even(even_bytes[0], even_bytes[1]);
        plane[4 * w + 1] = even(odd_bytes[0], odd_bytes[1]);
        plane[4 * w + 2] = odd(even_bytes[0], even_bytes[1]);
        plane[4 * w + 3] = odd(odd_bytes[0], odd_bytes[1]);
      }
#pragma GCC unroll 32
      for (int column = 0; column < unit::columns; ++column) {
        int const q = column * Bits / 8, bit = column * Bits % 8;
        bytes code = plane[q] >> static_cast<std::uint8_t>(bit);
        if (bit + Bits > 8) code |= plane[q + 1] << static_cast<std::uint8_t>(8 - bit);
        if (Bits < 8) code &= static_cast<std::uint8_t>((1 << Bits) - 1);
        std::memcpy(to + column * column_bytes + half * rows, &code, sizeof code);
      }
    }
  }

  /// One byte of each lane of a unit, of 16 rows, from the columns 4t + j, t = 0, 1, ...: as code_unit::combine() of
  /// layout/codes.hpp, which does the same with four of them side by side.
  GPTQ_INLINE static void combine(bytes const* w, bytes* lane) {
    auto const bits = [](int b) { return static_cast<std::uint8_t>(b); };
    if constexpr (Bits == 3) {
      lane[0] = w[0] | w[1] << bits(3) | (w[6] & bits(3)) << bits(6);
      lane[1] = w[2] | w[3] << bits(3) | (w[7] & bits(3)) << bits(6);
      lane[2] = w[4] | w[5] << bits(4) | (w[6] & bits(4)) << bits(1) | (w[7] & bits(4)) << bits(5);
    } else {
      lane[0] = w[0];
#pragma GCC unroll 32
      for (int t = 1; t < 8 / Bits; ++t) lane[0] |= w[t] << bits(Bits * t);
    }
  }

  /// A unit of `columns` columns, each from columns_at[32] bytes; what is missing to a unit is code 0.
  GPTQ_INLINE static void gather(std::uint8_t const* const* columns_at, index_t columns, std::uint8_t* to) {
    for (int half = 0; half < 2; ++half) {
      bytes lanes[4][unit::lanes];
#pragma GCC unroll 32
      for (int j = 0; j < 4; ++j) {
        bytes w[unit::columns / 4];
#pragma GCC unroll 32
        for (int t = 0; t < unit::columns / 4; ++t) {
          w[t] = 4 * t + j < columns ? load(columns_at[4 * t + j] + half * rows) : bytes{};
        }
        combine(w, lanes[j]);
      }
#pragma GCC unroll 32
      for (int l = 0; l < unit::lanes; ++l) {
        bytes const a = lower(lanes[0][l], lanes[1][l]), b = upper(lanes[0][l], lanes[1][l]);
        bytes const c = lower(lanes[2][l], lanes[3][l]), d = upper(lanes[2][l], lanes[3][l]);
        bytes const words_of_rows[4] = {lower_pairs(a, c), upper_pairs(a, c), lower_pairs(b, d),
                                        upper_pairs(b, d)};
        std::uint32_t words_of_lane[rows];
        std::memcpy(words_of_lane, words_of_rows, sizeof words_of_lane);
        streaming_store(to + unit::lane_offset(half * half_block_rows) + 64 * l, words_of_lane);
      }
    }
  }
};

}  // namespace gptq::checkpoint::detail
